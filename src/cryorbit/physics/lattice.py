"""Reading planes from, and adding them to, the padded half transform: the inner loop of every projection.

Layout: `half[z, y, x]` complex, shape (p, p, p // 2 + 1), z and y centred (index p // 2 is frequency 0), x
from 0. The other half is the conjugate: V(-k) = conj V(k).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 64
"""Points whose eight corners are touched together."""

_CHUNK = 1 << 14
"""Points read at once, so that what lies between two steps stays in the processor's cache."""


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
    return _Slices.apply(half, rotation.to(points.kx.dtype), points.kx, points.ky)


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
    kx, ky = _whole_blocks(points.kx), _whole_blocks(points.ky)
    pairs = _whole_blocks(torch.view_as_real(values.resolve_conj()).flatten(1), 2 * _BLOCK)
    counts = _whole_blocks(counts)
    for part, place, desk in _parts(rotation.to(kx), kx, ky, half.shape[0]):
        desk.add(half.view(-1), place, pairs[part])
        desk.add_real(weight.view(-1), place, counts[part])


def complete_plane(half: Complex[Tensor, "p p h"] | Float[Tensor, "p p h"]) -> None:
    """Add to the plane x = 0 what the Friedel mates of the added points would have put there, in place."""
    plane = half[:, :, 0]
    plane += plane.flip(0, 1).roll((1, 1), (0, 1)).conj().clone()


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
        kx, ky = _whole_blocks(kx), _whole_blocks(ky)
        value = kx.new_empty((n, 2 * kx.shape[0]))
        slope = kx.new_empty((3, n, 2 * kx.shape[0])) if ctx.needs_input_grad[1] else None
        flat, ctx.places = half.reshape(-1), []
        for part, place, desk in _parts(rotation, kx, ky, half.shape[0]):
            desk.read(flat, place, value[part], None if slope is None else slope[:, part])
            if ctx.needs_input_grad[0]:
                ctx.places.append((part, place, desk))
        ctx.save_for_backward(rotation, kx, ky, slope)
        ctx.half_shape = half.shape
        return torch.view_as_complex(value.view(n, -1, 2))[:, :m]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        rotation, kx, ky, slope = ctx.saved_tensors
        gradient = _whole_blocks(torch.view_as_real(grads[0].resolve_conj()).flatten(1), 2 * _BLOCK)
        to_half = to_rotation = None
        if ctx.needs_input_grad[0]:
            to_half = torch.zeros(ctx.half_shape, dtype=grads[0].dtype, device=gradient.device)
            for part, place, desk in ctx.places:
                desk.add(to_half.view(-1), place, gradient[part])
        if slope is not None:
            to_rotation = torch.zeros_like(rotation)
            weighted = gradient.new_empty((gradient.shape[0], 2, gradient.shape[1]))
            for row, k in enumerate((kx, ky)):
                torch.mul(gradient, k.repeat_interleave(2), out=weighted[:, row])
            to_rotation[:, :2] = weighted @ slope.permute(1, 2, 0)
        return to_half, to_rotation, None, None


class _Place(NamedTuple):
    """Where the points of a few planes fall: flat index of the cell, x, y, z within it, Friedel sign.

    `fraction` is (3, blocks, 1, 2 * _BLOCK), each value given twice, for the real and the imaginary part.
    """

    base: Tensor
    fraction: Tensor
    sign: Tensor


class _Desk:
    """Work space for a few planes, handled `_BLOCK` points at a time.

    Complex values are interleaved floats. All eight corners of a block are touched before the next block,
    while their cache lines are near. Every buffer is made once and used for all planes: fresh memory would
    cost as much as the arithmetic.
    """

    def __init__(self, planes: int, kx: Tensor, ky: Tensor, p: int) -> None:
        m = planes * kx.shape[0]
        blocks, h, device = m // _BLOCK, p // 2 + 1, kx.device
        kind = torch.int32 if p * p * h < 2**31 else torch.int64
        corner = [(dz * p + dy) * h + dx for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)]
        self.kx, self.ky, self.planes = kx, ky, planes
        self.strides, self.one = (h, p * h), kx.new_ones(())
        self.offset = (torch.tensor(corner, dtype=kind, device=device) + p // 2 * (p + 1) * h)[:, None]
        self.point, self.cell = kx.new_empty((3, planes, kx.shape[0])), kx.new_empty((3, m))
        self.whole = torch.empty((3, m), dtype=kind, device=device)
        self.index = torch.empty((blocks, 8, _BLOCK), dtype=kind, device=device)
        self.own = kx.new_empty((blocks, 1, 2 * _BLOCK))
        # Axes: block, z, y, x, float. Values at corners, on edges along x, on faces, and differences.
        self.corner = kx.new_empty((blocks, 2, 2, 2, 2 * _BLOCK))
        self.low, self.high = self.corner.unbind(3)
        self.edge, self.edge_x = (kx.new_empty((blocks, 2, 2, 2 * _BLOCK)) for _ in range(2))
        self.edge_at_y, self.edge_x_at_y = self.edge.unbind(2), self.edge_x.unbind(2)
        self.face, self.face_x, self.face_y = (kx.new_empty((blocks, 2, 2 * _BLOCK)) for _ in range(3))
        self.face_at_z, self.face_x_at_z, self.face_y_at_z = (
            f.split(1, dim=1) for f in (self.face, self.face_x, self.face_y)
        )

    def locate(self, rotation: Tensor) -> _Place:
        """Find the cell of each point B^T (kx, ky, 0)."""
        column = rotation[:, :2].permute(2, 0, 1)[..., None]
        torch.mul(column[:, :, 0], self.kx, out=self.point)
        point = self.point.addcmul_(column[:, :, 1], self.ky).view(3, -1)
        # -0 + 0 = +0: the origin is not reflected.
        sign = torch.copysign(self.one, point[0].add_(0.0))
        point *= sign
        torch.floor(point, out=self.cell)
        fraction = point.new_empty((3, *self.own.shape))
        fraction.view(3, -1, 2).copy_(point.sub_(self.cell)[..., None])
        x, y, z = self.whole.copy_(self.cell)
        base = z.mul_(self.strides[1]).add_(y.mul_(self.strides[0])) + x
        return _Place(base.view(-1, 1, _BLOCK), fraction, sign)

    def read(self, flat: Tensor, place: _Place, value: Tensor, slope: Tensor | None) -> None:
        """Write the values (pairs of floats), and their slopes along x, y, z of the point, shape (3, ...)."""
        fx, fy, fz = place.fraction
        torch.add(place.base, self.offset, out=self.index)
        torch.index_select(flat, 0, self.index.view(-1), out=torch.view_as_complex(self.corner.view(-1, 2)))
        torch.sub(self.high, self.low, out=self.edge_x)
        torch.addcmul(self.low, self.edge_x, fx[:, None], out=self.edge)
        y0, y1 = self.edge_at_y
        torch.sub(y1, y0, out=self.face_y)
        torch.addcmul(y0, self.face_y, fy, out=self.face)
        z0, z1 = self.face_at_z
        torch.lerp(z0, z1, fz, out=value.view(-1, 1, 2 * _BLOCK))
        value.view(-1, 2)[:, 1].mul_(place.sign)
        if slope is None:
            return
        dx, dy, dz = (s.view(-1, 1, 2 * _BLOCK) for s in slope)
        torch.sub(z1, z0, out=dz)
        torch.lerp(self.face_y_at_z[0], self.face_y_at_z[1], fz, out=dy)
        torch.lerp(self.edge_x_at_y[0], self.edge_x_at_y[1], fy, out=self.face_x)
        torch.lerp(self.face_x_at_z[0], self.face_x_at_z[1], fz, out=dx)
        # V(p) = conj V(-p): the slope is reversed, and conjugated.
        slope.view(3, -1, 2)[:, :, 0].mul_(place.sign)

    def add(self, flat: Tensor, place: _Place, incoming: Tensor) -> None:
        """The transpose of `read`: add the incoming values (pairs of floats) to the corners."""
        fx, fy, fz = place.fraction
        own = self.own.copy_(incoming.reshape(self.own.shape))
        own.view(-1, 2)[:, 1].mul_(place.sign)
        z0, z1 = self.face_at_z
        torch.mul(own, fz, out=z1)
        torch.sub(own, z1, out=z0)
        y0, y1 = self.edge_at_y
        torch.mul(self.face, fy, out=y1)
        torch.sub(self.face, y1, out=y0)
        torch.mul(self.edge, fx[:, None], out=self.high)
        torch.sub(self.edge, self.high, out=self.low)
        torch.add(place.base, self.offset, out=self.index)
        flat.index_add_(0, self.index.view(-1), torch.view_as_complex(self.corner.view(-1, 2)))

    def add_real(self, flat: Tensor, place: _Place, incoming: Tensor) -> None:
        """Add real, even values (one float per point) to the corners: weights that count what `add` added."""
        fx, fy, fz = place.fraction[..., 0::2]
        upper = incoming.reshape(-1, 1, _BLOCK) * fz
        face = torch.cat((incoming.reshape(-1, 1, _BLOCK) - upper, upper), dim=1)
        upper = face * fy
        edge = torch.stack((face - upper, upper), dim=2)
        upper = edge * fx[:, None]
        torch.add(place.base, self.offset, out=self.index)
        flat.index_add_(0, self.index.view(-1), torch.stack((edge - upper, upper), dim=3).view(-1))


def _parts(rotation: Tensor, kx: Tensor, ky: Tensor, p: int) -> Iterator[tuple[slice, _Place, _Desk]]:
    """A few planes at a time, so that what lies between two steps stays in the cache."""
    step = max(1, (_CHUNK if rotation.device.type == "cpu" else 64 * _CHUNK) // max(1, kx.shape[0]))
    desk = _Desk(min(step, rotation.shape[0]), kx, ky, p)
    for start in range(0, rotation.shape[0], step):
        part = rotation[start : start + step]
        if part.shape[0] != desk.planes:
            desk = _Desk(part.shape[0], kx, ky, p)
        yield slice(start, start + step), desk.locate(part), desk


def _whole_blocks(x: Tensor, block: int = _BLOCK) -> Tensor:
    """Zeros behind the last axis, up to a multiple of the block."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % block))
