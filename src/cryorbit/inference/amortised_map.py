"""The map under amortised inference: learnt by gradient through a decoder, or kept as sums that forget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.inference.amortised_data import ImageBatch, TrainingImages
from cryorbit.inference.coarse import MAP_REGULARISER
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import support_mask
from cryorbit.inference.refine import half_disk
from cryorbit.inference.ring_em import coarse_map
from cryorbit.models.decoder import Decoder
from cryorbit.models.fourier_volume import LatticeVolume
from cryorbit.models.pose_encoder import PosePrediction
from cryorbit.physics.lattice import read_plane

SOLVE_EVERY = 32
"""Images between solutions of the sums."""


class RunningMap(ABC):
    """A map that gives slices and takes in images with weighted poses."""

    @abstractmethod
    def slices(
        self, rotation: Float[Tensor, "b 3 3"], points: Float[Tensor, "p 2"]
    ) -> Complex[Tensor, "b p"]:
        """The map's transform at A^T (kx, ky, 0), differentiable in `rotation`."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Before a loss is made of slices."""

    @abstractmethod
    def update(
        self, batch: ImageBatch, poses: PosePrediction, weight: Float[Tensor, "b m"], *, radius: float
    ) -> None:
        """Take in a batch, after the backward pass of its loss."""

    @abstractmethod
    def half(self) -> Complex[Tensor, "p p h"]:
        """The transform on the padded lattice, for `refine` and `search`."""

    @abstractmethod
    def volume(self, pixel_size_A: float) -> Volume:
        """The map."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors for a checkpoint."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


class SumsMap(RunningMap):
    """Sums of averaged slices that forget, and their regularised solution after each batch: the M-step, in closed form."""

    def __init__(
        self, raw: Tensor, lattice: Lattice, *, particle_radius_px: float, forgetting: float
    ) -> None:
        """`forgetting`: what one hundred images leave of the sums before them; the radius in pixels of the lattice."""
        self.lattice, self.forgetting, self.raw = lattice, forgetting, raw
        self.mask = support_mask(lattice.n, 1.15 * particle_radius_px)
        self.map = torch.zeros(lattice.n, lattice.n, lattice.n)
        self._half = torch.zeros(0)
        self.unsolved = 0

    def solve(self, radius: float) -> None:
        """Bring the map up to the sums."""
        self.unsolved = 0
        self.map = coarse_map(
            self.raw, self.lattice, radius=int(radius), mask=self.mask, regulariser=MAP_REGULARISER
        )
        self._half = self.lattice.to_half(self.map)

    def slices(
        self, rotation: Float[Tensor, "b 3 3"], points: Float[Tensor, "p 2"]
    ) -> Complex[Tensor, "b p"]:
        """The map's transform at A^T (kx, ky, 0)."""
        kx, ky = (2 * points).unbind(1)
        return read_plane(self._half, rotation, kx.contiguous(), ky.contiguous())

    def zero_grad(self) -> None:
        """There is nothing to do: sums take no gradient."""

    def update(
        self, batch: ImageBatch, poses: PosePrediction, weight: Float[Tensor, "b m"], *, radius: float
    ) -> None:
        """Forget, add, solve."""
        self.raw *= self.forgetting ** (len(batch) / 100)
        self.add(batch, poses, weight)
        self.unsolved += len(batch)
        if self.unsolved >= SOLVE_EVERY:
            self.solve(radius)

    def add(self, batch: ImageBatch, poses: PosePrediction, weight: Float[Tensor, "b m"]) -> None:
        """Insert images at weighted poses."""
        rotation, points = poses.rotation.detach(), batch.points
        at = points[:, :1] * rotation[:, :, None, 0] + points[:, 1:] * rotation[:, :, None, 1]
        share = weight[..., None] * batch.ctf[:, None]
        values = batch.target(poses.shift_px.detach()) * share
        self.lattice.add(self.raw, at, values, share * batch.ctf[:, None])

    def half(self) -> Complex[Tensor, "p p h"]:
        """The transform on the padded lattice."""
        return self._half

    def volume(self, pixel_size_A: float) -> Volume:
        """The map."""
        return Volume(self.map, pixel_size_A)

    def state(self) -> dict[str, Any]:
        """Sums and map."""
        return {"map_raw": self.raw, "map_values": self.map, "map_unsolved": self.unsolved}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.raw, self.map = state["map_raw"].clone(), state["map_values"].clone()
        self._half = self.lattice.to_half(self.map)
        self.unsolved = state["map_unsolved"]


class GradientMap(RunningMap):
    """A decoder moved by Adam; an explicit one is confined to a ball now and then."""

    CONFINE_EVERY = 10

    def __init__(self, decoder: Decoder, *, learning_rate: float, particle_radius_px: float) -> None:
        self.decoder, self.radius_px, self.steps = decoder, particle_radius_px, 0
        self.optimiser = torch.optim.Adam(decoder.parameters(), lr=learning_rate)

    def slices(
        self, rotation: Float[Tensor, "b 3 3"], points: Float[Tensor, "p 2"]
    ) -> Complex[Tensor, "b p"]:
        """The decoder's."""
        return self.decoder.slices(rotation, points)

    def zero_grad(self) -> None:
        """Before a loss is made of slices."""
        self.optimiser.zero_grad(set_to_none=True)

    def update(
        self, batch: ImageBatch, poses: PosePrediction, weight: Float[Tensor, "b m"], *, radius: float
    ) -> None:
        """One step of Adam along the gradient that the loss left."""
        del batch, poses, weight, radius
        self.optimiser.step()
        self.steps += 1
        if isinstance(self.decoder, LatticeVolume) and self.steps % self.CONFINE_EVERY == 0:
            self.decoder.confine(radius_px=1.15 * self.radius_px)

    def half(self) -> Complex[Tensor, "p p h"]:
        """The transform on the padded lattice, of the decoder's map."""
        return Lattice(self.decoder.box).to_half(self.decoder.volume(1.0).values)

    def volume(self, pixel_size_A: float) -> Volume:
        """The decoder's map."""
        return self.decoder.volume(pixel_size_A)

    def state(self) -> dict[str, Any]:
        """Weights and the optimiser's moments."""
        return {"map_steps": self.steps, **pack("map", self.decoder, self.optimiser)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.steps = state["map_steps"]
        unpack("map", state, self.decoder, self.optimiser)


def map_of_poses(
    images: TrainingImages, rotation: Float[Tensor, "n 3 3"], shift_px: Float[Tensor, "n 2"], *, radius: int
) -> Volume:
    """The map of the first n images at these poses, shifts in pixels of the cropped box."""
    observed, lattice = images.small.observed, Lattice(images.box)
    sums = SumsMap(
        lattice.zeros(),
        lattice,
        particle_radius_px=observed.particle_radius_px / images.pixels_per_pixel,
        forgetting=1.0,
    )
    for part in torch.arange(len(rotation)).split(256):
        one = torch.ones(len(part), 1)
        poses = PosePrediction(rotation[part, None], one, shift_px[part, None], 1.0)
        sums.add(images.batch(part, half_disk(radius)), poses, one)
    sums.solve(radius)
    return sums.volume(observed.pixel_size_A * images.pixels_per_pixel)


def pack(name: str, module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """A module's weights and its optimiser's moments as flat entries."""
    out: dict[str, Any] = {f"{name}.weight.{k}": v for k, v in module.state_dict().items()}
    for i, moments in optimiser.state_dict()["state"].items():
        out |= {f"{name}.moment.{i}.{k}": v for k, v in moments.items()}
    return out


def unpack(
    name: str, state: dict[str, Any], module: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """The reverse of `pack`, in place."""
    start = f"{name}.weight."
    module.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(f"{name}.moment."):
            i, what = key.removeprefix(f"{name}.moment.").split(".", 1)
            moments.setdefault(int(i), {})[what] = value.clone()
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
