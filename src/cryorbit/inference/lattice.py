"""Maps on a twice padded Fourier lattice: sums of slices in, regularised maps and their transforms out.

The lattice is that of `physics.project`, read and filled by `physics.interpolation`. What is its own here is the sums:
three real planes of a half transform in one tensor, which is how `scatter` adds fastest and a checkpoint keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.fourier.resample import fourier_resample
from cryorbit.physics.interpolation import complete_plane, scatter
from cryorbit.physics.lattice import lattice_radius
from cryorbit.physics.project import finish, prepare


@dataclass(frozen=True)
class Lattice:
    """A map of n (even) voxels and its transform on 2n lattice points per axis, the stored half of it.

    Slices are read and added at twice their Fourier pixel; the trilinear kernel is divided out of the map (sinc^2).
    """

    n: int

    @property
    def padded(self) -> int:
        """Lattice points per axis."""
        return 2 * self.n

    def zeros(self) -> Float[Tensor, "c p p h"]:
        """Empty sums: real part, imaginary part, weight."""
        return torch.zeros(3, self.padded, self.padded, self.n + 1)

    def add(
        self,
        sums: Float[Tensor, "c p p h"],
        points: Float[Tensor, "*batch 3"],
        values: Complex[Tensor, "*batch"],
        weights: Float[Tensor, "*batch"],
    ) -> None:
        """Add samples at `points` (Fourier pixels, particle frame) to the sums, in place."""
        scatter(sums, points * 2, torch.stack((values.real, values.imag, weights)))

    def to_map(self, half: Complex[Tensor, "p p h"]) -> Float[Tensor, "n n n"]:
        """The map of a solved transform (`Sums.solve`): the kernel that adding samples blurred it with is divided out."""
        return finish(half, box=self.n)

    def to_half(self, values: Float[Tensor, "n n n"]) -> Complex[Tensor, "p p h"]:
        """The transform of a map, ready for trilinear reads."""
        return prepare(Volume(values, 1.0)).half

    def shells(self) -> Int[Tensor, "p p h"]:
        """Shell (Fourier pixels, rounded) of every stored lattice point."""
        return _shells(self.n)

    def shell_mean(self, values: Float[Tensor, "p p h"], n_shells: int) -> Float[Tensor, "shells"]:
        """Mean over each of the first `n_shells` shells."""
        shell = self.shells().clamp_max(n_shells).flatten()
        count = torch.bincount(shell, minlength=n_shells + 1)
        total = torch.bincount(shell, weights=values.flatten().double(), minlength=n_shells + 1)
        return (total / count.clamp_min(1))[:n_shells].float()


@dataclass(frozen=True, eq=False)
class Sums:
    """Completed sums: numerator sum(conj-phase C X / s^2) and weight sum(C^2 / s^2) on the lattice."""

    lattice: Lattice
    numerator: Complex[Tensor, "p p h"]
    weight: Float[Tensor, "p p h"]

    @classmethod
    def of(cls, lattice: Lattice, raw: Float[Tensor, "c p p h"]) -> Sums:
        """Complete the plane x = 0 of sums made with `Lattice.add`; `raw` is left as it is."""
        numerator, weight = torch.complex(raw[0], raw[1]), raw[2].clone()
        complete_plane(numerator)
        complete_plane(weight)
        return cls(lattice, numerator, weight)

    def solve(self, added_weight: Float[Tensor, "shells"], *, radius: float) -> Complex[Tensor, "p p h"]:
        """Solve numerator / (weight + added weight of the shell), zero beyond `radius` Fourier pixels."""
        shell = self.lattice.shells()
        extra = added_weight[shell.clamp_max(added_weight.shape[0] - 1)]
        return self.numerator / (self.weight + extra).clamp_min(1e-20) * (shell <= radius)


def on_image_grid(values: Float[Tensor, "n n n"], box: int) -> Float[Tensor, "box box box"]:
    """A map on a lattice's n voxels, on as many voxels as the images have pixels: n is box + 1 where that is odd.

    The lattice spans the images' field of view whatever n is, so its voxels are smaller than pixels then. The
    unnormalised transform stays: slices of it are still those of the images.

    >>> on_image_grid(torch.ones(34, 34, 34), 33).shape
    torch.Size([33, 33, 33])
    """
    return fourier_resample(values, box, ndim=3) * (values.shape[0] / box) ** 3


@lru_cache(maxsize=8)
def _shells(n: int) -> Tensor:
    return (lattice_radius(n, torch.empty(0)) / 2).round().long()
