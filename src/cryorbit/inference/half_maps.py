"""Two half maps from sums of slices: their correlation, and regularised transforms to refine poses against."""

from __future__ import annotations

from collections.abc import Callable
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
        Up to this radius the two halves share their sums, so that they stay in register; their correlation says
        nothing there. 0: nothing is shared.
    team
        Works on the two halves at a time.
    """
    team = team or Workers(None, 1)
    ranks = team.ranks
    here = [h for h in (0, 1) if ranks.size == 1 or ranks.rank == h or joined_radius > 0]
    sums = dict(zip(here, team.map(lambda h: Sums.of(lattice, raw[h]), here), strict=True))
    n_shells, n, p = radius + 1, lattice.n, lattice.padded

    def unfiltered(half: int) -> tuple[Tensor, ...]:
        weight = lattice.shell_mean(sums[half].weight, n_shells)
        return lattice.to_map(sums[half].solve(1e-3 * weight + 1e-20, radius=radius)), weight

    kinds = [((n, n, n), torch.float32), ((n_shells,), torch.float32)]
    (first_plain, first_weight), (second_plain, second_weight) = _of_each_half(team, unfiltered, kinds)
    plain, weights = (first_plain, second_plain), (first_weight, second_weight)
    correlation = shell_correlation(plain[0] * mask, plain[1] * mask, n_shells)
    usable = correlation.clamp(0.005, 0.999)

    def regularised(half: int) -> tuple[Tensor, Tensor]:
        s = sums[half] if joined_radius <= 0 else _joined(sums[half], sums[1 - half], joined_radius)
        values = lattice.to_map(s.solve(weights[half] * (1 - usable) / usable, radius=radius)) * mask
        return values, lattice.to_half(values)

    kinds = [((n, n, n), torch.float32), ((p, p, n + 1), torch.complex64)]
    (first, first_half), (second, second_half) = _of_each_half(team, regularised, kinds)
    return HalfMaps(lattice, (first_half, second_half), plain, (first, second), correlation)


def _joined(own: Sums, other: Sums, radius: float) -> Sums:
    """Sums of one half, up to a radius the mean of both."""
    shared = own.lattice.shells() <= radius
    numerator = torch.where(shared, 0.5 * (own.numerator + other.numerator), own.numerator)
    weight = torch.where(shared, 0.5 * (own.weight + other.weight), own.weight)
    return Sums(own.lattice, numerator, weight)


def _of_each_half(
    team: Workers,
    work: Callable[[int], tuple[Tensor, ...]],
    kinds: list[tuple[tuple[int, ...], torch.dtype]],
) -> list[tuple[Tensor, ...]]:
    """`work` of either half: by threads of one process, or half by half by the first two of several.

    Parameters
    ----------
    kinds
        Shape and type of each tensor that `work` gives; the other processes get the same bits.
    """
    ranks = team.ranks
    if ranks.size == 1:
        return team.map(work, (0, 1))
    out: list[tuple[Tensor, ...]] = []
    for half in (0, 1):
        if ranks.rank == half:
            found = tuple(t.contiguous() for t in work(half))
        else:
            found = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in kinds)
        out.append(found)
    for found in out:
        ranks.sum_(*found)
    return out


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
