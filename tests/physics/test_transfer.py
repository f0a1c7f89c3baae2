from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryorbit.data import CTF
from cryorbit.physics.transfer import (
    ctf_image,
    ctf_phase,
    ctf_values,
    electron_wavelength_A,
    half_plane_frequency_per_A,
    odd_phase,
)
from physics_models import varied_ctf

PRINTED = 1.5e-6  # the published values have six digits


def double(ctf: CTF) -> CTF:
    return CTF(**{k: v.double() for k, v in vars(ctf).items() if v is not None})


def grid() -> Tensor:
    return half_plane_frequency_per_A(33, pixel_size_A=1.5, dtype=torch.float64)


@pytest.mark.parametrize(("voltage_kV", "wavelength_A"), [(300.0, 0.019688), (200.0, 0.025079)])
def test_wavelength(voltage_kV: float, wavelength_A: float):
    """300 kV electrons have 0.0197 A, 200 kV electrons 0.0251 A."""
    assert abs(electron_wavelength_A(torch.tensor(voltage_kV)).item() - wavelength_A) < PRINTED


def test_ctf_takes_the_published_values():
    """300 kV, Cs 2.7 mm, w 0.1, defocus 15000 A: the values agreed with other programs; CTF(0) = +w."""
    ctf = double(CTF.uniform(1, defocus_A=15000.0))
    s = torch.tensor([0.0, 0.02, 0.05, 0.1, 0.2], dtype=torch.float64)
    expected = torch.tensor([[0.1, 0.453972, 0.662428, 0.079321, -0.844959]], dtype=torch.float64)
    for frequency in (torch.stack((s, 0 * s), 1), torch.stack((0 * s, -s), 1)):
        torch.testing.assert_close(ctf_values(ctf, frequency), expected, rtol=0, atol=PRINTED)


def test_astigmatism_angle_is_measured_from_x_to_the_u_axis():
    """Along the astigmatism angle the CTF is that of defocus U, at right angles that of defocus V."""
    angle = math.radians(30.0)
    ctf = replace(
        CTF.uniform(1, defocus_A=20000.0),
        defocus_v_A=torch.tensor([15000.0]),
        astigmatism_angle_deg=torch.tensor([30.0]),
    )
    along = 0.07 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    across = 0.07 * torch.tensor([[-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    plain = torch.tensor([[0.07, 0.0]], dtype=torch.float64)
    for k, defocus in ((along, 20000.0), (across, 15000.0)):
        expected = ctf_values(CTF.uniform(1, defocus_A=defocus), plain)
        torch.testing.assert_close(ctf_values(ctf, k), expected, rtol=0, atol=1e-6)


def test_envelope_and_scale_multiply():
    """B-factor and scale multiply the oscillation by scale exp(-B s^2 / 4)."""
    plain = double(CTF.uniform(1, defocus_A=15000.0))
    ctf = replace(plain, b_factor_A2=torch.tensor([80.0]), scale=torch.tensor([0.7]))
    s2 = grid().square().sum(-1)
    expected = 0.7 * torch.exp(-20.0 * s2) * ctf_values(plain, grid())
    torch.testing.assert_close(ctf_values(ctf, grid()), expected, rtol=0, atol=1e-7)


def test_quarter_turn_phase_plate_turns_sine_into_cosine():
    """With a phase shift of 90 degrees and no amplitude contrast the CTF is cos(chi), 1 at the origin."""
    ctf = double(CTF.uniform(1, defocus_A=12000.0, amplitude_contrast=0.0))
    shifted = replace(ctf, phase_shift_deg=torch.tensor([90.0], dtype=torch.float64))
    torch.testing.assert_close(
        ctf_values(shifted, grid()), torch.cos(ctf_phase(ctf, grid())), rtol=0, atol=1e-12
    )


def test_fourth_order_even_zernike_term_acts_like_spherical_aberration():
    """Term 6 of the even list, 6 s^4 - 6 s^2 + 1, with its lower orders taken away, is a change of Cs."""
    ctf = double(CTF.uniform(1, defocus_A=15000.0))
    extra_mm, wavelength = 0.4, electron_wavelength_A(torch.tensor(300.0, dtype=torch.float64)).item()
    c = 0.5 * math.pi * extra_mm * 1e7 * wavelength**3 / 6
    # Z_2^0 = 2 s^2 - 1 (term 2) and Z_0^0 = 1 (term 0): 6 s^4 = Z_4^0 + 3 Z_2^0 + 2 Z_0^0.
    terms = torch.tensor([[2 * c, 0, 3 * c, 0, 0, 0, c]], dtype=torch.float64)
    by_zernike = ctf_values(replace(ctf, even_zernike=terms), grid())
    by_cs = ctf_values(replace(ctf, cs_mm=ctf.cs_mm + extra_mm), grid())
    torch.testing.assert_close(by_zernike, by_cs, rtol=0, atol=1e-9)


def test_second_order_even_zernike_term_acts_like_astigmatism():
    """Term 3 of the even list, s^2 cos 2 phi, lowers the defocus along x and raises it along y."""
    ctf = double(CTF.uniform(1, defocus_A=15000.0))
    difference_A, wavelength = 500.0, electron_wavelength_A(torch.tensor(300.0, dtype=torch.float64)).item()
    terms = torch.zeros(1, 6, dtype=torch.float64)
    terms[0, 3] = math.pi * wavelength * difference_A
    expected = replace(ctf, defocus_u_A=ctf.defocus_u_A - 500.0, defocus_v_A=ctf.defocus_v_A + 500.0)
    by_zernike = ctf_values(replace(ctf, even_zernike=terms), grid())
    torch.testing.assert_close(by_zernike, ctf_values(expected, grid()), rtol=0, atol=1e-9)


def test_beam_tilt_is_a_cubic_phase():
    """Tilt t gives exp(i phi), phi = -2 pi Cs lambda^2 s^2 (s . t): pure coma, no shift is left over."""
    tilt = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    ctf = replace(double(CTF.uniform(1, defocus_A=15000.0)), beam_tilt_mrad=tilt)
    k = grid()
    wavelength = electron_wavelength_A(torch.tensor(300.0, dtype=torch.float64))
    phi = -2 * math.pi * 2.7e7 * wavelength**2 * k.square().sum(-1) * (k @ (1e-3 * tilt[0]))
    phase = odd_phase(ctf, k)
    assert phase is not None
    torch.testing.assert_close(phase[0], torch.polar(torch.ones_like(phi), phi), rtol=0, atol=1e-6)


def test_odd_terms_one_and_zero_are_shifts():
    """Term 1 of the odd list is linear in kx, term 0 in ky: c = -2 pi shift moves the image."""
    ctf = replace(
        CTF.uniform(1, defocus_A=15000.0),
        odd_zernike=torch.tensor([[-2 * math.pi * 3.0, -2 * math.pi * 5.0]]),
    )
    k = grid()
    phase = odd_phase(ctf, k)
    assert phase is not None
    phi = -2 * math.pi * (5.0 * k[..., 0] + 3.0 * k[..., 1])
    torch.testing.assert_close(phase[0], torch.polar(torch.ones_like(phi), phi), rtol=0, atol=1e-5)


def test_without_odd_aberrations_there_is_no_phase():
    """A CTF without beam tilt and odd terms has no odd phase at all."""
    assert odd_phase(CTF.uniform(2, defocus_A=15000.0), grid()) is None


def test_magnification_moves_frequencies():
    """With magnification M the CTF at k is the plain CTF at M k."""
    ctf = CTF.uniform(1, defocus_A=15000.0)
    m = torch.tensor([[[1.02, 0.01], [0.01, 0.99]]])
    moved = grid() @ m[0].double().T
    torch.testing.assert_close(
        ctf_values(replace(ctf, magnification=m), grid()), ctf_values(ctf, moved), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("box", [32, 33])
def test_image_layout_is_that_of_rfft2(box: int):
    """Entry (ky, kx) of the CTF image belongs to the same coefficient as in rfft2: a cosine is multiplied by
    it.
    """
    ctf, (fy, fx) = varied_ctf(2), (-5, 3)
    y, x = torch.meshgrid(torch.arange(box), torch.arange(box), indexing="ij")
    wave = torch.cos((2 * torch.pi / box) * (fx * x + fy * y).double())
    image = ctf_image(ctf, box, pixel_size_A=2.0, dtype=torch.float64)
    filtered = torch.fft.irfft2(torch.fft.rfft2(wave) * image, s=(box, box))
    k = torch.tensor([[fx, fy]], dtype=torch.float64) / (2.0 * box)
    torch.testing.assert_close(filtered, ctf_values(ctf, k)[:, :, None] * wave, rtol=0, atol=1e-10)
