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
    significance
        How many standard deviations the best score is above the mean of all rotations tried.
    """

    rotation: Float[Tensor, "k 3 3"]
    shift: Float[Tensor, "k 3"]
    score: Float[Tensor, "k"]
    significance: float


def spread_rotations(n: int) -> Float[Tensor, "n 3 3"]:
    """Rotations spread evenly over SO(3): the super-Fibonacci spiral of Alexa (CVPR 2022)."""
    s = torch.arange(n, dtype=torch.float64) + 0.5
    r, big = (s / n).sqrt(), (1.0 - s / n).sqrt()
    alpha = 2.0 * math.pi * s / math.sqrt(2.0)
    beta = 2.0 * math.pi * s / 1.533751168755204288118041413
    x, y, z, w = r * alpha.sin(), r * alpha.cos(), big * beta.sin(), big * beta.cos()
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).reshape(n, 3, 3)


def shell_rms(
    values: Complex[Tensor, "p"], shell: Int[Tensor, "p"], *, shells: int
) -> Float[Tensor, "shells"]:
    """Root mean square modulus per shell; 1 where a shell is empty or silent, so that it can divide."""
    power = values.abs().double() ** 2
    total = torch.zeros(shells, dtype=torch.float64, device=values.device).index_add_(0, shell, power)
    count = torch.zeros_like(total).index_add_(0, shell, torch.ones_like(power))
    rms = (total / count.clamp_min(1.0)).sqrt()
    return torch.where(rms > 0, rms, torch.ones_like(rms))


def search_translations(moving: Spectrum, reference: Volume, *, n_rotations: int = 720) -> Candidates:
    """Every translation for each of `n_rotations` rotations, on the whitened half ball |k| <= 8."""
    points = half_ball(kmin=1.0, kmax=COARSE_KMAX, device=reference.values.device)
    shell = (points.double().norm(dim=-1) + 0.5).floor().long()
    rotations = spread_rotations(n_rotations).to(reference.values)
    target = at_grid(reference, points)
    target = target / shell_rms(target, shell, shells=COARSE_KMAX + 2)[shell].to(target.real.dtype)
    size = 4 * COARSE_KMAX
    index = points % size
    flat = (index[:, 2] * size + index[:, 1]) * (size // 2 + 1) + index[:, 0]
    best, place = [], []
    whitening = None
    for start in range(0, n_rotations, _BATCH):
        turned = points.to(rotations.dtype) @ rotations[start : start + _BATCH].mT  # q = Q k
        values = moving.sample(turned)[0]
        if whitening is None:
            whitening = shell_rms(values[0], shell, shells=COARSE_KMAX + 2)[shell].to(values.real.dtype)
        cross = (target.conj() * values / whitening).conj()
        grid = cross.new_zeros(len(values), size * size * (size // 2 + 1))
        grid[:, flat] = cross
        # half of each conjugate pair was given; on the plane kx = 0 the other half must be written out
        flat_axis = points[:, 0] == 0
        partner = (-index[flat_axis]) % size
        grid[:, (partner[:, 2] * size + partner[:, 1]) * (size // 2 + 1)] = cross[:, flat_axis].conj()
        map_ = torch.fft.irfftn(grid.reshape(-1, size, size, size // 2 + 1), s=(size, size, size))
        value, where = (map_ * size**3 / (2.0 * len(points))).reshape(len(values), -1).max(1)
        best.append(value)
        place.append(where)
    score, where = torch.cat(best), torch.cat(place)
    xyz = torch.stack([where % size, where // size % size, where // size**2], -1).to(rotations.dtype)
    shift = -(xyz - size * (xyz >= size / 2)) / size
    order = score.argsort(descending=True)
    significance = float((score.max() - score.mean()) / score.std().clamp_min(1e-12))
    # the peak was found as a displacement d of conj(G) F: exp(2 pi i q.c) must undo it, in the moving frame
    in_moving = (rotations @ shift[..., None])[..., 0]
    return Candidates(rotations[order], -in_moving[order], score[order], significance)


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
        values = spectrum.sample(q)[0].to(torch.complex128)
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
    significance = float((score.max() - grid.mean()) / grid.std().clamp_min(1e-12))
    return Candidates(rotation, shift.to(rotation), score[top].to(rotation), significance)
