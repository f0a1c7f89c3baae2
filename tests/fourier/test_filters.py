"""Laws of masks and radial filters."""

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.fourier.filters import (
    apply_b_factor,
    cosine_edge,
    high_pass,
    low_pass,
    soft_disc_mask,
    soft_sphere_mask,
)
from cryorbit.fourier.grid import pixel_grid
from cryorbit.fourier.shells import shell_sum

F64 = torch.float64


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_edge_falls_from_one_to_zero():
    """1 up to the inner radius, 0 from the outer on, one half midway; a step when they coincide."""
    r = torch.linspace(0, 10, 101, dtype=F64)
    edge = cosine_edge(r, inner=4.0, outer=6.0)
    assert (edge[r <= 4] == 1).all()
    assert (edge[r >= 6] == 0).all()
    torch.testing.assert_close(edge[50], torch.tensor(0.5, dtype=F64))
    assert (edge.diff() <= 0).all()
    assert cosine_edge(r, inner=4.0, outer=4.0).sum() == 41
    with pytest.raises(BadInput, match="smaller than inner"):
        cosine_edge(r, inner=4.0, outer=3.0)


@pytest.mark.parametrize("n", [23, 24])
def test_masks_are_round_about_the_origin(n):
    """The mask depends only on the distance from index n // 2: a sphere, not a cylinder."""
    sphere = soft_sphere_mask(n, radius_px=7.0, edge_px=3.0)
    radius = pixel_grid(n, ndim=3).norm(dim=-1)
    assert (sphere[radius <= 7] == 1).all()
    assert (sphere[radius >= 10] == 0).all()
    assert torch.equal(sphere[n // 2], soft_disc_mask(n, radius_px=7.0, edge_px=3.0))
    assert torch.equal(sphere, sphere.permute(2, 0, 1))


@pytest.mark.parametrize("n", [31, 32])
def test_low_and_high_pass_add_up(n):
    """Any x = low_pass(x) + high_pass(x); low keeps the inner shells untouched, high the outer ones."""
    x = _random(2, n, n)
    options = {"resolution_A": 2.0 * n / 8, "pixel_size_A": 2.0, "ndim": 2}  # shell 8
    low, high = low_pass(x, **options), high_pass(x, **options)
    torch.testing.assert_close(low + high, x)
    power = shell_sum(torch.fft.rfft2(low).abs() ** 2, n=n, ndim=2)
    original = shell_sum(torch.fft.rfft2(x).abs() ** 2, n=n, ndim=2)
    torch.testing.assert_close(power[:, :7], original[:, :7])
    assert (power[:, 10:] < 1e-20 * original[:, 10:]).all()


def test_b_factor_blurs_a_gaussian_into_a_wider_one():
    """exp(-B s^2 / 4) adds B / (8 pi^2) to the variance; the negative B undoes it."""
    n, pixel = 32, 2.0
    r2 = (pixel_grid(n, ndim=2, dtype=F64) ** 2).sum(-1) * pixel**2
    variance, b = 16.0, 600.0
    wider = variance + b / (8 * torch.pi**2)
    blurred = apply_b_factor(torch.exp(-0.5 * r2 / variance), b_factor_A2=b, pixel_size_A=pixel, ndim=2)
    torch.testing.assert_close(blurred, variance / wider * torch.exp(-0.5 * r2 / wider), rtol=0, atol=1e-6)
    back = apply_b_factor(blurred, b_factor_A2=-b, pixel_size_A=pixel, ndim=2)
    torch.testing.assert_close(back, torch.exp(-0.5 * r2 / variance))


def test_senseless_resolution_is_refused():
    """A filter at 0 A is named."""
    with pytest.raises(BadInput, match="0 A"):
        low_pass(torch.zeros(4, 4), resolution_A=0, pixel_size_A=1.0, ndim=2)
