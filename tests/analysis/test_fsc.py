"""Laws of the Fourier shell correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cryorbit.analysis.fsc import (
    ShellCorrelation,
    fourier_shell_correlation,
    phase_randomised_fsc,
    randomise_phases,
)
from cryorbit.analysis.masks import spherical_mask
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from laws import ROUND_OFF


def noise_map(n: int, seed: int, *, pixel_size_A: float = 2.0) -> Volume:
    generator = torch.Generator().manual_seed(seed)
    return Volume(torch.randn(n, n, n, generator=generator, dtype=torch.float64), pixel_size_A)


def brute_force(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same sums over the full transform, coefficient by coefficient."""
    n = a.shape[0]
    f, g = np.fft.fftn(a), np.fft.fftn(b)
    sums = np.zeros((n // 2 + 1, 3))
    frequency = np.rint(np.fft.fftfreq(n) * n)
    for i, z in enumerate(frequency):
        for j, y in enumerate(frequency):
            for k, x in enumerate(frequency):
                shell = math.floor(math.sqrt(x * x + y * y + z * z) + 0.5)
                if shell <= n // 2:
                    p, q = f[i, j, k], g[i, j, k]
                    sums[shell] += [(p * q.conjugate()).real, abs(p) ** 2, abs(q) ** 2]
    return sums[:, 0] / np.sqrt(sums[:, 1] * sums[:, 2])


@pytest.mark.parametrize("n", [11, 12])
def test_shells_are_those_of_relion(n):
    """Shell i holds |k| rounded to i: equal to a loop over every coefficient."""
    a, b = noise_map(n, 0), noise_map(n, 1)
    curve = fourier_shell_correlation(a, b)
    expected = torch.from_numpy(brute_force(a.values.numpy(), b.values.numpy()))
    torch.testing.assert_close(curve.correlation, expected, rtol=0, atol=ROUND_OFF[torch.float64])
    torch.testing.assert_close(curve.frequency_per_A, torch.arange(n // 2 + 1).double() / (n * 2.0))


@pytest.mark.parametrize("n", [31, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_correlates_with_itself(n, dtype):
    """FSC of a map with a multiple of itself is 1 in every shell, and nothing but Nyquist limits it."""
    a = noise_map(n, 0)
    a = Volume(a.values.to(dtype), a.pixel_size_A)
    curve = fourier_shell_correlation(a, Volume(3.0 * a.values, a.pixel_size_A))
    torch.testing.assert_close(
        curve.correlation, torch.ones_like(curve.correlation), rtol=0, atol=ROUND_OFF[dtype]
    )
    assert curve.nyquist_limited()
    assert curve.resolution_A() == pytest.approx(n * 2.0 / (n // 2))
    assert not curve.recrosses()


@pytest.mark.parametrize("n", [31, 32])
def test_independent_noise_does_not_correlate(n):
    """Few shells lie beyond three standard deviations, 1 / sqrt(independent coefficients), none 4.5."""
    curve = fourier_shell_correlation(noise_map(n, 2), noise_map(n, 3))
    shell = torch.arange(1, n // 2 + 1).double()
    sd = 1.0 / (2.0 * math.pi * shell**2).sqrt()  # half of 4 pi r^2: pairs are conjugate
    z = curve.correlation[1:].abs() / sd
    assert float((z > 3).double().mean()) < 0.1
    assert float(z.max()) < 4.5


def test_correlation_does_not_change_with_scale_or_common_shift():
    """Any gain, any radial filter, and one circular shift of both maps leave the FSC as it is."""
    a, b = noise_map(16, 4), noise_map(16, 5)
    b = Volume(a.values + b.values, 2.0)
    curve = fourier_shell_correlation(a, b)
    moved = fourier_shell_correlation(
        Volume(5.0 * a.values.roll((1, 2, 3), (0, 1, 2)), 2.0),
        Volume(b.values.roll((1, 2, 3), (0, 1, 2)), 2.0),
    )
    torch.testing.assert_close(curve.correlation, moved.correlation, rtol=0, atol=ROUND_OFF[torch.float64])


def curve_of(*values: float) -> ShellCorrelation:
    return ShellCorrelation(torch.arange(len(values)) / 100.0, torch.tensor(values))


def test_resolution_is_the_first_crossing():
    """Linear between shells; a later rise does not count but is told."""
    curve = curve_of(1.0, 1.0, 0.9, 0.1, 0.0, 0.6, 0.0)
    assert curve.resolution_A(0.5) == pytest.approx(1 / 0.025)
    assert curve.recrosses(0.5)
    assert not curve.recrosses(0.7)
    assert not curve.nyquist_limited(0.5)


def test_nothing_resolved_is_infinite():
    """A curve below the threshold from its first shell on has no resolution."""
    assert curve_of(1.0, 0.1, 0.0).resolution_A(0.5) == math.inf


@pytest.mark.parametrize("n", [15, 16])
def test_randomised_phases_are_those_of_a_real_map(n):
    """Amplitudes stay in every coefficient, inner phases stay, outer ones change, and the map is real."""
    a = noise_map(n, 6)
    randomised = randomise_phases(a.values, from_shell=4, generator=torch.Generator().manual_seed(0))
    before, after = torch.fft.fftn(a.values), torch.fft.fftn(randomised)
    torch.testing.assert_close(before.abs(), after.abs(), rtol=0, atol=1e-10)
    frequency = torch.fft.fftfreq(n) * n
    radius = (frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency**2).sqrt()
    inner = (radius + 0.5).floor() < 4
    torch.testing.assert_close(before[inner], after[inner], rtol=0, atol=1e-10)
    cosine = ((before * after.conj()).real / before.abs() ** 2)[~inner]
    assert abs(float(cosine.mean())) < 0.1  # 4 sd of the mean of about 1500 free cosines


def test_mask_correction_takes_out_what_the_mask_adds():
    """Independent noise under a small mask correlates through the mask; the corrected curve does not."""
    n = 48
    x = torch.arange(n, dtype=torch.float64) - n // 2
    radius = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).sqrt()
    signal = torch.exp(-((radius / 4.0) ** 2)) * 30.0
    halves = [Volume(signal + noise_map(n, seed).values, 2.0) for seed in (7, 8)]
    mask = spherical_mask(halves[0], radius_A=12.0, edge_A=4.0)
    result = phase_randomised_fsc(halves[0], halves[1], mask, torch.Generator().manual_seed(1))
    cut = result.randomised_from
    assert 2 < cut < n // 2
    assert torch.equal(result.corrected.correlation[: cut + 2], result.masked.correlation[: cut + 2])
    raw = result.masked.correlation[cut + 2 :].mean()
    corrected = result.corrected.correlation[cut + 2 :].mean()
    assert abs(float(corrected)) <= abs(float(raw)) + 0.05
    assert result.corrected.resolution_A() >= result.masked.resolution_A() - 1e-9


def test_equal_maps_need_no_correction():
    """Where the unmasked curve never drops below 0.8 nothing is randomised."""
    a = noise_map(16, 9)
    result = phase_randomised_fsc(a, a, spherical_mask(a, radius_A=10.0), torch.Generator().manual_seed(0))
    assert result.randomised_from == 9
    assert torch.equal(result.corrected.correlation, result.masked.correlation)
    assert not result.mask_too_tight()


def test_maps_that_do_not_match_are_refused():
    """Another box or another pixel size is an error that names both."""
    a = noise_map(16, 0)
    with pytest.raises(BadInput, match="box 16 but the second map has 15"):
        fourier_shell_correlation(a, noise_map(15, 0))
    with pytest.raises(BadInput, match="pixel sizes differ"):
        fourier_shell_correlation(a, noise_map(16, 0, pixel_size_A=3.0))
    with pytest.raises(BadInput, match="mask"):
        fourier_shell_correlation(a, a, mask=noise_map(15, 0))
