"""The transform of a map as a smooth function of frequency, with its gradient: what alignment samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample

from cryorbit.data import Volume
from cryorbit.fourier.centred import fft_centred
from cryorbit.fourier.resample import box_pad, fourier_crop

PADDING = 2
"""How much finer than the box's own Fourier grid the transform is sampled before linear interpolation."""


def low_band(volume: Volume, *, kmax: int) -> Volume:
    """The map cropped in Fourier space to the smallest even box that holds all |k| <= kmax."""
    n = volume.box
    m = 2 * kmax + 2
    if m >= n:
        return volume
    small = fourier_crop(volume.values, m, ndim=3)
    return Volume(small, volume.pixel_size_A * n / m)


def half_ball(*, kmin: float, kmax: int, device: torch.device) -> Int[Tensor, "p 3"]:
    """Integer frequencies (x, y, z) with kmin <= |k| <= kmax, one of each pair k and -k."""
    k = torch.arange(-kmax, kmax + 1, device=device)
    x, y, z = torch.meshgrid(torch.arange(kmax + 1, device=device), k, k, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    radius = points.double().norm(dim=-1)
    upper = (points[:, 0] > 0) | (points[:, 1] > 0) | ((points[:, 1] == 0) & (points[:, 2] > 0))
    return points[(radius >= kmin) & (radius <= kmax + 1e-9) & upper]


def at_grid(volume: Volume, points: Int[Tensor, "p 3"]) -> Complex[Tensor, "p"]:
    """The transform at whole frequencies of the box, exactly."""
    spectrum = fft_centred(volume.values, (0, 1, 2))
    index = points + volume.box // 2
    return spectrum[index[:, 2], index[:, 1], index[:, 0]]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """F(q) of a map at any frequency q, in units of 1 / (box edge), trilinear on a padded grid.

    Parameters
    ----------
    channels
        Shape (1, c, m, m, m): real and imaginary part of F and, with gradient, of dF/dq (x, y, z); or of several
        functions.
    box
        Edge n of the map; frequency k of the map is index m // 2 + 2 k.
    """

    channels: Float[Tensor, "1 c m m m"]
    box: int

    @classmethod
    def of(cls, volume: Volume, *, gradient: bool = False) -> Spectrum:
        """Prepare a map; sinc^2 of the interpolation is divided out beforehand."""
        n = volume.box
        x = (torch.arange(n, device=volume.values.device) - n // 2).to(volume.values)
        values = volume.values
        parts = [values]
        if gradient:
            parts += [values * x, values * x[:, None], values * x[:, None, None]]
        spectrum = cls.of_fields(torch.stack(parts))
        if gradient:  # dF/dq = -2 pi i / n * transform of x V(x); (re, im) times -i is (im, -re)
            real, imag = spectrum.channels[0, 2::2].clone(), spectrum.channels[0, 3::2]
            spectrum.channels[0, 2::2], spectrum.channels[0, 3::2] = imag, -real
            spectrum.channels[0, 2:] *= 2.0 * math.pi / n
        return spectrum

    @classmethod
    def of_fields(cls, fields: Float[Tensor, "c n n n"]) -> Spectrum:
        """Prepare several functions on one grid, one pair of channels each."""
        n = fields.shape[-1]
        m = PADDING * n
        x = (torch.arange(n, device=fields.device) - n // 2).to(fields)
        envelope = torch.sinc(x / m) ** 2
        channels = fields.new_empty(1, 2 * len(fields), m, m, m)
        for i, part in enumerate(fields):
            part = part / (envelope[:, None, None] * envelope[:, None] * envelope)
            spectrum = fft_centred(box_pad(part, m, ndim=3), (0, 1, 2))
            channels[0, 2 * i], channels[0, 2 * i + 1] = spectrum.real, spectrum.imag
        return cls(channels, n)

    def sample(self, q: Float[Tensor, "*batch 3"]) -> Complex[Tensor, "c *batch"]:
        """F, and its gradient if prepared, at frequencies q (x, y, z); zero beyond the grid."""
        return _sampled(self.channels, q)

    def value(self, q: Float[Tensor, "*batch 3"]) -> Complex[Tensor, "*batch"]:
        """F alone at frequencies q, whether or not the gradient was prepared."""
        return _sampled(self.channels[:, :2], q)[0]


def _sampled(channels: Tensor, q: Tensor) -> Tensor:
    m = channels.shape[-1]
    index = q * PADDING + m // 2
    grid = (2.0 * index / (m - 1) - 1.0).reshape(1, 1, 1, -1, 3).to(channels.dtype)
    values = grid_sample(channels, grid, mode="bilinear", align_corners=True)[0, :, 0, 0]
    return torch.complex(values[0::2], values[1::2]).reshape(-1, *q.shape[:-1])
