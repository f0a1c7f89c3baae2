"""How finely Gaussians are sampled, so that what folds back beyond Nyquist stays below a stated error.

Gaussians are drawn on a grid of m >= box pixels, widened by a common variance, transformed, cropped, and the widening
is divided out: the non-uniform FFT of Dutt and Rokhlin 1993 with the Gaussians' own widths as the larger part of the
kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.fft import next_fast_len

ALIAS = 2.5e-5
"""Root mean square of what folds back over the signal's, below Nyquist, for Gaussians at independent places."""

REACH = 4.6
"""Half width of a patch in standard deviations: what is cut off has a relative norm of 1e-5."""

_MOST_EXTRA = 0.35
"""Largest common variance, pixels of the box squared: dividing it out multiplies errors at Nyquist by 6."""

_RATIOS = (1.0, 1.125, 1.25, 1.5, 1.75, 2.0, 2.5)
_FFT_PIXEL = 12.0
"""Cost of one pixel of a transform, forward or backward, in units of one pixel of a patch in the compiled kernel."""


@dataclass(frozen=True)
class FineGrid:
    """A grid of `size` pixels, an even number, over the field of view of a box.

    Gaussians are widened by a variance of `extra_px2` fine pixels squared.
    """

    size: int
    extra_px2: float


def fine_grid(box: int, least_px: float, typical_px: float, *, count: int, dim: int) -> FineGrid:
    """The cheapest grid that keeps the aliasing error.

    Parameters
    ----------
    box
        Edge of the image or map in pixels.
    least_px, typical_px
        Smallest and root mean square standard deviation, pixels of the box.
    count
        Number of Gaussians.
    dim
        2 for images, 3 for maps.
    """
    # Steps of 1 %, so that widths that are being fitted do not ask for a new plan each time.
    return _fine_grid(box, _floor(least_px), _floor(typical_px), _floor(float(count)), dim)


def _floor(value: float) -> float:
    return math.exp(math.floor(math.log(max(value, 1e-3)) * 100) / 100)


@lru_cache(maxsize=256)
def _fine_grid(box: int, least: float, typical: float, count: float, dim: int) -> FineGrid:
    best = (math.inf, FineGrid(box + box % 2, 0.0))
    for wanted in _RATIOS:
        least_size = math.ceil(box * wanted / 2)
        size = 2 * (least_size if wanted == 1.0 else int(next_fast_len(least_size, True) or least_size))
        ratio = size / box
        extra = _least_extra(least, ratio, dim)
        if extra is None:
            continue
        width = math.ceil(2 * REACH * ratio * math.sqrt(typical**2 + extra))
        # The kernel works on rows of whole vectors of 8.
        cost = count * width ** (dim - 1) * 8 * math.ceil(width / 8) + _FFT_PIXEL * size**dim
        if cost < best[0]:
            best = (cost, FineGrid(size, extra * ratio**2))
    return best[1]


def _least_extra(sigma: float, ratio: float, dim: int) -> float | None:
    """Smallest common variance (pixels of the box, squared) that keeps the error; None if none does."""
    if _alias(sigma, 0.0, ratio, dim) <= ALIAS:
        return 0.0
    low, high = 0.0, _MOST_EXTRA
    if _alias(sigma, high, ratio, dim) > ALIAS:
        return None
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if _alias(sigma, middle, ratio, dim) <= ALIAS else (middle, high)
    return high


def _alias(sigma: float, extra: float, ratio: float, dim: int) -> float:
    """Relative root mean square error of one axis after another, Gaussians at random places."""
    k = np.linspace(0.0, 0.5, 65)
    signal = np.exp(-4 * np.pi**2 * sigma**2 * k**2)
    folded = sum(
        np.exp(-4 * np.pi**2 * ((sigma**2 + extra) * (k + shift * ratio) ** 2 - extra * k**2))
        for shift in (-2, -1, 1, 2)
    )
    return float(np.sqrt(dim * np.sum(folded) / np.sum(signal)))
