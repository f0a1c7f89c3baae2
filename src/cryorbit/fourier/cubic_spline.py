"""Periodic images read between their pixels: more samples by Fourier transform, then a cubic spline through them.

A cubic spline is exact at its samples and good between them for waves far below their Nyquist frequency, so the images
are first put on `OVERSAMPLING` times as many samples per axis, which changes nothing of the functions that they are.
Waves at 0.9 of the images' own Nyquist frequency are then off by at most 0.08 %, at half of it by 0.008 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.fourier.resample import fourier_pad

OVERSAMPLING = 4


@dataclass(frozen=True, eq=False)
class SplineImages:
    """f(p) = sum_ij table[i, j] b(p_y - i) b(p_x - j) with the cubic B-spline b, periodic.

    Parameters
    ----------
    table
        Coefficients on the finer grid, one row per sample and one column per image, shape (fine * fine, c).
    box
        Edge of the images.
    """

    table: Float[Tensor, "samples c"]
    box: int

    def read(self, points_px: Float[Tensor, "m 2"]) -> Float[Tensor, "m c"]:
        """Values at points (x, y) in pixels of the images from index box // 2; differentiable in images and points."""
        fine = OVERSAMPLING * self.box
        at = points_px * OVERSAMPLING + fine // 2
        low = at.floor()
        weight = _b_spline(at - low)
        place = (low.long()[:, :, None] + torch.arange(-1, 3, device=at.device)).remainder(fine)
        index = (place[:, 1, :, None] * fine + place[:, 0, None, :]).flatten(1)
        weights = (weight[:, 1, :, None] * weight[:, 0, None, :]).flatten(1)
        return torch.nn.functional.embedding_bag(index, self.table, per_sample_weights=weights, mode="sum")


def spline_images(images: Float[Tensor, "c n n"]) -> SplineImages:
    """Make images ready to be read anywhere; differentiable in them."""
    box = images.shape[-1]
    fine = OVERSAMPLING * box
    spectrum = torch.fft.rfft2(fourier_pad(images, fine, ndim=2))
    y, x = (
        (2 + torch.cos(2 * torch.pi * k(fine, dtype=torch.float64))) / 3
        for k in (torch.fft.fftfreq, torch.fft.rfftfreq)
    )
    # The samples of a cubic B-spline are 1/6, 4/6, 1/6; their transform is divided out, so the spline meets the images.
    response = (y[:, None] * x).to(images)
    values = torch.fft.irfft2(spectrum / response, s=(fine, fine))
    return SplineImages(values.flatten(1).mT.contiguous(), box)


def _b_spline(t: Float[Tensor, "m d"]) -> Float[Tensor, "m d 4"]:
    """Weights of the samples at -1, 0, 1 and 2 for a point t of the way from 0 to 1."""
    s = 1 - t
    return torch.stack((s**3, 3 * t**3 - 6 * t**2 + 4, 3 * s**3 - 6 * s**2 + 4, t**3), dim=-1) / 6
