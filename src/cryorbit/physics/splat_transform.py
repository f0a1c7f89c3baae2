"""From Gaussians on a fine grid to the transform of a box, and back: one differentiable step, on either backend."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Complex, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryorbit.errors import BadInput
from cryorbit.physics.splat_kernel import MOST_REACH, compiled_gather, compiled_splat, kernel_library
from cryorbit.physics.splat_torch import Cloud, gather, splat

Backend = Literal["auto", "compiled", "torch"]

_AT_ONCE = 1 << 18
"""Pixels of fine grids in work at a time, at least one image's."""


def summed_transform(
    cloud: Cloud, factor: Shaped[Tensor, "bf *plane"], *, size: int, box: int, backend: Backend
) -> Complex[Tensor, "b *plane"]:
    """The half transform of the sums on grids of edge `size`, cut down to that of a box, times `factor`.

    Differentiable in the cloud's centres, weights and precisions.

    Raises
    ------
    BadInput
        If the kernel was asked for and cannot do it.
    """
    frame = (size, box, _compiled(cloud, backend))
    return _Splat.apply(cloud.centre, cloud.weight, cloud.precision, cloud.reach, factor, frame)


class _Splat(torch.autograd.Function):
    """Sum on the fine grid, transform, crop, multiply; backward is the transpose of each step in turn.

    Nothing of the size of the patches is kept: backward makes them again, which is cheaper than reading them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        centre: Tensor,
        weight: Tensor,
        precision: Tensor,
        reach: Tensor,
        factor: Tensor,
        frame: tuple[int, int, bool],
    ) -> Tensor:
        size, box, compiled = frame
        cloud = Cloud(centre, weight, precision, reach)
        draw = compiled_splat if compiled else splat
        ctx.save_for_backward(centre, weight, precision, reach, factor)
        ctx.frame = frame
        planes = [
            _cropped(draw(cloud.part(rows), size), box) * (factor if factor.shape[0] == 1 else factor[rows])
            for rows in _groups(cloud, size)
        ]
        return torch.cat(planes)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        centre, weight, precision, reach, factor = ctx.saved_tensors
        size, _, compiled = ctx.frame
        cloud = Cloud(centre, weight, precision, reach)
        read = compiled_gather if compiled else gather
        parts = []
        for rows in _groups(cloud, size):
            own = factor if factor.shape[0] == 1 else factor[rows]
            parts.append(read(cloud.part(rows), _uncropped(grads[0][rows] * own.conj(), size)))
        found = [torch.cat(part) for part in zip(*parts, strict=True)]
        fields = (centre, weight, precision)
        summed = [g.sum_to_size(f.shape) for g, f in zip(found, fields, strict=True)]
        return *summed, None, None, None


def _groups(cloud: Cloud, size: int) -> list[slice]:
    """A few images at a time, so that their grids stay in the cache; one for each thread at least."""
    step = max(torch.get_num_threads(), _AT_ONCE // size**cloud.dim, 1)
    return [slice(start, start + step) for start in range(0, max(cloud.images, 1), step)]


def _compiled(cloud: Cloud, backend: Backend) -> bool:
    """Whether the kernel does it."""
    if backend == "torch":
        return False
    if backend not in ("auto", "compiled"):
        raise BadInput(f"splat: backend {backend!r} is not known. Choose 'auto', 'compiled' or 'torch'.")
    can = cloud.centre.device.type == "cpu" and cloud.centre.dtype in (torch.float32, torch.float64)
    holds = cloud.reach.numel() == 0 or float(cloud.reach.max()) < MOST_REACH
    if can and holds and kernel_library() is not None:
        return True
    if backend == "compiled":
        raise BadInput(
            "splat: the compiled kernel cannot do this (it needs the CPU, a C++ compiler, and Gaussians narrower than "
            "14 pixels). Choose backend 'torch' or 'auto'."
        )
    return False


def _cropped(grid: Tensor, box: int) -> Tensor:
    """The half transform of the grids, cut down to that of a box."""
    dim, size = grid.ndim - 1, grid.shape[-1]
    plane = torch.fft.rfftn(grid, dim=tuple(range(-dim, 0)))[..., : box // 2 + 1]
    low, high = (box + 1) // 2, box // 2
    for axis in range(-dim, -1):
        if size != box:
            plane = torch.cat((plane.narrow(axis, 0, low), plane.narrow(axis, size - high, high)), axis)
    return plane


def _uncropped(plane: Tensor, size: int) -> Tensor:
    """The transpose of `_cropped`: real grids of edge `size`."""
    dim, box = plane.ndim - 1, plane.shape[-2]
    low, high = (box + 1) // 2, box // 2
    for axis in range(-dim, -1):
        if size != box:
            shape = list(plane.shape)
            shape[axis] = size - box
            middle = plane.new_zeros(shape)
            plane = torch.cat((plane.narrow(axis, 0, low), middle, plane.narrow(axis, low, high)), axis)
        plane = torch.fft.ifft(plane, dim=axis, norm="forward")
    # The inverse counts every column but the first twice, the transpose counts each once. One axis at a time: column 0
    # of a gradient is not Hermitian, which transforms of several axes may take for granted.
    plane = torch.cat((plane[..., :1], 0.5 * plane[..., 1:]), -1)
    return torch.fft.irfft(plane, n=size, dim=-1, norm="forward")
