"""A known map on the images' grid and scale: how many times its projections are the signal in the images.

For particles seen from all sides the expected power of a coefficient of image i is, with s the scale,

    E |X_i(k)|^2 = s^2 C_i(k)^2 P(|k|) + N(|k|),        P(|k|) = mean over rotations of |V's slice|^2,

so s^2 = sum_k (T - N) C2 P / T^2 over sum_k (C2 P)^2 / T^2: least squares over coefficients, with T and C2 the means over
images of |X|^2 and C^2, and N the noise power from the pixels outside the particle. Signal that defocus spread out there
counts as noise, so s reads 2 to 4 % low (4V5A, SNR 1 and 0.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.inference.observations import Observations
from cryorbit.inference.refine import half_disk
from cryorbit.physics.lattice import read_plane
from cryorbit.physics.simulate import resample_volume

LEAST_RADIUS = 2.0
"""Fourier pixels: below, the mean of the background that was taken off each image is missing from its power."""
IMAGES = 1000
"""Images that the scale is measured on at most."""
STANDARD_ERRORS = 2.0
"""Of the power of the signal over zero, at least: else the map is refused."""


class UnusableMap(BadInput):
    """The map itself is at fault, whatever the images; who knows its file should name it."""


@dataclass(frozen=True)
class MapScale:
    """s and its standard error."""

    scale: float
    standard_error: float


def map_for_images(volume: Volume, *, box_px: int, field_of_view_A: float) -> Volume:
    """The map on `box_px` voxels over the images' field of view, the rms of its transform brought to 1.

    Raises
    ------
    UnusableMap
        If the map has no variation there, or values that are not finite.
    """
    values = volume.values.float()
    if not bool(torch.isfinite(values).all()):
        raise UnusableMap("the map has values that are not finite. Look for the step that made them.")
    spread = float(values.double().std())
    if spread <= 1e-30:
        raise UnusableMap("the map is constant: there is nothing to find poses with. Give another map.")
    voxel_A = field_of_view_A / box_px
    unit = Volume(values / spread, volume.pixel_size_A)
    fitted = resample_volume(unit, box=box_px, pixel_size_A=voxel_A).values.float()
    power = float(fitted.double().square().mean().sqrt())
    if power < 1e-6:
        raise UnusableMap(
            f"the map has next to nothing within the images' field of view of {field_of_view_A:.0f} A at "
            f"{voxel_A:.1f} A per voxel. Is its pixel size right ({volume.pixel_size_A:g} A)?"
        )
    return Volume(fitted / (power * box_px**1.5), voxel_A)


def fit_scale(
    observed: Observations,
    half: Complex[Tensor, "p p h"],
    *,
    radius: float,
    rows: Int[Tensor, "n"] | None = None,
) -> MapScale:
    """The scale of the images over the map whose transform is `half`; see the module.

    Parameters
    ----------
    half
        On a lattice twice as fine as a Fourier pixel of the images.
    radius
        Highest frequency used, Fourier pixels.
    rows
        Images to measure; up to 1000, evenly spread, unless given.

    Raises
    ------
    BadInput
        If the images hold no power that goes with the map and their CTF.
    """
    if rows is None:
        rows = torch.linspace(0, len(observed.stack) - 1, min(len(observed.stack), IMAGES)).round().long()
    points = half_disk(radius, inner=LEAST_RADIUS)
    power, squared = _mean_powers(observed, rows, points)
    model = squared * slice_power(half, points)
    noise = observed.noise_at(points.norm(dim=1), floor=0.0).double()
    information = float((model / power).square().sum())
    value = float(((power - noise) * model / power.square()).sum()) / max(information, 1e-300)
    # Neighbouring coefficients of a particle smaller than its box tell much the same.
    repeats = max((observed.box / (2 * observed.particle_radius_px)) ** 2, 1.0)
    error = math.sqrt(repeats / max(information * len(rows), 1e-300))
    if not value > STANDARD_ERRORS * error:
        raise BadInput(
            f"{observed.stack.source}: {len(rows)} images hold no signal that goes with the map and their CTF (power "
            f"{value:.3g} +- {error:.3g} times the map's). Check specimen, pixel size and CTF, or give more images."
        )
    return MapScale(math.sqrt(value), error / (2 * math.sqrt(value)))


def slice_power(half: Complex[Tensor, "p p h"], points: Float[Tensor, "p2 2"]) -> Float[Tensor, "p2"]:
    """Mean |V|^2 of the map's slices over all rotations at `points` (Fourier pixels), each shell averaged.

    Of the slices as they are read, not of the lattice's nodes: the kernel that reading blurs with is divided out of the
    stored transform, whose nodes therefore hold more power than any slice.
    """
    rotation = so3_grid(1).reshape(-1, 3, 3).float()
    kx, ky = (2 * points).unbind(1)
    power = read_plane(half, rotation, kx.contiguous(), ky.contiguous()).abs().square().double().mean(0)
    return _per_shell(power, points)


def _mean_powers(
    observed: Observations, rows: Int[Tensor, "n"], points: Float[Tensor, "p 2"]
) -> tuple[Float[Tensor, "p"], Float[Tensor, "p"]]:
    """Means over images of |X|^2 and C^2 at `points`, the first averaged over shells as well."""
    centre = observed.box // 2
    power = torch.zeros(len(points), dtype=torch.float64)
    squared = torch.zeros_like(power)
    for part in rows.split(64):
        transform = observed.transforms(part)
        values = transform[:, points[:, 1].long() + centre, points[:, 0].long()]
        power += values.abs().square().double().sum(0)
        squared += observed.ctf(part, points).square().double().sum(0)
    return _per_shell(power / len(rows), points), squared / len(rows)


def _per_shell(values: Float[Tensor, "p"], points: Float[Tensor, "p 2"]) -> Float[Tensor, "p"]:
    """Each point given the mean of its shell."""
    shell = points.norm(dim=1).round().long()
    total = torch.zeros(int(shell.max()) + 1, dtype=values.dtype).index_add_(0, shell, values)
    return (total / torch.bincount(shell).clamp_min(1))[shell]
