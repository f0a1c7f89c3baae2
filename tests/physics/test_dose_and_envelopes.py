"""Radiation damage, partial coherence and the depth of field, against published values and independent means."""

import math

import pytest
import torch

from cryorbit.data import CTF
from cryorbit.errors import BadInput
from cryorbit.physics.dose import critical_dose, dose_attenuation, dose_weights
from cryorbit.physics.envelopes import ewald_depth_limit_A, spatial_envelope, temporal_envelope
from cryorbit.physics.transfer import ctf_phase, electron_wavelength_A

F64 = torch.float64
K = torch.linspace(0.005, 0.4, 80, dtype=F64)


@pytest.mark.parametrize(("voltage", "wavelength"), [(300, 0.0196870), (200, 0.0250787), (100, 0.0370133)])
def test_published_wavelengths(voltage, wavelength):
    """h / sqrt(2 m e V (1 + e V / 2 m c^2)) from the constants of nature, and printed values to 5e-5.

    The printed ones were made with 12.2639 for h / sqrt(2 m e); ours uses RELION's 12.2643247, nature's is 12.264258.
    """
    found = electron_wavelength_A(torch.tensor(float(voltage), dtype=F64)).item()
    h, m, e, c = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
    energy = e * voltage * 1e3
    exact = 1e10 * h / math.sqrt(2 * m * energy * (1 + energy / (2 * m * c * c)))
    assert found == pytest.approx(exact, rel=1e-5)
    assert found == pytest.approx(wavelength, rel=5e-5)
    rounded = found * 12.2639 / 12.2643247
    assert rounded == pytest.approx(wavelength, abs=1.1e-7)


@pytest.mark.parametrize(("thickness", "limit"), [(300.0, 2.43), (500.0, 3.14), (1000.0, 4.44)])
def test_published_depth_limits(thickness, limit):
    """At 300 kV; there the CTF phase of the top of the particle is off by pi / 2."""
    d = ewald_depth_limit_A(thickness)
    assert d == pytest.approx(limit, abs=5e-3)
    top, middle = (CTF.uniform(1, defocus_A=10000.0 + dz, voltage_kV=300.0) for dz in (thickness / 2, 0.0))
    k = torch.tensor([[1 / d, 0.0]], dtype=F64)
    assert (ctf_phase(top, k) - ctf_phase(middle, k)).item() == pytest.approx(math.pi / 2, rel=1e-5)


@pytest.mark.parametrize(("resolution", "dose"), [(10.0, 14.1374), (4.0, 5.27344), (3.0, 4.33574)])
def test_critical_dose(resolution, dose):
    """0.245 k^-1.665 + 2.81 at 300 kV, worked out by hand at three resolutions; 0.8 of it at 200 kV."""
    k = torch.tensor(1 / resolution, dtype=F64)
    by_hand = 0.245 * math.exp(1.665 * math.log(resolution)) + 2.81
    assert by_hand == pytest.approx(dose, rel=2e-3)
    assert critical_dose(k).item() == pytest.approx(by_hand)
    assert critical_dose(k, voltage_kV=200.0).item() == pytest.approx(0.8 * by_hand)
    assert dose_attenuation(k, 2 * critical_dose(k)[None]).item() == pytest.approx(math.exp(-1))
    with pytest.raises(BadInput, match="200 and 300"):
        critical_dose(k, voltage_kV=120.0)


def test_dose_weights_keep_white_noise_and_favour_early_frames():
    """Squares sum to 1 at every frequency, the origin too; weights fall with dose, the faster the finer."""
    k = torch.cat([torch.zeros(1, dtype=F64), K])
    dose = torch.arange(1.0, 41.0, dtype=F64)
    w = dose_weights(k, dose)
    torch.testing.assert_close((w**2).sum(0), torch.ones(81, dtype=F64))
    assert (w[1:, 1:] < w[:-1, 1:]).all()
    torch.testing.assert_close(w[:, 0], torch.full((40,), 40**-0.5, dtype=F64))
    late_to_early = w[-1] / w[0]
    assert (late_to_early.diff() < 0).all()


def test_no_other_weights_keep_more_signal():
    """Signal sum w q at noise sum w^2 = 1 is largest for w proportional to q."""
    dose = torch.arange(1.0, 21.0, dtype=F64)
    q, w = dose_attenuation(K, dose), dose_weights(K, dose)
    other = torch.rand(50, 20, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    other = other / other.norm(dim=1, keepdim=True)
    assert ((w * q).sum(0) >= (other * q).sum(1)).all()


def test_temporal_envelope_is_a_mean_over_defocus():
    """Of exp(i pi lambda dz k^2) with dz from N(0, spread^2)."""
    spread, wavelength = 80.0, electron_wavelength_A(torch.tensor(300.0, dtype=F64))
    dz = torch.linspace(-8 * spread, 8 * spread, 4001, dtype=F64)
    weight = torch.softmax(-0.5 * (dz / spread) ** 2, 0)
    mean = (weight[:, None] * torch.cos(math.pi * wavelength * dz[:, None] * K**2)).sum(0)
    torch.testing.assert_close(temporal_envelope(K, focal_spread_A=spread), mean)


def test_spatial_envelope_is_a_mean_over_beam_tilts():
    """To first order in the tilt: of exp(i q dchi/dk) with q from exp(-(q lambda / alpha)^2), dchi/dk by autograd."""
    options = {"defocus_A": 12000.0, "cs_mm": 2.7, "voltage_kV": 300.0}
    k = K.clone().requires_grad_()
    chi = ctf_phase(CTF.uniform(1, **options), torch.stack([k, torch.zeros_like(k)], -1))
    slope = torch.autograd.grad(chi.sum(), k)[0]
    a = 1e-4 / electron_wavelength_A(torch.tensor(300.0, dtype=F64))
    q = torch.linspace(-8, 8, 4001, dtype=F64) * a
    weight = torch.softmax(-((q / a) ** 2), 0)
    mean = (weight[:, None] * torch.cos(q[:, None] * slope)).sum(0)
    # CTF parameters are float32.
    found = spatial_envelope(K, semi_angle_mrad=0.1, **options)
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-7)


def test_envelopes_start_at_one_and_fall():
    """1 at the origin; temporal falls everywhere, spatial up to the flat of chi, where it is 1 again."""
    zero = torch.zeros(1, dtype=F64)
    assert temporal_envelope(zero, focal_spread_A=80.0).item() == 1
    assert spatial_envelope(zero, semi_angle_mrad=0.1, defocus_A=1e4).item() == 1
    assert (temporal_envelope(K, focal_spread_A=80.0).diff() < 0).all()
    wavelength = electron_wavelength_A(torch.tensor(300.0, dtype=F64))
    flat = torch.sqrt(1e4 / (2.7e7 * wavelength**2))[None]
    assert spatial_envelope(flat, semi_angle_mrad=0.1, defocus_A=1e4).item() == pytest.approx(1.0)
