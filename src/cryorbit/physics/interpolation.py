"""Trilinear reading from, and adding to, the stored half of a Hermitian 3D transform.

Layout: `half[z, y, x]` complex, shape (P, P, P // 2 + 1), z and y centred (index P // 2 is frequency 0), x from 0.
The other half is the conjugate: V(-k) = conj V(k). Points are (x, y, z) in units of the padded lattice.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.errors import BadInput


def gather(half: Complex[Tensor, "p p h"], points: Float[Tensor, "*batch 3"]) -> Complex[Tensor, "*batch"]:
    """Trilinear values of the transform at `points`.

    Parameters
    ----------
    half
        The stored half, see the module's first lines.
    points
        (x, y, z) in lattice units; every coordinate must stay below P / 2 - 1 in size.
    """
    low, high, fx, _, _, sign = _corner_pairs(half, points)
    value = torch.lerp(low, high, fx[:, None])
    value[:, 1] *= sign
    return torch.view_as_complex(value).reshape(points.shape[:-1])


def gather_with_gradient(
    half: Complex[Tensor, "p p h"], points: Float[Tensor, "*batch 3"]
) -> tuple[Complex[Tensor, "*batch"], Complex[Tensor, "*batch 3"]]:
    """`gather`, and the derivative of each value along x, y and z of its point (piecewise constant kinks apart)."""
    rows, fx, fy, fz, sign = _corner_rows(half, points)
    z0, z1 = rows[:2], rows[2:]
    front = torch.lerp(z0[0], z0[1], fy[:, None])
    back = torch.lerp(z1[0], z1[1], fy[:, None])
    middle = torch.lerp(front, back, fz[:, None])
    along_z = back - front
    along_y = torch.lerp(z0[1] - z0[0], z1[1] - z1[0], fz[:, None])
    weight = fx[:, None]
    out = torch.stack(
        (
            torch.lerp(middle[:, :2], middle[:, 2:], weight),
            middle[:, 2:] - middle[:, :2],
            torch.lerp(along_y[:, :2], along_y[:, 2:], weight),
            torch.lerp(along_z[:, :2], along_z[:, 2:], weight),
        ),
        dim=1,
    )
    # V(p) = conj V(-p): the value is conjugated, its gradient conjugated and reversed.
    out[:, 0, 1] *= sign
    out[:, 1:, 0] *= sign[:, None]
    result = torch.view_as_complex(out)
    return result[:, 0].reshape(points.shape[:-1]), result[:, 1:].reshape(points.shape)


def scatter(
    half: Float[Tensor, "c p p h"], points: Float[Tensor, "*batch 3"], values: Float[Tensor, "c *batch"]
) -> None:
    """Add `values` to the eight lattice neighbours of each point, in place; the transpose of `gather`.

    Channels 0 and 1 are the real and imaginary part, further ones are real and even (weights). Points with x < 0 go to
    their Friedel mates. Call `complete_plane` once after the last point.
    """
    c, p, _, h = half.shape
    base, fx, fy, fz, sign = _cells(p, points.reshape(-1, 3))
    rows = [v * sign if i == 1 else v for i, v in enumerate(values.reshape(c, -1))]
    planes = half.view(c, -1)
    for dz in (0, 1):
        wz = fz if dz else 1 - fz
        for dy in (0, 1):
            near = wz * (fy if dy else 1 - fy)
            far = near * fx
            near = near - far
            index = base + (dz * p + dy) * h
            # One channel at a time: adding rows of three is ten times slower.
            for plane, row in zip(planes, rows, strict=True):
                plane.scatter_add_(0, index, row * near)
            index += 1
            for plane, row in zip(planes, rows, strict=True):
                plane.scatter_add_(0, index, row * far)


def complete_plane(half: Float[Tensor, "c p p h"]) -> None:
    """Add to the plane x = 0 what the Friedel mates of the scattered points would have put there, in place."""
    plane = half[:, :, :, 0]
    mate = plane.flip(1, 2).roll((1, 1), (1, 2)).clone()
    mate[1] *= -1
    plane += mate


def _cells(p: int, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Flat index of the lower corner, the three fractions, and -1 where the Friedel mate was taken."""
    sign = torch.where(points[:, 0] < 0, -1.0, 1.0).to(points.dtype)
    moved = points * sign[:, None]
    floor = moved.floor()
    fx, fy, fz = (moved - floor).unbind(1)
    cell = floor.to(torch.int64)
    base = ((cell[:, 2] + p // 2) * p + (cell[:, 1] + p // 2)) * (p // 2 + 1) + cell[:, 0]
    return base, fx, fy, fz, sign


def _corner_rows(half: Tensor, points: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
    """The four (z, y) corner rows; each holds the pair of x neighbours, so one read serves two corners."""
    p, h = half.shape[0], half.shape[2]
    if half.shape[1] != p or h != p // 2 + 1 or p % 2:
        raise BadInput(f"gather: wanted a half transform (P, P, P/2+1) with even P, got {tuple(half.shape)}.")
    base, fx, fy, fz, sign = _cells(p, points.reshape(-1, 3))
    flat = torch.view_as_real(half).view(-1, 2)
    pairs = torch.as_strided(flat, (flat.shape[0] - 1, 4), (2, 1))
    rows = [pairs.index_select(0, base + (dz * p + dy) * h) for dz in (0, 1) for dy in (0, 1)]
    return rows, fx, fy, fz, sign


def _corner_pairs(half: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, fx, fy, fz, sign = _corner_rows(half, points)
    weight = fy[:, None]
    middle = torch.lerp(
        torch.lerp(rows[0], rows[1], weight), torch.lerp(rows[2], rows[3], weight), fz[:, None]
    )
    return middle[:, :2], middle[:, 2:], fx, fy, fz, sign
