"""Sums of Gaussians on a periodic grid in plain torch, and the transpose: what the compiled kernel does, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 1 << 18
"""Pixels of patches in work at a time: what lies between two steps stays in the cache."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Gaussians projected onto a grid: value(x) = weight exp(-precision |x - c|^2), or exp(-(x - c)^T P (x - c) / 2).

    Parameters
    ----------
    centre
        Grid pixels from index 0, shape (b, n, d), axes x, y(, z); d = 2 or 3.
    weight
        Shape (b or 1, n).
    precision
        Shape (b or 1, n) isotropic, or (b or 1, n, d, d).
    reach
        Half widths of the patches, pixels, shape (b or 1, n, d): pixels c - reach <= x < c + reach are summed.
    """

    centre: Float[Tensor, "b n d"]
    weight: Float[Tensor, "bw n"]
    precision: Float[Tensor, "..."]
    reach: Float[Tensor, "br n d"]

    @property
    def images(self) -> int:
        """How many grids they are summed on."""
        return self.centre.shape[0]

    @property
    def dim(self) -> int:
        """Axes of the grid."""
        return self.centre.shape[2]

    @property
    def isotropic(self) -> bool:
        """Whether each has one precision."""
        return self.precision.ndim == 2

    def part(self, rows: slice) -> Cloud:
        """Some of the images."""
        shared = (f if f.shape[0] == 1 else f[rows] for f in (self.weight, self.precision, self.reach))
        return Cloud(self.centre[rows], *shared)


@dataclass(frozen=True, eq=False)
class _Patch:
    """Some Gaussians of one image: which, the offsets of their pixels along each axis, and where those pixels are.

    Values are products of `along` over the axes, times `value` where they are no products.
    """

    rows: slice
    offset: Float[Tensor, "m d w"]
    index: Int[Tensor, "pixels"]
    along: Float[Tensor, "m d w"]
    value: Float[Tensor, "m *w"] | None


def splat(cloud: Cloud, size: int) -> Float[Tensor, "b *grid"]:
    """The sum of the Gaussians on a periodic grid of edge `size`, shape (b, size, size) or (b, size, size, size)."""
    grid = cloud.centre.new_zeros((cloud.images, size**cloud.dim))
    for image in range(cloud.images):
        weight = _of(cloud.weight, image)
        for patch in _patches(cloud, image, size):
            scale = weight[patch.rows]
            if patch.value is None:
                value = _product(patch.along, scale)
            else:
                value = scale.reshape(-1, *(1,) * cloud.dim) * patch.value
            grid[image].index_add_(0, patch.index, value.reshape(-1))
    return grid.view(cloud.images, *(size,) * cloud.dim)


def gather(cloud: Cloud, grid: Float[Tensor, "b *grid"]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of <splat(cloud), grid>: to centre (b, n, d), weight (b, n) and precision (b, n[, d, d])."""
    b, n, d = cloud.centre.shape
    to_centre, to_weight = grid.new_empty((b, n, d)), grid.new_empty((b, n))
    to_precision = grid.new_empty((b, n) if cloud.isotropic else (b, n, d, d))
    for image in range(b):
        weight, precision = _of(cloud.weight, image), _of(cloud.precision, image)
        flat = grid[image].reshape(-1)
        for patch in _patches(cloud, image, grid.shape[-1]):
            m, _, width = patch.offset.shape
            there = flat.index_select(0, patch.index).view(m, *(width,) * d)
            if patch.value is not None:
                there = there * patch.value
            zero, first, second = _moments(there, patch.offset, patch.along)
            w, p, rows = weight[patch.rows], precision[patch.rows], patch.rows
            to_weight[image, rows] = zero
            if cloud.isotropic:
                to_centre[image, rows] = 2 * (p * w)[:, None] * first
                to_precision[image, rows] = -w * second.diagonal(dim1=-2, dim2=-1).sum(-1)
            else:
                to_centre[image, rows] = w[:, None] * (p @ first[..., None])[..., 0]
                to_precision[image, rows] = -0.5 * w[:, None, None] * second
    return to_centre, to_weight, to_precision


def _of(field: Tensor, image: int) -> Tensor:
    return field[0 if field.shape[0] == 1 else image]


def _patches(cloud: Cloud, image: int, size: int) -> Iterator[_Patch]:
    """The Gaussians of one image in chunks; one width of patch for all of a chunk."""
    centre, reach, precision = cloud.centre[image], _of(cloud.reach, image), _of(cloud.precision, image)
    width = max(1, int(torch.ceil(2 * reach.max()))) if reach.numel() else 1
    # Half the memory that must be moved, where the grid is small enough.
    whole = torch.int32 if size**cloud.dim < 1 << 31 else torch.int64
    pixel = torch.arange(width, device=centre.device, dtype=whole)
    stride = torch.tensor([size**axis for axis in range(cloud.dim)], device=centre.device, dtype=whole)
    step = max(1, _CHUNK // width**cloud.dim)
    for begin in range(0, centre.shape[0], step):
        rows = slice(begin, begin + step)
        c, p = centre[rows], precision[rows]
        start = torch.ceil(c - reach[rows])
        offset = (start - c)[..., None] + pixel.to(c)
        place = (start.to(whole)[..., None] + pixel).remainder_(size) * stride[:, None]
        index = _outer_sum(place).reshape(-1)
        if cloud.isotropic:
            yield _Patch(rows, offset, index, torch.exp(-p[:, None, None] * offset * offset), None)
        else:
            yield _Patch(rows, offset, index, torch.ones_like(offset), _values(offset, p))


def _outer_sum(parts: Tensor) -> Tensor:
    """(m, d, w) -> (m, w, ..., w): x last, as in the grid's memory."""
    total = parts[:, 0]
    for axis in range(1, parts.shape[1]):
        total = parts[:, axis].reshape(-1, parts.shape[2], *(1,) * axis) + total[:, None]
    return total


def _product(along: Tensor, scale: Tensor) -> Tensor:
    """(m, d, w) -> (m, w, ..., w), times a factor for each."""
    m, d, w = along.shape
    total = along[:, 0] * scale[:, None]
    for axis in range(1, d):
        total = along[:, axis].reshape(m, w, *(1,) * axis) * total[:, None]
    return total


def _values(offset: Tensor, precision: Tensor) -> Tensor:
    """exp(-x^T P x / 2) over the patches."""
    m, d, _ = offset.shape
    form = torch.zeros((), dtype=offset.dtype, device=offset.device)
    for a in range(d):
        for b in range(a, d):
            factor = precision[:, a, b] * (1 if a == b else 2)
            form = form + factor.reshape(m, *(1,) * d) * (_along(offset, a) * _along(offset, b))
    return torch.exp(-0.5 * form)


def _along(offset: Tensor, axis: int) -> Tensor:
    """Offsets along one axis, shaped to spread over the patch."""
    m, d, w = offset.shape
    return offset[:, axis].reshape(m, *(w if d - 1 - k == axis else 1 for k in range(d)))


def _moments(product: Tensor, offset: Tensor, along: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over each patch of the product, times each offset, times each pair; `along` is a factor along each axis."""
    m, d, w = offset.shape
    powers = torch.stack((along, along * offset, along * offset * offset), dim=2)  # m d 3 w
    if d == 2:
        table = powers[:, 1] @ product @ powers[:, 0].mT  # y power, x power
        first = torch.stack((table[:, 0, 1], table[:, 1, 0]), -1)
        xx, xy, yy = table[:, 0, 2], table[:, 1, 1], table[:, 2, 0]
        return table[:, 0, 0], first, torch.stack((xx, xy, xy, yy), -1).view(m, 2, 2)
    rows = (product.reshape(m, w * w, w) @ powers[:, 0].mT).view(m, w, w * 3)
    rows = (powers[:, 2] @ rows).view(m, 3, w, 3).transpose(1, 2).reshape(m, w, 9)
    t = (powers[:, 1] @ rows).view(m, 3, 3, 3)  # y, z, x power
    first = torch.stack((t[:, 0, 0, 1], t[:, 1, 0, 0], t[:, 0, 1, 0]), -1)
    xx, yy, zz = t[:, 0, 0, 2], t[:, 2, 0, 0], t[:, 0, 2, 0]
    xy, xz, yz = t[:, 1, 0, 1], t[:, 0, 1, 1], t[:, 1, 1, 0]
    return t[:, 0, 0, 0], first, torch.stack((xx, xy, xz, xy, yy, yz, xz, yz, zz), -1).view(m, 3, 3)
