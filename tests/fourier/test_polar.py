"""Laws of ring transforms: exact Fourier values, and an image turned in its plane is a shift of the angle."""

import math

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.fourier.centred import fft_centred
from cryorbit.fourier.polar import (
    RingGrid,
    circle_to_harmonics,
    from_circle,
    harmonics_to_circle,
    image_to_rings,
    ring_kernel,
    shift_phases,
    to_circle,
)
from cryorbit.geometry.conventions import in_plane_rotation
from laws import ROUND_OFF
from physics_models import GaussianBlobs, uniform_rotations

F64 = torch.float64
BOXES = (31, 32)
BEYOND_NYQUIST = 1e-6
"""Blobs of 1.5 px fall to exp(-0.5 (1.5 pi)^2) = 1.5e-5 at Nyquist; inside the rings aliases are smaller."""


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _rings(images, grid):
    return image_to_rings(images, grid, ring_kernel(grid, dtype=F64))


def _blobs(seed=0):
    return GaussianBlobs.random(12, radius_px=7.0, sigma_px=1.5, seed=seed)


def _whole_circle(rings):
    return torch.cat((rings, rings.conj()), -1)


@pytest.mark.parametrize("box", BOXES)
def test_rings_are_the_fourier_integral(box):
    """X(k) = sum_x image(x) exp(-2 pi i k.x / box) at every ring point, x from pixel box // 2."""
    grid = RingGrid(box, 6, 20)
    images = _random(3, box, box)
    axis = torch.arange(box, dtype=F64) - box // 2
    kx, ky = grid.points(dtype=F64).unbind(-1)
    along_x = torch.exp(-2j * math.pi / box * kx[..., None] * axis)
    along_y = torch.exp(-2j * math.pi / box * ky[..., None] * axis)
    expected = torch.einsum("nyx,ray,rax->nra", images.to(along_x.dtype), along_y, along_x)
    found = _rings(images, grid)
    assert float((found - expected).abs().max()) < ROUND_OFF[F64] * box**2


@pytest.mark.parametrize("box", BOXES)
def test_rings_meet_the_grid_on_the_axes(box):
    """At angles 0 and 90 degrees whole radii are whole Fourier pixels."""
    grid = RingGrid(box, 6, 20)
    images = _random(2, box, box)
    rings, plane, c = _rings(images, grid), fft_centred(images.to(torch.complex128), dims=(-2, -1)), box // 2
    torch.testing.assert_close(rings[:, :, 0], plane[:, c, c + 1 : c + 7])
    torch.testing.assert_close(rings[:, :, 5], plane[:, c + 1 : c + 7, c])


def test_kernel_in_single_precision():
    """float32 gives the float64 values to float32 round-off of the largest one."""
    grid = RingGrid(24, 8, 40)
    images = _random(2, 24, 24)
    exact = _rings(images, grid)
    single = image_to_rings(images.float(), grid, ring_kernel(grid))
    assert single.dtype == torch.complex64
    assert float((single - exact).abs().max() / exact.abs().max()) < ROUND_OFF[torch.float32]


def test_circle_holds_all_of_the_ring():
    """from_circle undoes to_circle, and the other way round."""
    rings = torch.complex(_random(2, 5, 12), _random(2, 5, 12, seed=1))
    torch.testing.assert_close(from_circle(to_circle(rings)), rings)
    circle = _random(2, 5, 24)
    torch.testing.assert_close(to_circle(from_circle(circle)), circle)


def test_products_over_the_circle():
    """sum_t Re(X conj Y) over the whole circle is sum_t c_X c_Y."""
    x, y = (torch.complex(_random(4, 12, seed=s), _random(4, 12, seed=s + 1)) for s in (0, 2))
    over_circle = (_whole_circle(x) * _whole_circle(y).conj()).real.sum(-1)
    torch.testing.assert_close((to_circle(x) * to_circle(y)).sum(-1), over_circle)


def test_even_orders_are_the_real_part():
    """Even harmonics of c belong to Re X, odd ones to Im X."""
    rings = torch.complex(_random(3, 16), _random(3, 16, seed=1))
    harmonics = circle_to_harmonics(to_circle(rings), 15)
    real = circle_to_harmonics(to_circle(rings.real + 0j), 15)
    torch.testing.assert_close(harmonics[..., 0::2], real[..., 0::2])
    assert float(real[..., 1::2].abs().max()) < ROUND_OFF[F64] * 16


def test_harmonics_of_a_band_limited_circle():
    """harmonics_to_circle undoes circle_to_harmonics where higher orders are zero, and else projects."""
    n, m = 30, 9
    low = harmonics_to_circle(circle_to_harmonics(_random(4, n), m), n)
    torch.testing.assert_close(harmonics_to_circle(circle_to_harmonics(low, m), n), low)
    everything = _random(4, n)
    torch.testing.assert_close(harmonics_to_circle(circle_to_harmonics(everything, n // 2), n), everything)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("psi_deg", [11.0, 90.0, -137.0])
def test_turning_an_image_turns_its_harmonics(box, psi_deg):
    """A pose turned by Rz(-psi) gives c(t + psi): harmonic m times exp(i m psi)."""
    grid = RingGrid(box, 7, 96)
    psi = math.radians(psi_deg)
    rotation = uniform_rotations(2)
    turned = in_plane_rotation(torch.tensor(psi, dtype=F64)) @ rotation
    before, after = (
        circle_to_harmonics(to_circle(_rings(_blobs().images(box, r), grid)), 40) for r in (rotation, turned)
    )
    expected = before * torch.exp(1j * psi * torch.arange(41, dtype=F64))
    assert float((after - expected).abs().max() / before.abs().max()) < BEYOND_NYQUIST


@pytest.mark.parametrize("box", BOXES)
def test_shift_phases_centre_a_shifted_image(box):
    """Times the phases of a shift (whole or not), an image shifted by it has the rings of the centred one."""
    grid = RingGrid(box, 7, 48)
    blobs, shifts = _blobs(), torch.tensor([[0.0, 0.0], [3.0, -2.0], [0.37, 1.61]], dtype=F64)
    view = torch.eye(3, dtype=F64)[None]
    centred = _rings(blobs.images(box, view), grid)
    for shift, phase in zip(shifts, shift_phases(grid, shifts), strict=True):
        moved = torch.cat((shift, torch.zeros(1, dtype=F64)))
        image = GaussianBlobs(blobs.centre_px + moved, blobs.weight, 1.5).images(box, view)
        found = _rings(image, grid) * phase
        assert float((found - centred).abs().max() / centred.abs().max()) < ROUND_OFF[torch.float32]


def test_weights_are_areas():
    """The samples of a ring of radius r stand for 2 pi r Fourier pixels; points lie on their ring."""
    grid = RingGrid(40, 9, 36)
    radii = torch.arange(1, 10, dtype=F64)
    torch.testing.assert_close(grid.weights(dtype=F64) * grid.n_angles, 2 * math.pi * radii)
    torch.testing.assert_close(grid.points(dtype=F64).norm(dim=-1), radii[:, None].expand(9, 18))


@pytest.mark.parametrize(("box", "radii", "angles"), [(32, 4, 21), (32, 0, 20), (32, 16, 20), (31, 16, 20)])
def test_impossible_grids_are_refused(box, radii, angles):
    """Odd numbers of angles, no ring, and rings at or beyond Nyquist."""
    with pytest.raises(BadInput, match="RingGrid"):
        RingGrid(box, radii, angles)
