"""Maps on a twice padded Fourier lattice: sums of slices in, regularised maps and their transforms out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.physics.interpolation import complete_plane, scatter


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
        real = torch.fft.irfftn(torch.fft.ifftshift(half, dim=(0, 1)), s=(self.padded,) * 3)
        low = self.n // 2
        index = (torch.arange(self.n) - low) % self.padded
        return real[index][:, index][:, :, index] / _kernel(self.n)

    def to_half(self, values: Float[Tensor, "n n n"]) -> Complex[Tensor, "p p h"]:
        """The transform of a map, ready for trilinear reads."""
        low = self.n // 2
        index = (torch.arange(self.n) - low) % self.padded
        padded = torch.zeros((self.padded,) * 3)
        padded[index[:, None, None], index[:, None], index] = values / _kernel(self.n)
        return torch.fft.fftshift(torch.fft.rfftn(padded), dim=(0, 1)).contiguous()

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
        done = raw.clone()
        complete_plane(done)
        return cls(lattice, torch.complex(done[0], done[1]), done[2])

    def solve(self, added_weight: Float[Tensor, "shells"], *, radius: float) -> Complex[Tensor, "p p h"]:
        """Solve numerator / (weight + added weight of the shell), zero beyond `radius` Fourier pixels."""
        shell = self.lattice.shells()
        extra = added_weight[shell.clamp_max(added_weight.shape[0] - 1)]
        return self.numerator / (self.weight + extra).clamp_min(1e-20) * (shell <= radius)


@lru_cache(maxsize=8)
def _shells(n: int) -> Tensor:
    x = torch.arange(n + 1).float()
    y = torch.arange(-n, n).float()
    size = (y[:, None, None].square() + y[:, None].square() + x.square()).sqrt() / 2
    return size.round().long()


@lru_cache(maxsize=8)
def _kernel(n: int) -> Tensor:
    axis = torch.sinc((torch.arange(n) - n // 2) / (2 * n)).square()
    return axis[:, None, None] * axis[:, None] * axis
