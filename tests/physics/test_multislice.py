"""Laws of multislice propagation."""

import math

import pytest
import torch

from cryorbit.data import CTF
from cryorbit.errors import BadInput
from cryorbit.physics.multislice import interaction_rad_per_V_A, multislice, propagate
from cryorbit.physics.transfer import ctf_image

F64 = torch.float64
PIXEL_A = 1.5


def _potential(slices, n, *, strength=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return strength * torch.randn(slices, n, n, generator=generator, dtype=F64)


@pytest.mark.parametrize("n", [32, 33])
def test_no_electron_is_lost(n):
    """The mean of |wave|^2 is 1 after any specimen, strong or weak."""
    wave = multislice(_potential(20, n, strength=50.0), slice_thickness_A=4.0, pixel_size_A=PIXEL_A)
    assert (wave.abs() ** 2).mean().item() == pytest.approx(1.0, abs=1e-12)


def test_empty_slices_and_thin_ones():
    """Vacuum does nothing to a plane wave; steps of propagation add up."""
    wave = multislice(torch.zeros(5, 16, 16, dtype=F64), slice_thickness_A=10.0, pixel_size_A=PIXEL_A)
    torch.testing.assert_close(wave, torch.ones_like(wave))
    start = torch.polar(torch.ones(16, 16, dtype=F64), _potential(1, 16)[0])
    once = propagate(start, distance_A=70.0, pixel_size_A=PIXEL_A)
    twice = propagate(
        propagate(start, distance_A=30.0, pixel_size_A=PIXEL_A), distance_A=40.0, pixel_size_A=PIXEL_A
    )
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("n", [32, 33])
def test_a_weak_slice_is_imaged_by_the_ctf(n):
    """|wave|^2 - 1 = 2 sigma v dz through sin(pi lambda z k^2): depth is defocus; errors fall with v^2."""
    defocus, dz = 5000.0, 2.0
    ctf = ctf_image(
        CTF.uniform(1, defocus_A=defocus, cs_mm=0.0, amplitude_contrast=0.0),
        n,
        pixel_size_A=PIXEL_A,
        dtype=F64,
    )[0]
    errors = []
    for strength in (1.0, 0.1):
        v = _potential(1, n, strength=strength)
        wave = multislice(v, slice_thickness_A=dz, pixel_size_A=PIXEL_A)
        image = propagate(wave, distance_A=defocus - dz, pixel_size_A=PIXEL_A).abs() ** 2 - 1
        weak = (
            2 * interaction_rad_per_V_A(300.0) * dz * torch.fft.irfft2(torch.fft.rfft2(v[0]) * ctf, s=(n, n))
        )
        errors.append(float((image - weak).norm() / weak.norm()))
    # The CTF's parameters are float32: a relative 1e-7 of some 200 radians.
    assert errors[0] < 0.01
    assert errors[1] < 0.11 * errors[0] + 1e-4


def test_depth_in_the_specimen_is_defocus():
    """Of two weak slices apart by d, each is imaged with its own distance to the focus."""
    n, d, far = 32, 100.0, 4000.0
    v = _potential(11, n, strength=0.01)
    v[1:10] = 0.0
    wave = multislice(v, slice_thickness_A=d / 10, pixel_size_A=PIXEL_A)
    image = propagate(wave, distance_A=far, pixel_size_A=PIXEL_A).abs() ** 2 - 1
    expected = torch.zeros(n, n, dtype=F64)
    for index, travelled in ((0, d + d / 10), (10, d / 10)):
        phase = interaction_rad_per_V_A(300.0) * d / 10 * v[index]
        one = propagate(1 + 1j * phase, distance_A=far + travelled, pixel_size_A=PIXEL_A)
        expected = expected + 2 * (one - 1).real
    assert float((image - expected).norm() / expected.norm()) < 1e-3


def test_interaction_constant_and_thick_slices():
    """Published constants at three voltages, in rad / (kV A); a slice of more than a radian is refused."""
    for voltage, constant in ((100.0, 0.9244), (200.0, 0.7288), (300.0, 0.6526)):
        assert interaction_rad_per_V_A(voltage) * 1e3 == pytest.approx(constant, abs=1e-4)
    with pytest.raises(BadInput, match="thinner"):
        multislice(_potential(1, 8, strength=1e4), slice_thickness_A=math.pi, pixel_size_A=PIXEL_A)
