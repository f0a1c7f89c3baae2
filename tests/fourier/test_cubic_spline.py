"""Reading between pixels: exact at them, close between them, periodic, differentiable."""

import pytest
import torch

from cryorbit.fourier.cubic_spline import spline_images
from cryorbit.fourier.grid import pixel_grid
from laws import ROUND_OFF

WAVE = {0.25: 1e-5, 0.5: 1e-4, 0.9: 1e-3}
"""Largest error for a wave at this share of Nyquist, amplitude 1: a cubic spline's own, at four times as many samples."""


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("n", [11, 12])
def test_at_the_pixels_it_is_the_image(n):
    """Whatever the image, its Nyquist samples included."""
    images = draw(3, n, n)
    found = spline_images(images).read(pixel_grid(n, ndim=2, dtype=torch.float64).flatten(0, 1))
    torch.testing.assert_close(found.mT.view(3, n, n), images, rtol=0, atol=ROUND_OFF[torch.float64])


@pytest.mark.parametrize("n", [31, 32])
@pytest.mark.parametrize("share", WAVE)
def test_between_the_pixels_it_is_the_band_limited_function(n, share):
    """A plane wave with a phase, against its formula, x and y not mixed up, over the periodic edge too."""
    k = torch.tensor([round(share * n / 2), 2.0], dtype=torch.float64) / n

    def wave(points):
        return torch.cos(2 * torch.pi * points @ k + 0.3)

    image = wave(pixel_grid(n, ndim=2, dtype=torch.float64))
    points = 2 * n * torch.rand(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - n
    found = spline_images(image[None]).read(points)[:, 0]
    assert float((found - wave(points)).abs().max()) < WAVE[share]


def test_it_has_the_right_slopes():
    """In image and points, against finite differences."""
    image = draw(1, 5, 5).requires_grad_()
    points = (0.3 + 2 * draw(4, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, p: spline_images(i).read(p), (image, points))
