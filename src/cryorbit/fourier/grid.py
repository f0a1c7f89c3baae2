"""Coordinates of pixels and Fourier samples: last axis (x, y) or (x, y, z), arrays [y, x] or [z, y, x].

`layout="half"` is that of `torch.fft.rfftn` (last array axis 0 ... N // 2, Nyquist positive),
`layout="fft"` that of `torch.fft.fftn`, `layout="centred"` has zero frequency at index N // 2. In the last
two, Nyquist of an even N is negative.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.errors import BadInput

Layout = Literal["half", "fft", "centred"]


def _axes(
    n: int, ndim: int, layout: Layout, device: torch.device | str | None, dtype: torch.dtype
) -> list[Tensor]:
    """Integer frequencies along each array axis, slowest first."""
    if layout not in ("half", "fft", "centred"):
        raise BadInput(f"Fourier layout {layout!r} is not one of 'half', 'fft', 'centred'.")
    centred = torch.arange(n, device=device, dtype=dtype) - n // 2
    if layout == "centred":
        return [centred] * ndim
    fft = torch.fft.ifftshift(centred)
    last = torch.arange(n // 2 + 1, device=device, dtype=dtype) if layout == "half" else fft
    return [fft] * (ndim - 1) + [last]


def index_grid(
    n: int,
    *,
    ndim: int,
    layout: Layout = "half",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """Integer frequency (cycles per box) of every sample, shape (..., ndim), last axis (x, y[, z])."""
    axes = _axes(n, ndim, layout, device, dtype)
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)


def frequency_grid(
    n: int,
    *,
    pixel_size_A: float,
    ndim: int = 2,
    layout: Layout = "half",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """Frequency in 1/A of every Fourier sample, shape (..., ndim), last axis (x, y[, z]).

    >>> frequency_grid(4, pixel_size_A=2.0)[0, :, 0].tolist()
    [0.0, 0.125, 0.25]
    """
    return index_grid(n, ndim=ndim, layout=layout, device=device, dtype=dtype) / (n * pixel_size_A)


def radius_grid(
    n: int,
    *,
    ndim: int,
    layout: Layout = "half",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """|k| in cycles per box of every Fourier sample."""
    axes = _axes(n, ndim, layout, device, dtype)
    return torch.stack(torch.meshgrid(*[a * a for a in axes], indexing="ij")).sum(0).sqrt()


def pixel_grid(
    n: int, *, ndim: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Position in pixels from index N // 2, shape (n, ..., n, ndim), last axis (x, y[, z]).

    >>> pixel_grid(3, ndim=2)[0, 2].tolist()
    [1.0, -1.0]
    """
    return index_grid(n, ndim=ndim, layout="centred", device=device, dtype=dtype)


def shift_phase(
    shift_px: Float[Tensor, "*batch d"], *, n: int, layout: Layout = "half"
) -> Complex[Tensor, "*shape"]:
    """exp(-2 pi i k . shift / n): a factor that moves the content by +shift pixels (x, y[, z]).

    Shape (*batch, ...) with one array axis per component. Exact for content below Nyquist; the Nyquist
    samples of an even box take the mean of both signs, so that real arrays stay real.
    """
    ndim = shift_px.shape[-1]
    factors = []
    for axis, frequency in enumerate(_axes(n, ndim, layout, shift_px.device, shift_px.dtype)):
        angle = (-2 * torch.pi / n) * frequency * shift_px[..., ndim - 1 - axis, None]
        imaginary = torch.where(2 * frequency.abs() == n, torch.zeros_like(angle), torch.sin(angle))
        factor = torch.complex(torch.cos(angle), imaginary)
        factors.append(factor.unflatten(-1, [1] * axis + [-1] + [1] * (ndim - 1 - axis)))
    return math.prod(factors[1:], start=factors[0])
