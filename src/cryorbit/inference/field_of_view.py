"""Particle images brought to another field of view: cropped, and resampled by less than a pixel over the box."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import ImageSource, ParticleStack
from cryorbit.errors import BadInput

SAME = 1e-3
"""Relative difference of two fields of view that counts as none: at the edge of the box half a thousandth of it."""
LEAST = 0.9
"""Of the wanted field of view, that images must cover; what lies beyond is filled with the opposite edge's noise."""
ROOM = 1.05
"""Of the images' field of view over the particle's diameter, at least, where images are smaller than wanted."""


@dataclass(frozen=True, eq=False)
class FramedImages:
    """Another source's images on `box` pixels of `ratio` times its pixels, about index N // 2, band-limited.

    Each axis is multiplied by the matrix of its trigonometric interpolation, which continues an image periodically: what
    a larger frame adds is the opposite edge, so that noise stays noise of the same power.
    """

    source: ImageSource
    box: int
    ratio: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Int[Tensor, "n"]) -> Float[Tensor, "n h w"]:
        matrix = _kernel(self.source.box, self.box, self.ratio)
        return matrix @ self.source[index] @ matrix.mT


@lru_cache(maxsize=8)
def _kernel(old: int, new: int, ratio: float) -> Float[Tensor, "new old"]:
    return _interpolation(old, new, ratio).float()


def _interpolation(old: int, new: int, ratio: float) -> Float[Tensor, "new old"]:
    """mean_k cos(2 pi k (ratio x - j) / old) over the frequencies k that both grids hold, float64.

    As cos cos + sin sin: two matrix products, and no array of all x, j and k.
    """
    x = (torch.arange(new, dtype=torch.float64) - new // 2) * ratio
    j = torch.arange(old, dtype=torch.float64) - old // 2
    k = torch.fft.fftfreq(old, d=1 / old, dtype=torch.float64).round()
    k = k[k.abs() * 2 * max(ratio, 1.0) <= old * (1 + 1e-9)]
    # Of an even box the one sample at Nyquist stands for both signs, whose cosines are the same.
    a, b = ((2 * math.pi / old) * at[:, None] * k for at in (x, j))
    return (a.cos() @ b.cos().mT + a.sin() @ b.sin().mT) / old


def framed(
    stack: ParticleStack, *, field_of_view_A: float, particle_diameter_A: float, coarsest_pixel_A: float
) -> ParticleStack:
    """The stack with images of exactly that field of view and nearly their own pixel size; shifts and CTF stay right.

    Raises
    ------
    BadInput
        If pixels are too coarse, or the images too small for the particle or the field of view.
    """
    own = stack.box * stack.pixel_size_A
    if stack.pixel_size_A > coarsest_pixel_A * (1 + SAME):
        raise BadInput(
            f"{stack.source}: pixels of {stack.pixel_size_A:.3g} A are too coarse for this model, which looks at "
            f"{coarsest_pixel_A:.3g} A. Extract the particles with smaller pixels, or train with a smaller --box-px."
        )
    if abs(own / field_of_view_A - 1) <= SAME:
        return stack
    if own < LEAST * field_of_view_A or (own < field_of_view_A and own < ROOM * particle_diameter_A):
        wanted = math.ceil(field_of_view_A / stack.pixel_size_A)
        raise BadInput(
            f"{stack.source}: images of {own:.0f} A ({stack.box} px of {stack.pixel_size_A:.3g} A) are smaller than the "
            f"{field_of_view_A:.0f} A that the model was trained for. Extract the particles in {wanted + wanted % 2} px."
        )
    box = 2 * round(field_of_view_A / stack.pixel_size_A / 2)
    if field_of_view_A / box > coarsest_pixel_A:
        box += 2
    pixel_A = field_of_view_A / box
    return replace(
        stack,
        images=FramedImages(stack.images, box, pixel_A / stack.pixel_size_A),
        pixel_size_A=pixel_A,
    )
