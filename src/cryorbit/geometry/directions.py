"""Nearly uniform directions at a given spacing or in a given number, and rotations in any number.

Nested grids (HEALPix, and HEALPix x in-plane angle) are in `so3_grid`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.quaternions import shoemake_quaternion
from cryorbit.geometry.rotations import quaternion_to_matrix
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.geometry.symmetry import in_asymmetric_unit, point_group

_ALEXA = 1.533751168755204288118041413
"""The positive root of x^4 = x + 4."""


def one_pixel_step_deg(radius_px: float) -> float:
    """The turn that moves a voxel at this radius by one pixel: atan(1 / radius).

    >>> round(one_pixel_step_deg(32), 4)
    1.7899
    """
    if not radius_px > 0:
        raise BadInput(f"one_pixel_step_deg: the radius must be above 0, got {radius_px}.")
    return math.degrees(math.atan(1.0 / radius_px))


def ideal_count(spacing_deg: float) -> float:
    """Directions of spacing delta if each had delta^2 of the sphere to itself: 41253 / delta^2."""
    return 4 * math.pi / math.radians(spacing_deg) ** 2


def ideal_count_so3(spacing_deg: float) -> float:
    """Rotations of spacing delta if each had delta^3 of the group's volume 8 pi^2 to itself."""
    return 8 * math.pi**2 / math.radians(spacing_deg) ** 3


def ring_directions(spacing_deg: float, *, rounding: Literal["up", "nearest"] = "up") -> Float[Tensor, "n 3"]:
    """Unit vectors on rings of equal tilt, float64, from the north pole to the south pole.

    Tilts are the multiples of 180 / round(180 / spacing); a ring has 360 sin(tilt) / spacing points, rounded up (no
    neighbours on a ring further apart than the spacing) or to the nearest, at least one; its first point is at
    azimuth 0. EMAN2's even tally and its generator count rings differently; this is the one rule here.

    >>> len(ring_directions(15.0)), len(ring_directions(15.0, rounding="nearest"))
    (188, 184)
    """
    if not 0 < spacing_deg <= 180:
        raise BadInput(
            f"ring_directions: the spacing must be above 0 and at most 180 degrees, got {spacing_deg}."
        )
    if rounding not in ("up", "nearest"):
        raise BadInput(f"ring_directions: rounding {rounding!r} is not one of 'up', 'nearest'.")
    n_rings = round(180.0 / spacing_deg)
    tilt = torch.linspace(0.0, math.pi, n_rings + 1, dtype=torch.float64)
    points = torch.rad2deg(2 * math.pi * torch.sin(tilt)) / spacing_deg
    # Where the number is whole (tilt 30, 90, 150) round-off must not add a point.
    count = torch.ceil(points - 1e-9) if rounding == "up" else torch.round(points)
    count = count.clamp_min(1).long()
    ring = torch.repeat_interleave(torch.arange(n_rings + 1), count)
    place = torch.arange(len(ring)) - (count.cumsum(0) - count)[ring]
    azimuth = 2 * math.pi * place / count[ring]
    return _on_sphere(torch.cos(tilt)[ring], azimuth)


def fibonacci_directions(n: int) -> Float[Tensor, "n 3"]:
    """Unit vectors on the golden-angle spiral, float64: equal steps in z, azimuth steps of pi (3 - sqrt 5)."""
    _at_least_one(n)
    i = torch.arange(n, dtype=torch.float64)
    return _on_sphere(1 - (2 * i + 1) / n, math.pi * (3 - math.sqrt(5)) * i)


def saff_directions(n: int) -> Float[Tensor, "n 3"]:
    """Unit vectors on the generalised spiral of Saff and Kuijlaars, float64, from pole to pole.

    Equal steps in z; azimuth steps of 3.6 / sqrt(n (1 - z^2)). Saff and Kuijlaars 1997, Math. Intelligencer 19, 5.
    """
    _at_least_one(n)
    z = torch.linspace(1.0, -1.0, n, dtype=torch.float64) if n > 1 else torch.ones(1, dtype=torch.float64)
    step = 3.6 / torch.sqrt(n * (1 - z * z).clamp_min(1e-30))
    step[0] = step[-1] = 0.0
    return _on_sphere(z, step.cumsum(0))


def super_fibonacci(n: int, *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "n 3 3"]:
    """Rotations spread evenly over SO(3), for any n: a spiral on the sphere of quaternions (Alexa 2022, CVPR)."""
    _at_least_one(n)
    s = torch.arange(n, dtype=torch.float64) + 0.5
    uniforms = torch.stack(
        [1 - s / n, torch.remainder(s / math.sqrt(2), 1), torch.remainder(s / _ALEXA, 1)], -1
    )
    return quaternion_to_matrix(shoemake_quaternion(uniforms)).to(dtype)


def so3_grid_reduced(
    order: int, group: str | Float[Tensor, "g 3 3"], *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n 3 3"]:
    """The rotations of `so3_grid` whose viewing direction is in the asymmetric unit of a point group.

    About 1 / |G| of the grid. Every rotation A has an equivalent A g near one of them; HEALPix has not the group's
    symmetry, so at the unit's border the nearest can be up to a pixel further off than in the whole grid.
    """
    elements = point_group(group) if isinstance(group, str) else group
    grid = so3_grid(order, dtype=torch.float64)
    inside = in_asymmetric_unit(grid[:, 0, 2], elements)
    return grid[inside].flatten(0, 1).to(dtype)


def _on_sphere(z: Tensor, azimuth: Tensor) -> Tensor:
    sine = torch.sqrt((1 - z * z).clamp_min(0))
    return torch.stack([sine * torch.cos(azimuth), sine * torch.sin(azimuth), z], -1)


def _at_least_one(n: int) -> None:
    if n < 1:
        raise BadInput(f"Directions or rotations: asked for {n}. Ask for at least one.")
