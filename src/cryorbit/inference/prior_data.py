"""What priors are trained on, batch by batch: chains and densities in fresh poses, the same for the same seed and step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryorbit.data import Atoms, ProteinChain
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.models.map_spectrum import MapSpectrum, measure_spectrum
from cryorbit.physics.atom_density import density_of_atoms


@dataclass(frozen=True, eq=False)
class PointBatch:
    """C-alphas of some chains: position_A (b, n, 3) in angstrom, mask, chain and residue (b, n)."""

    position_A: Float[Tensor, "b n 3"]
    mask: Bool[Tensor, "b n"]
    chain: Int[Tensor, "b n"]
    residue: Int[Tensor, "b n"]


@dataclass(frozen=True, eq=False)
class VolumeBatch:
    """Densities (b, 1, n, n, n) of `physics.atom_density`, their voxels and low passes in angstrom."""

    density: Float[Tensor, "b 1 n n n"]
    voxel_size_A: Float[Tensor, "b"]
    resolution_A: Float[Tensor, "b"]


@runtime_checkable
class PointSource(Protocol):
    """Chains for each step of a training; the same step gives the same batch, so that a run can be resumed."""

    def __call__(self, step: int) -> PointBatch:
        """The batch of a step."""
        ...


@runtime_checkable
class VolumeSource(Protocol):
    """Densities for each step of a training; the same step gives the same batch, so that a run can be resumed."""

    def __call__(self, step: int) -> VolumeBatch:
        """The batch of a step."""
        ...


def generator_of_step(seed: int, step: int) -> torch.Generator:
    """A generator that seed and step decide."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


class ChainSource:
    """C-alphas of random chains, each turned at random.

    Parameters
    ----------
    chains
        To draw from; a chain counts as often as it stands here.
    batch
        Chains per step.
    longest
        A longer chain gives a random stretch of so many residues.

    Raises
    ------
    BadInput
        If there are no chains.
    """

    def __init__(
        self, chains: Sequence[ProteinChain], *, batch: int, longest: int = 256, seed: int = 0
    ) -> None:
        if not chains or batch < 1 or longest < 4:
            raise BadInput(
                f"ChainSource: {len(chains)} chains, batches of {batch}, stretches of {longest}. "
                "Give at least one chain, one per batch, and stretches of 4 or more."
            )
        self._chains, self._batch, self._longest, self._seed = chains, batch, longest, seed

    def __call__(self, step: int) -> PointBatch:
        """The batch of a step."""
        g = generator_of_step(self._seed, step)
        chosen = torch.randint(len(self._chains), (self._batch,), generator=g).tolist()
        parts = [self._stretch(self._chains[i], g) for i in chosen]
        turns = random_rotations(self._batch, generator=g)
        n = max(len(ca) for ca, _ in parts)
        batch = PointBatch(
            torch.zeros(self._batch, n, 3),
            torch.zeros(self._batch, n, dtype=torch.bool),
            torch.zeros(self._batch, n, dtype=torch.long),
            torch.zeros(self._batch, n, dtype=torch.long),
        )
        for i, (ca, place) in enumerate(parts):
            batch.position_A[i, : len(ca)] = (ca - ca.mean(0)) @ turns[i].mT
            batch.mask[i, : len(ca)] = True
            batch.residue[i, : len(ca)] = place
        return batch

    def _stretch(self, chain: ProteinChain, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """C-alphas and places of at most `longest` residues."""
        first = int(torch.randint(max(1, len(chain) - self._longest + 1), (), generator=g))
        part = slice(first, first + self._longest)
        return chain.ca_A[part].to(torch.float32), residue_places(chain.residue_number)[part]


def residue_places(number: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Places along a chain from its residue numbers: gaps stay, residues that share a number or run back take the next.

    >>> residue_places(torch.tensor([5, 6, 6, 9])).tolist()
    [0, 1, 2, 5]
    """
    return torch.cat((number.new_zeros(1), number.diff().clamp_min(1).cumsum(0)))


@dataclass(frozen=True, kw_only=True)
class DensityRange:
    """What maps are drawn at."""

    box: int = 32
    """Edge in voxels."""
    voxel_size_A: tuple[float, float] = (3.0, 3.0)
    """Least and largest voxel; drawn evenly in the logarithm."""
    resolution_A: tuple[float, float] = (6.0, 10.0)
    """Finest and coarsest low pass; drawn evenly, never finer than two voxels."""
    shift_A: float = 6.0
    """Largest distance of the centre of mass from the middle, where the box has room."""
    turned: bool = True
    """Each draw is turned at random; False: structures stand as they are given."""

    def __post_init__(self) -> None:
        if self.resolution_A[1] < 2 * self.voxel_size_A[1]:
            raise BadInput(
                f"DensityRange: voxels of {self.voxel_size_A[1]:g} A hold {2 * self.voxel_size_A[1]:g} A at best, but "
                f"resolutions end at {self.resolution_A[1]:g} A. Give smaller voxels or coarser resolutions."
            )


class DensitySource:
    """Densities of random structures, each turned and moved as atoms, at a random voxel size and resolution.

    Parameters
    ----------
    structures
        To draw from.
    batch
        Maps per step.
    drawn
        Box, voxel sizes, resolutions, shifts.

    Raises
    ------
    BadInput
        If there are no structures, or one fits the box at no voxel size.
    """

    def __init__(
        self, structures: Sequence[Atoms], drawn: DensityRange, *, batch: int, seed: int = 0
    ) -> None:
        if not structures or batch < 1:
            raise BadInput(
                f"DensitySource: {len(structures)} structures, batches of {batch}. Give at least one of each."
            )
        self._structures, self._drawn, self._batch, self._seed = structures, drawn, batch, seed
        self._reach_A = [_reach_A(atoms) for atoms in structures]
        room = self._room_A(drawn.voxel_size_A[1])
        large = [i for i, reach in enumerate(self._reach_A) if reach > room]
        if large:
            raise BadInput(
                f"DensitySource: {len(large)} of {len(structures)} structures reach further than the {room:.0f} A that "
                f"a box of {drawn.box} voxels of {drawn.voxel_size_A[1]:g} A has room for (first: number {large[0]}, "
                f"{self._reach_A[large[0]]:.0f} A). Leave them out, or give larger voxels."
            )

    def __call__(self, step: int) -> VolumeBatch:
        """The batch of a step."""
        g = generator_of_step(self._seed, step)
        drawn = [self._draw(g) for _ in range(self._batch)]
        density, size, limit = zip(*drawn, strict=True)
        return VolumeBatch(torch.stack(density)[:, None], torch.tensor(size), torch.tensor(limit))

    def _draw(self, g: torch.Generator) -> tuple[Tensor, float, float]:
        i = int(torch.randint(len(self._structures), (), generator=g))
        atoms, reach = self._structures[i], self._reach_A[i]
        (low, high), (fine, coarse) = self._drawn.voxel_size_A, self._drawn.resolution_A
        u, v, w = torch.rand(3, generator=g).tolist()
        smallest = max(low, low * reach / self._room_A(low))
        size = smallest * (high / smallest) ** u
        finest = max(fine, 2 * size)
        limit = finest + v * (coarse - finest)
        direction = torch.nn.functional.normalize(torch.randn(3, generator=g), dim=0)
        shift = direction * min(self._drawn.shift_A, self._room_A(size) - reach) * w ** (1 / 3)
        turn = random_rotations(1, generator=g)[0] if self._drawn.turned else None
        density = density_of_atoms(
            atoms, turn, shift, box=self._drawn.box, pixel_size_A=size, resolution_A=limit
        )
        return density.values.to(torch.float32), size, limit

    def _room_A(self, voxel_size_A: float) -> float:
        """Largest reach of a structure's atoms."""
        return _room_A(self._drawn.box, voxel_size_A)


def room_for(structures: Sequence[Atoms], drawn: DensityRange) -> list[bool]:
    """Whether each structure fits the box at the largest voxel, so that `DensitySource` takes it."""
    return [_reach_A(atoms) <= _room_A(drawn.box, drawn.voxel_size_A[1]) for atoms in structures]


def _room_A(box: int, voxel_size_A: float) -> float:
    """Largest reach of a structure's atoms in a box."""
    return (box / 2 - 1.5) * voxel_size_A


def _reach_A(atoms: Atoms) -> float:
    """Distance of the outermost atom from the centre of the scattering mass."""
    mass = (atoms.occupancy * atoms.atomic_number).to(torch.float64)
    position = atoms.position_A.to(torch.float64)
    centre = (mass[:, None] * position).sum(0) / mass.sum()
    return float((position - centre).norm(dim=1).max())


def map_spectrum(source: VolumeSource, *, density_scale: float, batches: int = 8) -> MapSpectrum:
    """Of the densities of the first batches in the network's unit, for `VolumePriorShape.spectrum`."""
    drawn = [source(step) for step in range(batches)]
    return measure_spectrum(
        torch.cat([d.density for d in drawn]) / density_scale,
        torch.cat([d.voxel_size_A for d in drawn]),
        torch.cat([d.resolution_A for d in drawn]),
    )


def root_mean_square(source: VolumeSource, *, batches: int = 8) -> float:
    """Of the densities of the first batches: the `density_scale` that makes sigma_data 1.

    Raises
    ------
    BadInput
        If the densities are zero or not finite.
    """
    squares = [float(source(step).density.square().mean()) for step in range(batches)]
    value = math.sqrt(sum(squares) / len(squares))
    if not (value > 0 and math.isfinite(value)):
        raise BadInput(
            f"root_mean_square: densities of size {value}. Look at the structures they are drawn from."
        )
    return value
