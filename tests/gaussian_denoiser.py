"""The best denoiser of maps whose Fourier coefficients are independent and normal: stands for a trained prior in tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DIMS = (-3, -2, -1)


def filtered(v: Tensor, transfer: Tensor) -> Tensor:
    """Maps times a transfer function on the half grid of their transforms."""
    return torch.fft.irfftn(torch.fft.rfftn(v, dim=DIMS) * transfer, s=v.shape[-3:], dim=DIMS)


@dataclass(frozen=True, eq=False)
class GaussianDenoiser:
    """D for maps whose Fourier coefficients (unitary transform) have variance `power`: p / (p + s^2)."""

    power: Tensor

    @property
    def sigma_data(self) -> float:
        return float(self.power.mean()) ** 0.5

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return filtered(x, self.power / (self.power + sigma[:, None, None, None, None] ** 2))
