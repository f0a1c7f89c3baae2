"""Trilinear reading from, and adding to, the stored half of a Hermitian 3D transform: the one place that does it.

Layout: `half[z, y, x]` complex, shape (P, P, P // 2 + 1), P even, z and y centred (index P // 2 is frequency 0), x
from 0. The other half is the conjugate: V(-k) = conj V(k). Points are (x, y, z) in units of the padded lattice; every
coordinate must stay below P / 2 - 1 in size.

`gather`, `gather_with_gradient` and `scatter` take any points. Planes of images are read and added by
`physics.lattice`, which makes the points of a few planes at a time at the same `Desk` and never holds all of them.

Sums come in two layouts, each the faster one for what it serves (measured on one core, boxes 32 to 128; printed by
tests/speed/test_lattice.py). Values alone, which is what the gradient of a read is, go up to 1.25 times faster into a
complex half (`Desk.add`) than into two real planes; values with their weights go up to 1.3 times faster into three
real planes (`scatter`) than into a complex half and a real one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.errors import BadInput

BLOCK = 64
"""Points whose eight corners are touched together."""

_CHUNK = 1 << 14
"""Points read at once, so that what lies between two steps stays in the processor's cache."""


def gather(half: Complex[Tensor, "p p h"], points: Float[Tensor, "*batch 3"]) -> Complex[Tensor, "*batch"]:
    """Trilinear values of the transform at `points`.

    Has no gradient of its own: `lattice.read_points` has, and `gather_with_gradient` gives the slopes.
    """
    return _read(half, points, with_slope=False)[0].reshape(points.shape[:-1])


def gather_with_gradient(
    half: Complex[Tensor, "p p h"], points: Float[Tensor, "*batch 3"]
) -> tuple[Complex[Tensor, "*batch"], Complex[Tensor, "*batch 3"]]:
    """`gather`, and the derivative of each value along x, y and z of its point (piecewise constant kinks apart).

    The derivative lies in memory component by component, so `gradient.movedim(-1, 0)` is the fast way to walk it.
    """
    value, slope = _read(half, points, with_slope=True)
    assert slope is not None
    return value.reshape(points.shape[:-1]), slope.reshape(3, *points.shape[:-1]).movedim(0, -1)


def scatter(
    sums: Float[Tensor, "c p p h"], points: Float[Tensor, "*batch 3"], values: Float[Tensor, "c *batch"]
) -> None:
    """Add `values` to the eight lattice neighbours of each point, in place; the transpose of `gather`.

    Channels 0 and 1 are the real and imaginary part, further ones are real and even (weights). Points with x < 0 go to
    their Friedel mates. Call `complete_plane` on the complex sum and on each weight, once, after the last point.
    """
    p = _padded(tuple(sums.shape[1:]), "scatter")
    rows, planes = values.reshape(sums.shape[0], -1), sums.view(sums.shape[0], -1).unbind(0)
    for part, cells, desk in _at(points.to(sums.dtype), p):
        mine = rows[:, part] if (part.stop - part.start) % BLOCK == 0 else whole_blocks(rows[:, part])
        desk.add_real(planes, cells, [mine[0], mine[1] * cells.sign, *mine[2:]])


def complete_plane(half: Complex[Tensor, "p p h"] | Float[Tensor, "p p h"]) -> None:
    """Add to the plane x = 0 what the Friedel mates of the added points would have put there, in place.

    `half` is a complex sum, or a real and even one (weights).
    """
    plane = half[:, :, 0]
    plane += plane.flip(0, 1).roll((1, 1), (0, 1)).conj().clone()


class Cells(NamedTuple):
    """Where points fall: flat index of the cell, x, y, z within it, Friedel sign.

    `fraction` is (3, blocks, 1, 2 * BLOCK), each value given twice, for the real and the imaginary part.
    """

    base: Tensor
    fraction: Tensor
    sign: Tensor


class Desk:
    """Work space for `m` points of a lattice of edge `p`, handled `BLOCK` points at a time; m is in whole blocks.

    Complex values are interleaved floats. All eight corners of a block are touched before the next block, while their
    cache lines are near. Every buffer is made once and used again and again: fresh memory would cost as much as the
    arithmetic. `point` is where the caller writes the points, component by component.
    """

    def __init__(self, m: int, p: int, *, like: Tensor) -> None:
        blocks, h, device = m // BLOCK, p // 2 + 1, like.device
        kind = torch.int32 if p * p * h < 2**31 else torch.int64
        corner = [(dz * p + dy) * h + dx for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)]
        self.strides, self.one = (h, p * h), like.new_ones(())
        self.offset = (torch.tensor(corner, dtype=kind, device=device) + p // 2 * (p + 1) * h)[:, None]
        self.point, self.cell = like.new_zeros((3, m)), like.new_empty((3, m))
        self.whole = torch.empty((3, m), dtype=kind, device=device)
        self.index = torch.empty((blocks, 8, BLOCK), dtype=kind, device=device)
        self.own = like.new_empty((blocks, 1, 2 * BLOCK))
        # Axes: block, z, y, x, float. Values at corners, on edges along x, on faces, and differences.
        self.corner = like.new_empty((blocks, 2, 2, 2, 2 * BLOCK))
        self.low, self.high = self.corner.unbind(3)
        self.edge, self.edge_x = (like.new_empty((blocks, 2, 2, 2 * BLOCK)) for _ in range(2))
        self.edge_at_y, self.edge_x_at_y = self.edge.unbind(2), self.edge_x.unbind(2)
        self.face, self.face_x, self.face_y = (like.new_empty((blocks, 2, 2 * BLOCK)) for _ in range(3))
        self.face_at_z, self.face_x_at_z, self.face_y_at_z = (
            f.split(1, dim=1) for f in (self.face, self.face_x, self.face_y)
        )
        # The same for the real weights of the corners, and their products with a channel.
        self.wide = torch.empty((blocks, 8, BLOCK), dtype=torch.int64, device=device)
        self.weight, self.product = (
            like.new_empty((blocks, 2, 2, 2, BLOCK)),
            like.new_empty((blocks, 8, BLOCK)),
        )
        self.weight_face = like.new_empty((blocks, 2, BLOCK))
        self.weight_edge = like.new_empty((blocks, 2, 2, BLOCK))

    def locate(self) -> Cells:
        """Find the cell of each point; what `point` held is lost."""
        # -0 + 0 = +0: the origin is not reflected.
        sign = torch.copysign(self.one, self.point[0].add_(0.0))
        self.point *= sign
        torch.floor(self.point, out=self.cell)
        fraction = self.point.new_empty((3, *self.own.shape))
        fraction.view(3, -1, 2).copy_(self.point.sub_(self.cell)[..., None])
        x, y, z = self.whole.copy_(self.cell)
        base = z.mul_(self.strides[1]).add_(y.mul_(self.strides[0])) + x
        return Cells(base.view(-1, 1, BLOCK), fraction, sign)

    def read(self, flat: Tensor, cells: Cells, value: Tensor, slope: Tensor | None) -> None:
        """Write the values (pairs of floats), and their slopes along x, y, z of the point, shape (3, ...)."""
        fx, fy, fz = cells.fraction
        torch.add(cells.base, self.offset, out=self.index)
        torch.index_select(flat, 0, self.index.view(-1), out=torch.view_as_complex(self.corner.view(-1, 2)))
        torch.sub(self.high, self.low, out=self.edge_x)
        torch.addcmul(self.low, self.edge_x, fx[:, None], out=self.edge)
        y0, y1 = self.edge_at_y
        torch.sub(y1, y0, out=self.face_y)
        torch.addcmul(y0, self.face_y, fy, out=self.face)
        z0, z1 = self.face_at_z
        torch.lerp(z0, z1, fz, out=value.view(-1, 1, 2 * BLOCK))
        value.view(-1, 2)[:, 1].mul_(cells.sign)
        if slope is None:
            return
        dx, dy, dz = (s.view(-1, 1, 2 * BLOCK) for s in slope)
        torch.sub(z1, z0, out=dz)
        torch.lerp(self.face_y_at_z[0], self.face_y_at_z[1], fz, out=dy)
        torch.lerp(self.edge_x_at_y[0], self.edge_x_at_y[1], fy, out=self.face_x)
        torch.lerp(self.face_x_at_z[0], self.face_x_at_z[1], fz, out=dx)
        # V(p) = conj V(-p): the slope is reversed, and conjugated.
        slope.view(3, -1, 2)[:, :, 0].mul_(cells.sign)

    def add(self, flat: Tensor, cells: Cells, incoming: Tensor) -> None:
        """The transpose of `read`: add the incoming values (pairs of floats) to the corners."""
        fx, fy, fz = cells.fraction
        own = self.own.copy_(incoming.reshape(self.own.shape))
        own.view(-1, 2)[:, 1].mul_(cells.sign)
        z0, z1 = self.face_at_z
        torch.mul(own, fz, out=z1)
        torch.sub(own, z1, out=z0)
        y0, y1 = self.edge_at_y
        torch.mul(self.face, fy, out=y1)
        torch.sub(self.face, y1, out=y0)
        torch.mul(self.edge, fx[:, None], out=self.high)
        torch.sub(self.edge, self.high, out=self.low)
        torch.add(cells.base, self.offset, out=self.index)
        flat.index_add_(0, self.index.view(-1), torch.view_as_complex(self.corner.view(-1, 2)))

    def add_real(self, planes: Sequence[Tensor], cells: Cells, rows: Sequence[Tensor]) -> None:
        """Add real values, one row of points per plane, to the corners; the Friedel sign is the caller's matter."""
        fx, fy, fz = cells.fraction[..., 0::2].contiguous()
        face, edge, weight = self.weight_face, self.weight_edge, self.weight
        face[:, 1:] = fz
        torch.sub(self.one, fz, out=face[:, :1])
        for split, whole, fraction in ((edge.unbind(2), face, fy), (weight.unbind(3), edge, fx[:, None])):
            torch.mul(whole, fraction, out=split[1])
            torch.sub(whole, split[1], out=split[0])
        torch.add(cells.base, self.offset, out=self.index)
        index = self.wide.copy_(self.index).view(-1)
        # One channel at a time: adding rows of three is ten times slower.
        for plane, row in zip(planes, rows, strict=True):
            torch.mul(weight.view(-1, 8, BLOCK), row.reshape(-1, 1, BLOCK), out=self.product)
            plane.scatter_add_(0, index, self.product.view(-1))


def chunk(device: torch.device) -> int:
    """Points to handle at once: what the cache holds, or enough to keep an accelerator busy."""
    return _CHUNK if device.type == "cpu" else 64 * _CHUNK


def whole_blocks(x: Tensor, block: int = BLOCK) -> Tensor:
    """Zeros behind the last axis, up to a multiple of the block."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % block))


def _at(points: Tensor, p: int) -> Iterator[tuple[slice, Cells, Desk]]:
    """A few points at a time, as many whole blocks as they need: what is read or added behind their end is void."""
    rows = points.reshape(-1, 3)
    m, step, desk = rows.shape[0], chunk(points.device), None
    for start in range(0, m, step):
        part = slice(start, min(start + step, m))
        size = -(-(part.stop - start) // BLOCK) * BLOCK
        if desk is None or desk.cell.shape[1] != size:
            desk = Desk(size, p, like=points)
        desk.point[:, : part.stop - start] = rows[part].T
        desk.point[:, part.stop - start :] = 0
        yield part, desk.locate(), desk


def _read(half: Tensor, points: Tensor, *, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Values (m,) and slopes (3, m) at all points."""
    p = _padded(tuple(half.shape), "gather")
    if torch.is_grad_enabled() and (half.requires_grad or points.requires_grad):
        raise BadInput("gather: has no gradient. Use lattice.read_points, or detach the arguments.")
    points = points.to(half.real.dtype)
    m = points.shape[:-1].numel()
    size = -(-m // BLOCK) * BLOCK
    value, slope = points.new_empty(2 * size), points.new_empty((3, 2 * size)) if with_slope else None
    flat = half.reshape(-1)
    for part, cells, desk in _at(points, p):
        floats = slice(2 * part.start, 2 * part.start + 2 * desk.cell.shape[1])
        desk.read(flat, cells, value[floats], None if slope is None else slope[:, floats])
    value = torch.view_as_complex(value.view(-1, 2))[:m]
    return value, None if slope is None else torch.view_as_complex(slope.view(3, -1, 2))[:, :m]


def _padded(shape: tuple[int, ...], name: str) -> int:
    """The lattice's even edge P, of an array that should be (P, P, P/2+1)."""
    p = shape[0]
    if shape != (p, p, p // 2 + 1) or p % 2:
        raise BadInput(f"{name}: wanted a half transform (P, P, P/2+1) with even P, got {shape}.")
    return p
