"""DiffPIR with the prior's spectrum where the posterior is known: Gaussian prior, likelihood diagonal in Fourier space."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid
from cryorbit.inference.posterior import PosteriorSettings, sample_posterior
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.posterior_methods import DiffPIR
from cryorbit.inference.posterior_spectrum import SpectralDiffPIR
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
