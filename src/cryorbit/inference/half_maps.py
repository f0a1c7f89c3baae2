"""Two half maps from sums of slices: their correlation, and regularised transforms to refine poses against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.inference.engine import Workers
from cryorbit.inference.lattice import Lattice, Sums


@dataclass(frozen=True, eq=False)
class HalfMaps:
    """Half maps on a lattice of n voxels, and what their agreement allows."""

    lattice: Lattice
    halves: tuple[Complex[Tensor, "p p h"], Complex[Tensor, "p p h"]]
    """Transforms of the regularised, masked half maps, for trilinear reads."""
    maps: tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]
    """Half maps without regularisation or mask."""
    filtered: tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]
    """Half maps with the Wiener filter and the mask."""
    correlation: Float[Tensor, "shells"]
    """Between the masked half maps, per Fourier pixel."""

    def radius_at(self, threshold: float) -> int:
        """Last shell before the correlation first falls below `threshold`."""
        below = torch.nonzero(self.correlation[1:] < threshold)[:, 0]
        return int(below[0]) if len(below) else self.correlation.shape[0] - 1


def solve_halves(
    raw: tuple[Float[Tensor, "c p p h"], Float[Tensor, "c p p h"]],
    lattice: Lattice,
    mask: Float[Tensor, "n n n"],
    *,
    radius: int,
    joined_radius: float,
    team: Workers | None = None,
) -> HalfMaps:
    """Half maps by weighted least squares, then a Wiener filter from their own correlation.

    Parameters
    ----------
    raw
        Sums of the two halves (`Lattice.add`).
    radius
        Shells beyond are zero.
    joined_radius
        Below this radius the two halves share their sums, so that they stay in register; their correlation says
        nothing there.
    team
        Works on the two halves at a time.
    """
    team = team or Workers(None, 1)
    sums = team.map(lambda r: Sums.of(lattice, r), raw)
    n_shells = radius + 1
    weights = team.map(lambda s: lattice.shell_mean(s.weight, n_shells), sums)

    def unfiltered(half: int) -> Float[Tensor, "n n n"]:
        return lattice.to_map(sums[half].solve(1e-3 * weights[half] + 1e-20, radius=radius))

    plain = team.map(unfiltered, (0, 1))
    correlation = shell_correlation(plain[0] * mask, plain[1] * mask, n_shells)
    usable = correlation.clamp(0.005, 0.999)
    shared = lattice.shells() <= joined_radius
    numerator = 0.5 * (sums[0].numerator + sums[1].numerator)
    weight = 0.5 * (sums[0].weight + sums[1].weight)

    def regularised(half: int) -> tuple[Tensor, Tensor]:
        s, w = sums[half], weights[half]
        joined = Sums(
            lattice, torch.where(shared, numerator, s.numerator), torch.where(shared, weight, s.weight)
        )
        values = lattice.to_map(joined.solve(w * (1 - usable) / usable, radius=radius)) * mask
        return values, lattice.to_half(values)

    (first, first_half), (second, second_half) = team.map(regularised, (0, 1))
    maps = (plain[0], plain[1])
    return HalfMaps(lattice, (first_half, second_half), maps, (first, second), correlation)


def shell_correlation(
    a: Float[Tensor, "n n n"], b: Float[Tensor, "n n n"], n_shells: int
) -> Float[Tensor, "shells"]:
    """Fourier shell correlation of two maps for the first shells."""
    n = a.shape[0]
    fa, fb = torch.fft.rfftn(a), torch.fft.rfftn(b)
    k = torch.fft.fftfreq(n) * n
    size = (k[:, None, None].square() + k[:, None].square() + torch.arange(n // 2 + 1).square()).sqrt()
    shell = size.round().long().clamp_max(n_shells).flatten()

    def total(values: Tensor) -> Tensor:
        return torch.bincount(shell, weights=values.flatten().double(), minlength=n_shells + 1)[:n_shells]

    cross = total((fa * fb.conj()).real)
    return (cross / (total(fa.abs().square()) * total(fb.abs().square())).sqrt().clamp_min(1e-30)).float()
