"""Laws of the correlation in cones."""

from __future__ import annotations

import math

import pytest
import torch

from cryorbit.analysis.cone_fsc import ConeCorrelation, cone_axes, cone_correlation
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from half_maps import filtered, frequencies, noisy_halves, white
from laws import ROUND_OFF

PIXEL = 2.0


def missing_cone(n: int, axis: torch.Tensor, half_angle_deg: float) -> tuple[Volume, Volume]:
    """Half maps whose signal lacks all frequencies near an axis (x, y, z)."""
    k = frequencies(n).flip(-1)  # x, y, z
    near = (k @ axis).abs() > k.norm(dim=-1) * math.cos(math.radians(half_angle_deg))
    signal = filtered(white(n, 0), (~near).double())
    return noisy_halves(signal, noise=0.4, pixel_size_A=PIXEL)


@pytest.mark.parametrize("n", [47, 48])
@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.6, -0.64, 0.48)])
def test_a_missing_cone_is_found_where_it_is(n, axis):
    """The worst axis lies within a grid step of the middle of the missing cone, and resolution depends on direction."""
    direction = torch.tensor(axis, dtype=torch.float64)
    cones = cone_correlation(*missing_cone(n, direction, 35.0))
    resolution = cones.resolution_A(0.143)
    assert float((cones.worst_axis() @ direction).abs()) > math.cos(math.radians(20.0))
    assert float(resolution.max()) > 2 * float(resolution.median())
    assert float(resolution.median()) == pytest.approx(2 * PIXEL * n / (n - n % 2), rel=0.02)
    assert cones.sphericity() < 0.9
    assert cones.area_ratio() < 0.5


@pytest.mark.parametrize("n", [47, 48])
def test_an_isotropic_map_is_a_ball(n):
    """Equal noise in all directions: all cones resolve alike within their own scatter."""
    k = frequencies(n).norm(dim=-1)
    signal = filtered(white(n, 0), torch.exp(-((k / (0.3 * n)) ** 2)))
    cones = cone_correlation(*noisy_halves(signal, noise=0.3, pixel_size_A=PIXEL))
    resolution = cones.resolution_A(0.5)
    assert float(resolution.quantile(0.95) / resolution.quantile(0.05)) < 1.2
    assert cones.sphericity(0.5) > 0.97


def test_a_cone_of_ninety_degrees_is_the_whole_shell():
    """Every axis then gives the FSC itself, to round-off of single precision."""
    halves = noisy_halves(white(24, 0), noise=1.0, pixel_size_A=PIXEL)
    cones = cone_correlation(*halves, half_angle_deg=90.0)
    whole = fourier_shell_correlation(*halves).correlation
    expected = whole.expand(len(cones.axis), -1)
    torch.testing.assert_close(
        cones.correlation[:, 1:], expected[:, 1:], rtol=0, atol=ROUND_OFF[torch.float32]
    )


@pytest.mark.parametrize("n", [20, 21])
def test_sums_are_those_of_a_plain_loop(n):
    """One cone by brute force over the full transform, where it has enough coefficients to speak for itself."""
    halves = noisy_halves(white(n, 0), noise=1.0, pixel_size_A=PIXEL)
    cones = cone_correlation(*halves)
    f, g = (torch.fft.fftn(h.values) for h in halves)
    full = torch.fft.fftfreq(n, dtype=torch.float64) * n
    k = torch.stack(torch.meshgrid(full, full, full, indexing="ij"), -1).flip(-1)
    radius = k.norm(dim=-1)
    shell = (radius + 0.5).floor()
    near = (k @ cones.axis[5]).abs() >= radius * math.cos(math.radians(20.0)) - 1e-6
    for s in range(
        7, n // 2 + 1 - (n % 2 == 0)
    ):  # the half transform knows only one sign of an even box's Nyquist
        use = near & (shell == s)
        p, q = f[use], g[use]
        expected = (p * q.conj()).real.sum() / (p.abs().square().sum() * q.abs().square().sum()).sqrt()
        torch.testing.assert_close(cones.correlation[5, s], expected, rtol=0, atol=ROUND_OFF[torch.float32])


def test_axes_are_one_of_each_pair_and_even():
    """96 unit vectors, none opposite to another; the mean outer product is near a third of the identity.

    Near: HEALPix is no exact design.
    """
    axes = cone_axes()
    assert axes.shape == (96, 3)
    product = axes @ axes.T - torch.eye(96).double()
    assert float(product.abs().max()) < math.cos(math.radians(5.0))
    torch.testing.assert_close(axes.T @ axes / 96, torch.eye(3).double() / 3, rtol=0, atol=5e-3)


def test_a_ball_has_sphericity_one_and_a_needle_little():
    """Equal reach in all directions is 1 exactly; one direction ten times farther is far from it."""
    frequency = torch.arange(41).double() / 80
    axes = cone_axes()
    reach = torch.full((96,), 20)
    step = (torch.arange(41) <= reach[:, None]).double()
    assert ConeCorrelation(axes, frequency, step).sphericity() == pytest.approx(1.0, abs=1e-9)
    reach[:] = 4
    reach[10] = 40
    needle = (torch.arange(41) <= reach[:, None]).double()
    assert ConeCorrelation(axes, frequency, needle).sphericity() < 0.8


def test_other_boxes_and_angles_are_refused():
    """Boxes must agree, and a cone must have an inside."""
    first, second = noisy_halves(white(16, 0), noise=1.0, pixel_size_A=PIXEL)
    with pytest.raises(BadInput, match="half-angle"):
        cone_correlation(first, second, half_angle_deg=0.0)
    with pytest.raises(BadInput, match="boxes 16 and 15"):
        cone_correlation(first, Volume(white(15, 0), PIXEL))
