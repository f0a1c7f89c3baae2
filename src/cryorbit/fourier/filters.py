"""Soft edges: masks in real space and radial filters in Fourier space."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid


def cosine_edge(radius: Float[Tensor, "..."], *, inner: float, outer: float) -> Float[Tensor, "..."]:
    """1 up to `inner`, 0 from `outer` on, half a cosine between; a step at `inner` when both are equal.

    >>> cosine_edge(torch.tensor([0.0, 2.0, 4.0]), inner=2.0, outer=4.0).tolist()
    [1.0, 1.0, 0.0]
    """
    if outer < inner:
        raise BadInput(f"cosine_edge: outer radius {outer} is smaller than inner radius {inner}.")
    if outer == inner:
        return (radius <= inner).to(radius.dtype)
    t = ((radius - inner) / (outer - inner)).clamp(0.0, 1.0)
    return 0.5 * (1 + torch.cos(torch.pi * t))


def soft_mask(
    n: int,
    *,
    ndim: int,
    radius_px: float,
    edge_px: float = 3.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """1 within `radius_px` of index N // 2, falling to 0 over the next `edge_px`; shape (n,) * ndim."""
    radius = radius_grid(n, ndim=ndim, layout="centred", device=device, dtype=dtype)
    return cosine_edge(radius, inner=radius_px, outer=radius_px + edge_px)


def soft_disc_mask(
    n: int,
    *,
    radius_px: float,
    edge_px: float = 3.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n n"]:
    """`soft_mask` for images."""
    return soft_mask(n, ndim=2, radius_px=radius_px, edge_px=edge_px, device=device, dtype=dtype)


def soft_sphere_mask(
    n: int,
    *,
    radius_px: float,
    edge_px: float = 3.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n n n"]:
    """`soft_mask` for maps: a sphere, not a cylinder."""
    return soft_mask(n, ndim=3, radius_px=radius_px, edge_px=edge_px, device=device, dtype=dtype)


def low_pass(
    x: Float[Tensor, "..."], *, resolution_A: float, pixel_size_A: float, ndim: int, edge_shells: float = 2.0
) -> Float[Tensor, "..."]:
    """Remove what is finer than `resolution_A`; the cosine edge of `edge_shells` is centred on it."""
    return _filter(x, _pass_band(x, resolution_A, pixel_size_A, ndim, edge_shells), ndim)


def high_pass(
    x: Float[Tensor, "..."], *, resolution_A: float, pixel_size_A: float, ndim: int, edge_shells: float = 2.0
) -> Float[Tensor, "..."]:
    """Remove what is coarser than `resolution_A`: x minus its `low_pass`."""
    return _filter(x, 1 - _pass_band(x, resolution_A, pixel_size_A, ndim, edge_shells), ndim)


def apply_b_factor(
    x: Float[Tensor, "..."], *, b_factor_A2: float, pixel_size_A: float, ndim: int
) -> Float[Tensor, "..."]:
    """Multiply the transform by exp(-B s^2 / 4): positive B blurs, negative B sharpens."""
    n = x.shape[-1]
    s = radius_grid(n, ndim=ndim, device=x.device, dtype=x.dtype) / (n * pixel_size_A)
    return _filter(x, torch.exp(-0.25 * b_factor_A2 * s * s), ndim)


def _pass_band(x: Tensor, resolution_A: float, pixel_size_A: float, ndim: int, edge_shells: float) -> Tensor:
    if not resolution_A > 0:
        raise BadInput(f"A filter at {resolution_A} A makes no sense. Give a positive resolution.")
    n = x.shape[-1]
    radius = radius_grid(n, ndim=ndim, device=x.device, dtype=x.dtype)
    cut = n * pixel_size_A / resolution_A
    return cosine_edge(radius, inner=max(cut - edge_shells / 2, 0.0), outer=cut + edge_shells / 2)


def _filter(x: Tensor, transfer: Tensor, ndim: int) -> Tensor:
    """Multiply the transform by a real even function in the half layout."""
    dims = tuple(range(-ndim, 0))
    return torch.fft.irfftn(torch.fft.rfftn(x, dim=dims) * transfer, s=x.shape[-ndim:], dim=dims)
