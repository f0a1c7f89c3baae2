"""Laws of the Guinier plot, the FSC weight and sharpening."""

from __future__ import annotations

import pytest
import torch

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation, phase_randomised_fsc
from cryorbit.analysis.masks import spherical_mask
from cryorbit.analysis.sharpen import fit_b_factor, fsc_weights, guinier_plot, sharpen
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import apply_b_factor
from half_maps import frequencies, noisy_halves, radius_px, white
from laws import ROUND_OFF

PIXEL = 1.5

B_OF_NOISY_MAP_A2 = 12.0
"""Three standard errors of the fitted B: each of some ten shells knows ln(amplitude) to a percent or three."""


def phantom(n: int, b_factor_A2: float) -> torch.Tensor:
    """White density in a ball, then blurred: its amplitude falls as exp(-B s^2 / 4) and nothing else."""
    ball = white(n, 0) * (radius_px(n) < 0.3 * n)
    return apply_b_factor(ball, b_factor_A2=b_factor_A2, pixel_size_A=PIXEL, ndim=3)


def mean(halves: tuple[Volume, Volume]) -> Volume:
    return Volume(0.5 * (halves[0].values + halves[1].values), halves[0].pixel_size_A)


@pytest.mark.parametrize("n", [47, 48])
@pytest.mark.parametrize("b", [0.0, 60.0, 150.0])
def test_the_fit_returns_the_b_factor_of_a_phantom(n, b):
    """A map blurred by B needs -B to be sharp again, whatever noise the half maps have."""
    signal = phantom(n, b)
    halves = noisy_halves(signal, noise=0.2 * float(signal.std()), pixel_size_A=PIXEL)
    mask = spherical_mask(halves[0], radius_A=0.32 * n * PIXEL, edge_A=6.0)
    curves = phase_randomised_fsc(*halves, mask, torch.Generator().manual_seed(0))
    resolution = curves.corrected.resolution_A(0.143)
    plot = guinier_plot(mean(halves), curves.corrected, mask=mask)
    fit = fit_b_factor(plot, from_A=20.0, to_A=resolution)
    assert fit is not None
    assert fit.b_factor_A2 == pytest.approx(-b, abs=B_OF_NOISY_MAP_A2)


@pytest.mark.parametrize("n", [31, 32])
def test_weighting_takes_the_noise_out_of_the_amplitudes(n):
    """Weighted amplitudes are those of the signal alone, to the error of a shell's mean; unweighted ones are more."""
    signal = white(n, 1)
    halves = noisy_halves(signal, noise=1.5, pixel_size_A=PIXEL)
    plot = guinier_plot(mean(halves), fourier_shell_correlation(*halves))
    alone = guinier_plot(
        Volume(signal, PIXEL), fourier_shell_correlation(*noisy_halves(signal, noise=0.0, pixel_size_A=PIXEL))
    )
    # 3 sd of a ratio of root mean squares over the 4 pi 8^2 / 2 free coefficients of shell 8 and beyond
    torch.testing.assert_close(plot.weighted[8:], alone.amplitude[8:], rtol=0.15, atol=0)
    assert bool((plot.amplitude[8:] > 1.1 * plot.weighted[8:]).all())


def test_weight_is_one_where_the_halves_agree_and_zero_past_the_first_disagreement():
    """sqrt(2F / (1 + F)): 1 at F = 1, 0 at F = 0 and behind it, rising between."""
    f = torch.tensor([0.2, 1.0, 1.0, 0.6, 0.2, 0.0, 0.9])
    weight = fsc_weights(ShellCorrelation(torch.arange(7) / 10, f))
    torch.testing.assert_close(weight[:3], torch.ones(3), rtol=0, atol=ROUND_OFF[torch.float32])
    assert weight[3] > weight[4] > 0
    assert torch.equal(weight[5:], torch.zeros(2))


@pytest.mark.parametrize("n", [23, 24])
def test_sharpening_a_noise_free_map_undoes_its_blur(n):
    """Where F = 1 everywhere, B of the opposite sign gives the map back below the low-pass."""
    sharp = white(n, 2)
    blurred = Volume(
        apply_b_factor(sharp, b_factor_A2=40.0, pixel_size_A=PIXEL, ndim=3), PIXEL, (1.0, 2.0, 3.0)
    )
    curve = fourier_shell_correlation(blurred, blurred)
    again = sharpen(blurred, curve, b_factor_A2=-40.0, low_pass_A=2.5 * PIXEL)
    assert again.origin_A == (1.0, 2.0, 3.0)
    inner = frequencies(n).norm(dim=-1) < n / 2.5 - 1.5  # inside the low-pass and its edge
    torch.testing.assert_close(
        torch.fft.rfftn(again.values)[inner],
        torch.fft.rfftn(sharp)[inner],
        rtol=0,
        atol=1e-9 * n**3,
    )


def test_too_few_shells_are_no_line():
    """A map that resolves less than four shells of the range has no B-factor; an empty range is refused."""
    curve = ShellCorrelation(torch.arange(17).double() / (32 * PIXEL), torch.ones(17).double())
    plot = guinier_plot(Volume(white(32, 3), PIXEL), curve)
    assert fit_b_factor(plot, from_A=10.0, to_A=9.0) is None
    with pytest.raises(BadInput, match="coarse end first"):
        fit_b_factor(plot, from_A=5.0, to_A=9.0)
    with pytest.raises(BadInput, match="17 shells"):
        guinier_plot(Volume(white(32, 3), PIXEL), ShellCorrelation(torch.arange(3) / 9, torch.ones(3)))
