"""DiffPIR and PiGDM with the prior's spectrum where the posterior is known: Gaussian prior, W diagonal in Fourier space."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid
from cryorbit.inference.posterior import PosteriorSettings, sample_posterior
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.posterior_methods import CountedDenoiser, DiffPIR, PiGDM, Problem
from cryorbit.inference.posterior_spectrum import SpectralDiffPIR, SpectralPiGDM, method_of
from gaussian_denoiser import GaussianDenoiser, filtered

SAMPLES = 200


def case(n: int) -> tuple[GaussianDenoiser, TwoVolumes, Tensor]:
    """A prior with most power in a few terms, weak data; precision W + 1 / P of the posterior."""
    g = torch.Generator().manual_seed(n)
    radius = radius_grid(n, ndim=3, dtype=torch.float64)
    power = 100 * torch.exp(-((radius / (0.15 * n)) ** 2)) + 0.01
    weight = 0.2 * torch.exp(-((radius / (0.3 * n)) ** 2))
    truth = filtered(torch.randn(n, n, n, generator=g, dtype=torch.float64), power.sqrt())
    noise = filtered(torch.randn(n, n, n, generator=g, dtype=torch.float64), weight.sqrt())
    back = filtered(truth, weight) + noise
    data = TwoVolumes(back, weight, None, 1e3, float(n**3), 1.0)
    return GaussianDenoiser(power), data, weight + 1 / power


@pytest.mark.parametrize("n", [8, 9])
def test_draws_have_the_posteriors_mean_and_variance(n):
    """Mean within 5 standard errors of a map of `SAMPLES`, total variance to 5 %; white DiffPIR is off by more than both."""
    denoiser, data, precision = case(n)
    exact = filtered(data.back_projection, 1 / precision)
    variance = float(filtered(torch.eye(1, n**3, dtype=torch.float64).view(n, n, n), 1 / precision)[0, 0, 0])
    settings = PosteriorSettings(samples=SAMPLES, steps=40, at_a_time=SAMPLES)

    def off(method) -> tuple[float, float]:
        maps = deque(sample_posterior(denoiser, data, method, settings), maxlen=1)[0].result.samples
        error = float((maps.mean(0) - exact).square().mean())
        return error / (variance / SAMPLES), float(maps.var(0).mean()) / variance

    error, ratio = off(SpectralDiffPIR(power=denoiser.power, correction="draw", width=1.0))
    assert error < 25
    assert ratio == pytest.approx(1, abs=0.05)
    white_error, white_ratio = off(DiffPIR(correction="draw"))
    assert white_error > error
    assert abs(white_ratio - 1) > abs(ratio - 1)


def test_a_width_has_to_be_positive():
    with pytest.raises(BadInput, match="width"):
        SpectralDiffPIR(power=torch.ones(2, 2, 2), width=0.0)


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 30.0])
def test_guidance_gives_the_mean_given_images_and_the_noisy_map(n, sigma):
    """Of a Gaussian prior, whose precision W + 1 / P + 1 / s^2 is known; to the accuracy of the solve, 1e-3."""
    denoiser, data, precision = case(n)
    x = sigma * torch.randn(2, 1, n, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = Problem(CountedDenoiser(denoiser, 2), data, torch.Generator().manual_seed(1))
    _, clean = SpectralPiGDM(power=denoiser.power).step(problem, x, sigma, 0.0, torch.zeros_like(x))
    exact = filtered(data.back_projection + x / sigma**2, 1 / (precision + 1 / sigma**2))
    assert float((clean - exact).norm() / exact.norm()) < 1e-3


def test_guidance_finds_the_mean_where_one_deviation_for_all_terms_overshoots():
    """Images without noise to speak of: 5 % from the posterior mean, in four chains, and a quarter of what PiGDM is off."""
    denoiser, data, precision = case(8)
    sharp = TwoVolumes(1e6 * data.back_projection, 1e6 * data.weight, None, 1e9, data.count, 1.0)
    settings = PosteriorSettings(samples=4, steps=24, at_a_time=4)
    exact = filtered(sharp.back_projection, 1 / (precision + (1e6 - 1) * data.weight))

    def off(method) -> float:
        maps = deque(sample_posterior(denoiser, sharp, method, settings), maxlen=1)[0].result.samples
        return float((maps.mean(0) - exact).norm() / exact.norm())

    spectral = off(method_of("pigdm", denoiser.power))
    assert spectral < 0.05
    assert spectral < 0.25 * off(PiGDM())


def test_a_method_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(BadInput, match="split-gibbs"):
        method_of("magic", torch.ones(2, 2, 2))
