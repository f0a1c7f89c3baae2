"""Reading planes from, and adding them to, the padded half transform: the inner loop of every projection.

Layout and arithmetic are those of `physics.interpolation`; here are the planes, and the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryorbit.physics.interpolation import BLOCK, Cells, Desk, chunk, whole_blocks


@dataclass(frozen=True, eq=False)
class HalfPlane:
    """The points of a half plane that are read: k = (kx, ky), and where each goes in the rfft2 layout."""

    kx: Float[Tensor, "m"]
    ky: Float[Tensor, "m"]
    position: Int[Tensor, "m"]
    rows: int
    columns: int


def half_plane(
    box: int,
    *,
    step: int,
    radius: float,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> HalfPlane:
    """The points of the rfft2 half plane of `box` pixels with |k| <= radius, kx and ky times `step`."""
    columns = box // 2 + 1
    ky, kx = torch.meshgrid(
        torch.fft.fftfreq(box, d=1 / box, device=device, dtype=torch.float64).round(),
        torch.arange(columns, device=device, dtype=torch.float64),
        indexing="ij",
    )
    position = torch.nonzero((kx * kx + ky * ky).reshape(-1) <= radius * radius)[:, 0]
    return HalfPlane(
        (step * kx).reshape(-1)[position].to(dtype),
        (step * ky).reshape(-1)[position].to(dtype),
        position,
        box,
        columns,
    )


def read_points(
    half: Complex[Tensor, "p p h"], rotation: Float[Tensor, "n 3 3"], points: HalfPlane
) -> Complex[Tensor, "n m"]:
    """Trilinear values of the transform at B^T (kx, ky, 0) for each rotation B and each point.

    Every rotated point must stay below p / 2 - 1 in size. Differentiable in `half` and `rotation`.
    """
    return read_plane(half, rotation, points.kx, points.ky)


def read_plane(
    half: Complex[Tensor, "p p h"],
    rotation: Float[Tensor, "n 3 3"],
    kx: Float[Tensor, "m"],
    ky: Float[Tensor, "m"],
) -> Complex[Tensor, "n m"]:
    """`read_points` at any points (kx, ky) of the plane, in lattice units."""
    return _Slices.apply(half, rotation.to(kx.dtype), kx, ky)


def add_points(
    half: Complex[Tensor, "p p h"],
    weight: Float[Tensor, "p p h"],
    rotation: Float[Tensor, "n 3 3"],
    points: HalfPlane,
    values: Complex[Tensor, "n m"],
    counts: Float[Tensor, "n m"],
) -> None:
    """The transpose of `read_points`, in place: add `values` to `half` and the real `counts` to `weight`.

    The mates of points with x < 1 are missing from the plane x = 0 until `complete_plane`.
    """
    kx, ky = whole_blocks(points.kx), whole_blocks(points.ky)
    pairs = whole_blocks(torch.view_as_real(values.resolve_conj()).flatten(1), 2 * BLOCK)
    counts = whole_blocks(counts)
    for part, cells, desk in _parts(rotation.to(kx), kx, ky, half.shape[0]):
        desk.add(half.view(-1), cells, pairs[part])
        desk.add_real((weight.view(-1),), cells, (counts[part],))


def lattice_radius(box: int, like: Float[Tensor, "..."]) -> Float[Tensor, "p p h"]:
    """|k| of each stored point of the lattice of a map of `box` voxels, in lattice units (half a Fourier pixel)."""
    axis = torch.arange(2 * box, device=like.device, dtype=like.dtype) - box
    x = torch.arange(box + 1, device=like.device, dtype=like.dtype)
    return torch.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + x**2)


class _Slices(torch.autograd.Function):
    """Trilinear reading of planes from the stored half, with the backward written out.

    Forward keeps where the points fell and, where rotations want a gradient, the slope of each value along x,
    y, z (56 bytes per point in float32), so that backward need not read the volume again. Backward adds all
    corners into one gradient buffer; automatic differentiation would make one such buffer per corner. The
    measured gain over `grid_sample` is printed by tests/speed/test_projector.py.
    """

    @staticmethod
    def forward(ctx: Any, half: Tensor, rotation: Tensor, kx: Tensor, ky: Tensor) -> Tensor:
        n, m = rotation.shape[0], kx.shape[0]
        kx, ky = whole_blocks(kx), whole_blocks(ky)
        value = kx.new_empty((n, 2 * kx.shape[0]))
        slope = kx.new_empty((3, n, 2 * kx.shape[0])) if ctx.needs_input_grad[1] else None
        flat, ctx.cells = half.reshape(-1), []
        for part, cells, desk in _parts(rotation, kx, ky, half.shape[0]):
            desk.read(flat, cells, value[part], None if slope is None else slope[:, part])
            if ctx.needs_input_grad[0]:
                ctx.cells.append((part, cells, desk))
        ctx.save_for_backward(rotation, kx, ky, slope)
        ctx.half_shape = half.shape
        return torch.view_as_complex(value.view(n, -1, 2))[:, :m]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        rotation, kx, ky, slope = ctx.saved_tensors
        gradient = whole_blocks(torch.view_as_real(grads[0].resolve_conj()).flatten(1), 2 * BLOCK)
        to_half = to_rotation = None
        if ctx.needs_input_grad[0]:
            to_half = torch.zeros(ctx.half_shape, dtype=grads[0].dtype, device=gradient.device)
            for part, cells, desk in ctx.cells:
                desk.add(to_half.view(-1), cells, gradient[part])
        if slope is not None:
            to_rotation = torch.zeros_like(rotation)
            weighted = gradient.new_empty((gradient.shape[0], 2, gradient.shape[1]))
            for row, k in enumerate((kx, ky)):
                torch.mul(gradient, k.repeat_interleave(2), out=weighted[:, row])
            to_rotation[:, :2] = weighted @ slope.permute(1, 2, 0)
        return to_half, to_rotation, None, None


def _parts(rotation: Tensor, kx: Tensor, ky: Tensor, p: int) -> Iterator[tuple[slice, Cells, Desk]]:
    """A few planes at a time, so that what lies between two steps stays in the cache: points B^T (kx, ky, 0)."""
    m = kx.shape[0]
    step = max(1, chunk(kx.device) // max(1, m))
    desk = None
    for start in range(0, rotation.shape[0], step):
        part = rotation[start : start + step]
        if desk is None or desk.cell.shape[1] != part.shape[0] * m:
            desk = Desk(part.shape[0] * m, p, like=kx)
        point = desk.point.view(3, -1, m)
        column = part[:, :2].permute(2, 0, 1)[..., None]
        torch.mul(column[:, :, 0], kx, out=point).addcmul_(column[:, :, 1], ky)
        yield slice(start, start + step), desk.locate(), desk
