from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cryorbit.data import MemoryImages, ParticleStack
from cryorbit.errors import BadInput
from cryorbit.fourier.resample import box_crop, fourier_resample
from cryorbit.inference.field_of_view import FramedImages, _interpolation, framed
from laws import ROUND_OFF

PIXEL_A = 4.0
KERNEL_SUM = 20
"""Round-off of a sum over a row of pixels, in units of that of one operation."""
SAMPLED = 0.1
"""Relative, of a variance: its standard error over the 2.4e4 edge pixels of 200 images is 0.01, more for what a larger frame
repeats of them."""
TWIN = 1e-12
"""Of kernels of up to 60 cosines of up to 100 radians each, in float64."""


def _stack(box, *, n=5, pixel_A=PIXEL_A, images=None):
    g = torch.Generator().manual_seed(0)
    images = torch.randn(n, box, box, generator=g) if images is None else images
    return ParticleStack(images=MemoryImages(images), pixel_size_A=pixel_A, ids=np.arange(len(images)))


def _framed(stack, field_A, *, diameter_A=50.0, coarsest_A=100.0):
    return framed(stack, field_of_view_A=field_A, particle_diameter_A=diameter_A, coarsest_pixel_A=coarsest_A)


def test_the_same_field_of_view_is_left_alone():
    """Nothing is resampled that need not be."""
    stack = _stack(32)
    assert _framed(stack, 32 * PIXEL_A) is stack


@pytest.mark.parametrize("box", [40, 41])
def test_a_larger_box_is_cropped_about_its_centre(box):
    """Where whole pixels do it, the frame is the middle of the image."""
    stack = _stack(box)
    found = _framed(stack, 32 * PIXEL_A).images[torch.arange(5)]
    expected = box_crop(stack.images[torch.arange(5)], 32, ndim=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=KERNEL_SUM * ROUND_OFF[torch.float32])


@pytest.mark.parametrize("box", [40, 41])
def test_a_particle_keeps_its_place_in_space(box):
    """A Gaussian at a given place is that Gaussian at that place in the frame, whatever the pixel size there.

    It is 2.5 pixels wide and six widths from the edge: in float32 it is band-limited and ends inside the image.
    """
    place, width = torch.tensor([9.0, -14.0]), 10.0

    def image(n, pixel_A):
        x = (torch.arange(n) - n // 2) * pixel_A
        return torch.exp(-0.5 * ((x - place[0]) ** 2 + (x[:, None] - place[1]) ** 2) / width**2)

    stack = _stack(box, images=image(box, PIXEL_A)[None])
    new = _framed(stack, 121.0)
    assert abs(new.box * new.pixel_size_A - 121.0) < 1e-9
    expected = image(new.box, new.pixel_size_A)
    torch.testing.assert_close(
        new.images[slice(0, 1)][0], expected, rtol=0, atol=KERNEL_SUM * ROUND_OFF[torch.float32]
    )


@pytest.mark.parametrize("field_A", [100.0, 121.0, 170.0])
def test_white_noise_stays_white_noise_of_its_power(field_A):
    """Its variance per pixel is kept to what sampling 200 images allows, at the edge of a larger frame as well."""
    stack = _stack(40, images=torch.randn(200, 40, 40, generator=torch.Generator().manual_seed(1)))
    new = _framed(stack, field_A)
    images = new.images[torch.arange(200)]
    ratio = new.pixel_size_A / PIXEL_A
    expected = min(1.0, 1 / ratio**2)
    edge = images[:, :3].var()
    for variance in (images.var(), edge):
        assert abs(float(variance) / expected - 1) < SAMPLED


def test_what_cannot_be_framed_is_refused_with_the_remedy():
    """Pixels too coarse, images too small for the field, and images too small for the particle."""
    with pytest.raises(BadInput, match="too coarse"):
        _framed(_stack(32), 128.0, coarsest_A=3.9)
    with pytest.raises(BadInput, match="Extract the particles in 50 px"):
        _framed(_stack(32), 200.0)
    with pytest.raises(BadInput, match="smaller than"):
        _framed(_stack(32), 135.0, diameter_A=127.0)


def test_half_the_pixels_is_a_fourier_crop():
    """Twice the pixel size over the same field: `fourier_resample`, but for the Nyquist frequency that it keeps."""
    stack = _stack(32)
    images = fourier_resample(stack.images[torch.arange(5)], 15, ndim=2)
    smooth = fourier_resample(images, 32, ndim=2)
    found = FramedImages(MemoryImages(smooth), 16, 2.0)[torch.arange(5)]
    torch.testing.assert_close(
        found, fourier_resample(smooth, 16, ndim=2), rtol=0, atol=KERNEL_SUM * ROUND_OFF[torch.float32]
    )


@pytest.mark.parametrize("old", [40, 41])
@pytest.mark.parametrize(("new", "ratio"), [(32, 1.0), (36, 1.3), (60, 0.9)])
def test_the_kernel_is_the_sum_of_waves(old, new, ratio):
    """One cosine of the distance per frequency that both grids hold, as its plain twin sums them."""
    x, j = (torch.arange(new).double() - new // 2) * ratio, torch.arange(old).double() - old // 2
    k = torch.arange(-(old // 2), (old + 1) // 2).double()
    k = k[2 * k.abs() * max(ratio, 1.0) <= old]
    twin = ((2 * math.pi / old) * (x[:, None, None] - j[:, None]) * k).cos().sum(-1) / old
    torch.testing.assert_close(_interpolation(old, new, ratio), twin, rtol=0, atol=TWIN)


def test_the_kernel_is_made_once(monkeypatch):
    """However often images are read."""
    from cryorbit.inference import field_of_view

    made, make = [], field_of_view._interpolation
    monkeypatch.setattr(field_of_view, "_interpolation", lambda *a: made.append(1) or make(*a))
    stack = _framed(_stack(37), 33.3 * PIXEL_A)
    for _ in range(3):
        stack.images[torch.arange(2)]
    assert len(made) == 1
