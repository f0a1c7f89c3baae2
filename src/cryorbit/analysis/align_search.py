"""Where to start: rotations tried over all of SO(3), every translation at once by FFT."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.analysis.harmonics import SphereGrid, correlate_over_rotations, rotations_at
from cryorbit.analysis.spectrum import Spectrum, at_grid, half_ball
from cryorbit.data import Volume
from cryorbit.geometry.directions import super_fibonacci

COARSE_KMAX = 8
"""Shells used while every translation is tried: 30 degree steps still overlap there."""

_BATCH = 32


@dataclass(frozen=True, eq=False)
class Candidates:
    """Starts for refinement: x_moving = rotation @ x_reference + shift, in units of the box.

    Parameters
    ----------
    score
        Correlation of the whitened maps, -1 to 1; comparable within one search only.
    """

    rotation: Float[Tensor, "k 3 3"]
    shift: Float[Tensor, "k 3"]
    score: Float[Tensor, "k"]


def shell_rms(
    values: Complex[Tensor, "p"], shell: Int[Tensor, "p"], *, shells: int
) -> Float[Tensor, "shells"]:
    """Root mean square modulus per shell; 1 where a shell is empty or silent, so that it can divide."""
    power = values.abs().double() ** 2
    total = torch.zeros(shells, dtype=torch.float64, device=values.device).index_add_(0, shell, power)
    count = torch.zeros_like(total).index_add_(0, shell, torch.ones_like(power))
    rms = (total / count.clamp_min(1.0)).sqrt()
    return torch.where(rms > 0, rms, torch.ones_like(rms))


def search_translations(
    moving: Spectrum, reference: Volume, *, n_rotations: int = 720, kmax: int = COARSE_KMAX
) -> Candidates:
    """Every translation for each of `n_rotations` rotations, on the whitened half ball |k| <= kmax."""
    points = half_ball(kmin=1.0, kmax=kmax, device=reference.values.device)
    shell = (points.double().norm(dim=-1) + 0.5).floor().long()
    rotations = super_fibonacci(n_rotations).to(reference.values)
    target = at_grid(reference, points)
    target = target / shell_rms(target, shell, shells=kmax + 2)[shell].to(target.real.dtype)
    size = 4 * kmax
    whitening = shell_rms(moving.value(points.to(rotations.dtype)), shell, shells=kmax + 2)[shell]
    target = target / whitening.to(target.real.dtype)
    score, shift = [], []
    for some in rotations.split(_BATCH):
        values = moving.value(points.to(rotations.dtype) @ some.mT)  # q = Q k
        value, where = best_translation(target.conj() * values, points, size=size)
        score.append(value / (2.0 * len(points)))
        shift.append((some @ where[..., None])[..., 0])
    return ranked(rotations, torch.cat(shift), torch.cat(score))


def best_translation(
    cross: Complex[Tensor, "k p"], points: Int[Tensor, "p 3"], *, size: int
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k 3"]]:
    """Largest value over d of the sum over whole k of cross(k) exp(2 pi i k.d), and that d, in box edges.

    `points` hold one of each pair k and -k; the other has the conjugate product. d lies on a grid of `size`.
    """
    index = points % size
    half = size // 2 + 1
    grid = cross.new_zeros(len(cross), size * size * half)
    grid[:, (index[:, 2] * size + index[:, 1]) * half + index[:, 0]] = cross
    # on the plane kx = 0 both of each pair must be written out
    plane = points[:, 0] == 0
    partner = (-index[plane]) % size
    grid[:, (partner[:, 2] * size + partner[:, 1]) * half] = cross[:, plane].conj()
    sums = torch.fft.irfftn(grid.reshape(-1, size, size, half), s=(size, size, size), norm="forward")
    value, where = sums.reshape(len(cross), -1).max(1)
    xyz = torch.stack([where % size, where // size % size, where // size**2], -1).to(value.dtype)
    return value, (xyz - size * (xyz >= size / 2)) / size


def ranked(rotation: Tensor, shift: Tensor, score: Tensor) -> Candidates:
    """Candidates, best first."""
    order = score.argsort(descending=True)
    return Candidates(rotation[order], shift[order], score[order])


def z_score(scores: Float[Tensor, "n"], best: float) -> float:
    """Deviations of `best` above the largest cluster of the scores of all rotations (as in VESPER).

    Sorted scores part where two neighbours are further apart than a fifth of the range, so that a few right
    rotations do not count as background. Scores of one pair of maps grow with their size; z compares pairs.

    >>> round(z_score(torch.tensor([0.0, 1.0, 2.0, 10.0]), 10.0), 2)
    9.0
    """
    ordered = scores.double().sort().values
    cut = 0.2 * (ordered[-1] - ordered[0])
    ends = (torch.nonzero(ordered.diff() > cut)[:, 0] + 1).tolist()
    parts = torch.tensor_split(ordered.cpu(), ends)
    background = max(parts, key=len)
    spread = float(background.std()) if len(background) > 1 else 0.0
    return (best - float(background.mean())) / max(spread, 1e-12)


def search_rotations(
    moving: Spectrum,
    reference: Spectrum,
    *,
    centre_moving: Float[Tensor, "3"],
    centre_reference: Float[Tensor, "3"],
    kmax: int,
    keep: int,
) -> Candidates:
    """All rotations about given centres, by spherical harmonics of the shells 2 to kmax.

    Finer than `search_translations`, for maps that are nearly balls at low resolution; centres are
    fractions of the box from its origin.
    """
    degrees = min(32, max(12, 2 * kmax))
    sphere = SphereGrid.of_degree(degrees)
    radii = torch.arange(2, kmax + 1, dtype=torch.float64)
    q = (radii[:, None, None, None] * sphere.direction).to(moving.channels)

    def coefficients(spectrum: Spectrum, centre: Tensor) -> Complex[Tensor, "s l m"]:
        values = spectrum.value(q).to(torch.complex128)
        values = values * torch.exp(2j * math.pi * (q.double() @ centre.double()))
        flm = sphere.analyse(values)
        flm[:, 0] = 0  # degree 0 is blind to rotation
        return flm / flm.abs().square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-30)

    f, g = coefficients(moving, centre_moving), coefficients(reference, centre_reference)
    weight = radii[:, None, None].sqrt()
    grid = correlate_over_rotations(f * weight, g * weight)[:, : degrees + 1]
    grid = grid / float(radii.sum())
    size = 2 * degrees
    peak = torch.ones_like(grid, dtype=torch.bool)
    for axis in range(3):
        for step in (1, -1):
            peak &= grid >= grid.roll(step, axis)
    where = torch.nonzero(peak)
    score = grid[peak]
    top = score.argsort(descending=True)[:keep]
    inverse = rotations_at(where[top].double(), size)  # R f(x) = f(R^-1 x): the map's rotation is the inverse
    rotation = inverse.mT.to(moving.channels)
    shift = centre_moving - (rotation @ centre_reference.to(rotation)[:, None])[..., 0]
    return Candidates(rotation, shift.to(rotation), score[top].to(rotation))
