"""Laws of signal-to-noise ratios read off FSC curves, and of the FSC of noise."""

import pytest
import torch

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.ssnr import cref, fsc_from_ssnr, ssnr
from cryorbit.data import Volume
from cryorbit.fourier.shells import shell_count

F64 = torch.float64


def _noise(n, seed):
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _fsc(a, b):
    return fourier_shell_correlation(Volume(a, 1.0), Volume(b, 1.0)).correlation


def test_formulae_agree_with_each_other():
    """F -> SSNR -> F; the merged map has twice the ratio of a half; Cref = sqrt(S / (S + 1)) of the merged map."""
    f = torch.linspace(0, 0.99, 34, dtype=F64)
    for merged in (True, False):
        torch.testing.assert_close(fsc_from_ssnr(ssnr(f, merged=merged), merged=merged), f)
    torch.testing.assert_close(ssnr(f), 2 * ssnr(f, merged=False))
    torch.testing.assert_close(cref(f), torch.sqrt(ssnr(f) / (ssnr(f) + 1)))
    assert cref(torch.tensor(-0.2)).item() == 0


@pytest.mark.parametrize("power", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("n", [32, 33])
def test_known_signal_to_noise_ratio(n, power):
    """White signal of this power, noise of power 1 per half: F = S / (S + 1), and Cref is the merged map's FSC to it."""
    signal = power**0.5 * _noise(n, 0)
    a, b = signal + _noise(n, 1), signal + _noise(n, 2)
    counts = shell_count(n, ndim=3, dtype=F64)[3:]
    found, expected = _fsc(a, b)[3:], power / (power + 1)
    assert ((found - expected).abs() < 5 / counts.sqrt()).all()  # five standard errors at most
    pooled = (counts * found).sum() / counts.sum()
    slope = 2 / (1 - expected) ** 2  # of the ratio against F; four standard errors
    assert float(ssnr(pooled[None])[0]) == pytest.approx(
        2 * power, abs=4 * slope / float(counts.sum()) ** 0.5
    )
    to_truth = _fsc((a + b) / 2, signal)[3:]
    assert ((to_truth - cref(torch.tensor(expected, dtype=F64))).abs() < 5 / counts.sqrt()).all()


@pytest.mark.parametrize("n", [24, 25])
def test_fsc_of_white_noise_has_mean_0_and_variance_1_over_n(n):
    """Over 40 pairs of maps, n the samples of a shell of the full transform."""
    curves = torch.stack([_fsc(_noise(n, 2 * i), _noise(n, 2 * i + 1)) for i in range(40)])[:, 2:]
    counts = shell_count(n, ndim=3, dtype=F64)[2:]
    scaled = curves * counts.sqrt()
    total = scaled.numel()
    assert abs(float(scaled.mean())) < 4 / total**0.5
    assert float(scaled.var()) == pytest.approx(1.0, abs=4 * (2 / total) ** 0.5)
