"""From Gaussians on a fine grid to the transform of a box, and back: one differentiable step, on any backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Complex, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryorbit.errors import BadInput
from cryorbit.physics.splat_kernel import compiled_gather, compiled_holds, compiled_splat
from cryorbit.physics.splat_torch import Cloud, gather, splat
from cryorbit.physics.splat_triton import triton_gather, triton_holds, triton_splat

Backend = Literal["auto", "compiled", "triton", "torch"]


@dataclass(frozen=True)
class _Kernel:
    """Who draws Gaussians on grids and reads their gradients off grids, what it can draw, and what it needs in words."""

    draw: Callable[[Cloud, int], Tensor]
    read: Callable[[Cloud, Tensor], tuple[Tensor, Tensor, Tensor]]
    holds: Callable[[Cloud], bool]
    needs: str


_KERNELS = {
    "compiled": _Kernel(
        compiled_splat,
        compiled_gather,
        compiled_holds,
        "the CPU, a C++ compiler, and Gaussians narrower than 14 pixels",
    ),
    "triton": _Kernel(
        triton_splat,
        triton_gather,
        triton_holds,
        "a CUDA device, the package triton (torch's CUDA builds bring it), and Gaussians narrower than 110 pixels",
    ),
    "torch": _Kernel(splat, gather, lambda cloud: True, "nothing"),
}
_AUTO = ("compiled", "torch")
"""Whom "auto" asks, in turn; not Triton, which was never timed against torch on a GPU (docs/decisions/0016)."""

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
        If a kernel was asked for and cannot do it.
    """
    frame = (size, box, _kernel(cloud, backend))
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
        frame: tuple[int, int, _Kernel],
    ) -> Tensor:
        size, box, kernel = frame
        cloud = Cloud(centre, weight, precision, reach)
        ctx.save_for_backward(centre, weight, precision, reach, factor)
        ctx.frame = frame
        planes = [
            _cropped(kernel.draw(cloud.part(rows), size), box)
            * (factor if factor.shape[0] == 1 else factor[rows])
            for rows in _groups(cloud, size)
        ]
        return torch.cat(planes)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        centre, weight, precision, reach, factor = ctx.saved_tensors
        size, _, kernel = ctx.frame
        cloud = Cloud(centre, weight, precision, reach)
        parts = []
        for rows in _groups(cloud, size):
            own = factor if factor.shape[0] == 1 else factor[rows]
            parts.append(kernel.read(cloud.part(rows), _uncropped(grads[0][rows] * own.conj(), size)))
        found = [torch.cat(part) for part in zip(*parts, strict=True)]
        fields = (centre, weight, precision)
        summed = [g.sum_to_size(f.shape) for g, f in zip(found, fields, strict=True)]
        return *summed, None, None, None


def _groups(cloud: Cloud, size: int) -> list[slice]:
    """A few images at a time, so that their grids stay in the cache; one for each thread at least."""
    step = max(torch.get_num_threads(), _AT_ONCE // size**cloud.dim, 1)
    return [slice(start, start + step) for start in range(0, max(cloud.images, 1), step)]


def _kernel(cloud: Cloud, backend: Backend) -> _Kernel:
    """Who does it."""
    if backend == "auto":
        return next(_KERNELS[name] for name in _AUTO if _KERNELS[name].holds(cloud))
    if backend not in _KERNELS:
        known = ", ".join(repr(name) for name in ("auto", *_KERNELS))
        raise BadInput(f"splat: backend {backend!r} is not known. Choose one of {known}.")
    kernel = _KERNELS[backend]
    if not kernel.holds(cloud):
        raise BadInput(
            f"splat: the {backend} kernel cannot do this: it needs {kernel.needs}. Choose backend 'torch' or 'auto'."
        )
    return kernel


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
