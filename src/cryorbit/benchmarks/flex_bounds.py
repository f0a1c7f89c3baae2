"""The two fixed points of the heterogeneity benchmark: one map of all images, and maps made with the true states.

Both are Wiener reconstructions within the soft mask about all states, so that neither is held back by noise where no
particle is; both may look at the truth for the power of the signal, the oracle also for the states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.fsc_area import shell_correlations
from cryorbit.benchmarks.flex_scores import FscAreas, image_fsc_areas, state_distance, state_mask
from cryorbit.benchmarks.flex_tasks import FlexData
from cryorbit.data import ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.shells import shell_mean, spread_shells
from cryorbit.physics.backproject import REDUNDANCY, Backprojector
from cryorbit.physics.interpolation import complete_plane
from cryorbit.physics.lattice import lattice_radius
from cryorbit.physics.project import finish

WIDTHS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Widths of the kernel that are tried, in median distances of a state to the nearest other one."""

_IMAGES_AT_A_TIME, _STATES_AT_A_TIME = 256, 10
_TRIED_STATES = 12


@dataclass(frozen=True, eq=False)
class OracleMaps:
    """The best kernel reconstruction of every state.

    Parameters
    ----------
    maps
        Shape (k, box, box, box).
    width
        Shape (shells,): the kernel's width per Fourier shell in the unit of `state_distance`; 0 is each state by
        itself, inf all states of its composition alike, nan all states of any.
    """

    maps: Float[Tensor, "k box box box"]
    width: Float[Tensor, "shells"]

    def areas(self, data: FlexData, rows: Int[Tensor, "m"]) -> FscAreas:
        """Its score on the same images as a method's."""
        return image_fsc_areas(data, lambda part: self.maps[data.state[part]], rows)


def consensus_map(data: FlexData, *, stack: ParticleStack | None = None) -> Volume:
    """The reconstruction of all images as if they showed one state, from the poses in the stack (or in another)."""
    stack = data.stack if stack is None else stack
    sums = _StateSums.of([_insert(data, stack, torch.arange(len(data)))])
    maps = sums.maps(torch.ones(1, 1), _image_power(data)[None])
    return Volume(maps[0] * state_mask(data), stack.pixel_size_A)


def chance_areas(data: FlexData, rows: Int[Tensor, "m"], *, stack: ParticleStack | None = None) -> FscAreas:
    """The score of the consensus map, the same for every image."""
    values = consensus_map(data, stack=stack).values
    return image_fsc_areas(data, lambda part: values.expand(len(part), -1, -1, -1), rows)


def oracle_maps(data: FlexData, *, stack: ParticleStack | None = None) -> OracleMaps:
    """Each state's map as the true states allow it: images of other states count by a kernel, shell by shell.

    The weight of an image is exp(-d^2 / (2 width^2)), d the `state_distance` of its state; 1 for all of the same
    composition, or for all images, are tried too, so that what all states share at high resolution is not lost. In
    every Fourier shell that width is taken that gives the largest mean correlation with the true maps of a dozen
    states. Poses are the true ones unless a stack is given. A method that carries density along with the motion uses
    all images for every state and may come out above this.

    The sums of all states are held at once: about 50 box^3 bytes each, 1.3 GB for 100 states of 64 pixels.
    """
    stack = data.with_truth() if stack is None else stack
    k, mask = len(data.maps), state_mask(data)
    sums = _StateSums.of([_insert(data, stack, torch.nonzero(data.state == s)[:, 0]) for s in range(k)])
    widths, weights = _kernels(state_distance(data))
    power = torch.stack([_power(values) for values in data.maps])
    tried = torch.linspace(0, k - 1, min(k, _TRIED_STATES)).round().long().unique()
    curves = [
        shell_correlations(sums.maps(weight[tried], power[tried]) * mask, data.maps[tried]).mean(0)
        for weight in weights
    ]
    chosen = torch.stack(curves).argmax(0)
    box = stack.box
    maps = torch.zeros(k, box, box, box)
    for number in chosen.unique().tolist():
        shells = spread_shells((chosen == number).float(), n=box, ndim=3)
        for rows in torch.arange(k).split(_STATES_AT_A_TIME):
            part = torch.fft.rfftn(sums.maps(weights[number][rows], power[rows]) * mask, dim=(1, 2, 3))
            maps[rows] += torch.fft.irfftn(part * shells, s=(box, box, box), dim=(1, 2, 3))
    return OracleMaps(maps, torch.tensor(widths)[chosen])


def oracle_areas(data: FlexData, rows: Int[Tensor, "m"], *, stack: ParticleStack | None = None) -> FscAreas:
    """The score of `oracle_maps`."""
    return oracle_maps(data, stack=stack).areas(data, rows)


def recovered_share(score: float, *, chance: float, oracle: float) -> float:
    """How much of the way from chance to the oracle a score has come: 0 at chance, 1 at the oracle, nan if they agree.

    Where states differ little, chance alone is a large part of the oracle's area; this is not.
    """
    return (score - chance) / (oracle - chance) if oracle != chance else math.nan


@dataclass(frozen=True, eq=False)
class _StateSums:
    """Numerator (real, imaginary) and denominator of each state's reconstruction, inside the sphere of Nyquist."""

    values: Float[Tensor, "k 3 points"]
    place: Int[Tensor, "points"]
    box: int

    @classmethod
    def of(cls, sums: list[Backprojector]) -> _StateSums:
        box = sums[0].box
        place = torch.nonzero(lattice_radius(box, sums[0].denominator).flatten() <= box - 1)[:, 0]
        values = torch.empty(len(sums), 3, len(place))
        for one, target in zip(sums, values, strict=True):
            complete_plane(one.numerator)
            complete_plane(one.denominator)
            numerator = one.numerator.flatten()[place]
            target[0], target[1] = numerator.real, numerator.imag
            target[2] = one.denominator.flatten()[place]
        return cls(values, place, box)

    def maps(
        self, weight: Float[Tensor, "t k"], prior_power: Float[Tensor, "t shells"]
    ) -> Float[Tensor, "t box box box"]:
        """Wiener reconstructions from sums weighted by state, as `Backprojector.solve` makes them."""
        box = self.box
        radius = (lattice_radius(box, self.values).flatten()[self.place] / 2).clamp_max(box // 2)
        low = radius.floor().long().clamp_max(box // 2 - 1)
        maps = []
        for part, power in zip(
            weight.split(_STATES_AT_A_TIME), prior_power.split(_STATES_AT_A_TIME), strict=True
        ):
            mixed = (part.to(self.values) @ self.values.flatten(1)).view(len(part), 3, -1)
            for (real, imaginary, denominator), prior in zip(mixed, power, strict=True):
                extra = 1 / (REDUNDANCY * prior)
                total = denominator + torch.lerp(extra[low], extra[low + 1], radius - low)
                half = torch.zeros(4 * box * box * (box + 1), dtype=torch.complex64)
                half[self.place] = torch.complex(real, imaginary) / total
                maps.append(finish(half.view(2 * box, 2 * box, box + 1), box=box))
        return torch.stack(maps)


def _insert(data: FlexData, stack: ParticleStack, rows: Tensor) -> Backprojector:
    if stack.pose is None:
        raise BadInput("the stack has no poses. Give the data set's own, or one with poses.")
    box = stack.box
    sums = Backprojector.empty(box, pixel_size_A=stack.pixel_size_A)
    # noise-free images: as if the noise were a millionth of the signal
    noise_power = max(data.sigma, 1e-3 * float(data.maps[0].std())) ** 2 * box**2
    for part in rows.split(_IMAGES_AT_A_TIME):
        if len(part):
            ctf = None if stack.ctf is None else stack.ctf[part]
            sums.insert(stack.images[part], stack.pose[part], ctf, noise_power=noise_power)
    return sums


def _kernels(distance: Float[Tensor, "k k"]) -> tuple[list[float], list[Float[Tensor, "k k"]]]:
    """Widths and the weight of every state for every other."""
    near = distance.clone().fill_diagonal_(torch.inf).amin(1)
    near = near[torch.isfinite(near)]
    # states that have no other of their composition leave nothing to smooth over
    widths = [w * float(near.median()) for w in WIDTHS] if len(near) else [0.0]
    weights = [
        torch.exp(-0.5 * (distance / w) ** 2) if w > 0 else torch.eye(len(distance)).double() for w in widths
    ]
    if len(near):
        widths, weights = [*widths, math.inf], [*weights, torch.isfinite(distance).double()]
    return [*widths, math.nan], [*weights, torch.ones_like(distance)]


def _power(values: Float[Tensor, "n n n"]) -> Float[Tensor, "shells"]:
    """Mean |V^|^2 per shell, a trillionth of the largest at least."""
    power = shell_mean(torch.fft.rfftn(values).abs() ** 2, n=values.shape[0], ndim=3)
    return power.clamp_min(1e-12 * float(power.max()))


def _image_power(data: FlexData) -> Float[Tensor, "shells"]:
    """The mean over images of the power of their true maps."""
    share = torch.bincount(data.state, minlength=len(data.maps)).float() / len(data)
    return (share[:, None] * torch.stack([_power(values) for values in data.maps])).sum(0)
