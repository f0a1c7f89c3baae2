"""Pairs of half maps with known answers, for the tests of what is measured on them."""

from __future__ import annotations

import torch
from torch import Tensor

from cryorbit.data import Volume


def white(n: int, seed: int) -> Tensor:
    """White Gaussian noise of unit variance, shape (n, n, n), float64."""
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frequencies(n: int) -> Tensor:
    """Integer frequency (z, y, x) of each sample of the half transform, shape (n, n, n // 2 + 1, 3)."""
    full = torch.fft.fftfreq(n, dtype=torch.float64) * n
    half = torch.arange(n // 2 + 1, dtype=torch.float64)
    return torch.stack(torch.meshgrid(full, full, half, indexing="ij"), -1)


def filtered(values: Tensor, transfer: Tensor) -> Tensor:
    """Multiply the half transform."""
    return torch.fft.irfftn(torch.fft.rfftn(values) * transfer, s=values.shape)


def radius_px(n: int) -> Tensor:
    """Distance of each voxel from index n // 2."""
    x = torch.arange(n, dtype=torch.float64) - n // 2
    return (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).sqrt()


def noisy_halves(
    signal: Tensor, *, noise: float, pixel_size_A: float, seed: int = 100
) -> tuple[Volume, Volume]:
    """The signal plus independent white noise of that standard deviation, twice."""
    first, second = (Volume(signal + noise * white(len(signal), seed + i), pixel_size_A) for i in (0, 1))
    return first, second
