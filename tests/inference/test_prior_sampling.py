"""Samplers against Gaussian data, where the denoiser and the law of the samples are known exactly."""

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.inference.prior_sampling import Churn, noise_levels, sample
from cryorbit.nn.se3_points import centred

HEUN = 2e-2
"""Relative error of a standard deviation: 40 steps of second order gave 0.014; 80 steps 0.006, or 0.01 when churned."""
FIVE_STANDARD_ERRORS = 5.0


class GaussianDenoiser:
    """The posterior mean for data of N(mean, diag(variance))."""

    sigma_data = 1.0

    def __init__(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.mean, self.variance = mean, variance

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        square = sigma.view(-1, *[1] * (x.dim() - 1)) ** 2
        return self.mean + (x - self.mean) * self.variance / (self.variance + square)


DENOISER = GaussianDenoiser(
    torch.tensor([0.3, -2.0, 1.0, 0.0], dtype=torch.float64),
    torch.tensor([0.01, 0.5, 1.0, 4.0], dtype=torch.float64),
)


def draw(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_levels_are_even_in_the_power_and_end_at_zero():
    levels = noise_levels(18, 0.002, 80.0)
    root = levels[:-1] ** (1 / 7)
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(17))
    assert levels[0] == pytest.approx(80.0)
    assert levels[-2] == pytest.approx(0.002)
    assert levels[-1] == 0


def test_the_ode_maps_noise_to_data_linearly():
    """For Gaussian data the exact flow is x = mean + sd / sqrt(sd^2 + max^2) (x_max - mean): no chance in the test."""
    noise, top = draw(50, 4), 80.0
    found = sample(DENOISER, noise, noise_levels(40, 2e-3, top))
    spread = DENOISER.variance.sqrt()
    expected = DENOISER.mean + spread / (DENOISER.variance + top**2).sqrt() * (noise * top - DENOISER.mean)
    assert float(((found - expected) / spread).abs().max()) < HEUN * float(noise.abs().max())


def test_heun_is_of_second_order():
    """Twice the steps, a quarter of the error (an Euler sampler would halve it)."""
    noise, exact = draw(20, 4), None
    error = []
    exact = sample(DENOISER, noise, noise_levels(640, 2e-3, 80.0))
    for n in (20, 40):
        error.append(float((sample(DENOISER, noise, noise_levels(n, 2e-3, 80.0)) - exact).norm()))
    assert error[1] < error[0] / 3


@pytest.mark.parametrize("churn", [None, Churn(amount=10.0)])
def test_samples_have_the_mean_and_covariance_of_the_data(churn):
    n = 20_000
    x = sample(
        DENOISER,
        draw(n, 4, seed=1),
        noise_levels(80, 2e-3, 80.0),
        churn=churn,
        generator=torch.Generator().manual_seed(2),
    )
    spread = DENOISER.variance.sqrt()
    white = (x - DENOISER.mean) / spread
    # The start forgets the data's mean up to mean / 80, seen through the shrinking of each axis.
    allowed = FIVE_STANDARD_ERRORS / n**0.5 + float(DENOISER.mean.abs().max()) / 80
    assert float(white.mean(0).abs().max()) < allowed
    covariance = torch.cov(white.T)
    bound = 2 * HEUN + FIVE_STANDARD_ERRORS * (2 / n) ** 0.5
    assert float((covariance - torch.eye(4, dtype=torch.float64)).abs().max()) < bound


def test_churn_keeps_chance_and_the_plain_sampler_does_not():
    noise, levels = draw(3, 4), noise_levels(10, 2e-3, 80.0)
    assert torch.equal(sample(DENOISER, noise, levels), sample(DENOISER, noise, levels))
    a, b = (
        sample(DENOISER, noise, levels, churn=Churn(), generator=torch.Generator().manual_seed(s))
        for s in (0, 1)
    )
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("churn", [None, Churn(amount=10.0)])
def test_points_keep_their_centre_of_mass_and_the_right_spread(churn):
    """Zero mean over the points that exist at every call, zeros elsewhere, and 3 (n - 1) degrees of freedom."""
    mask = torch.tensor([[True] * 5 + [False] * 2]).expand(4000, 7)
    seen = []

    class Watched(GaussianDenoiser):
        def __call__(self, x, sigma):
            seen.append(float((x * mask[..., None]).sum(1).abs().max() / (1 + sigma.max())))
            return super().__call__(x, sigma)

    x = sample(
        Watched(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)),
        draw(4000, 7, 3),
        noise_levels(80, 2e-3, 80.0),
        churn=churn,
        generator=torch.Generator().manual_seed(1),
        project=lambda x: centred(x, mask),
    )
    assert max(seen) < 1e-12
    assert float(x[:, 5:].abs().max()) == 0
    freedom = x.square().sum((1, 2))
    expected = 3 * (5 - 1)
    error = FIVE_STANDARD_ERRORS * float(freedom.std()) / 4000**0.5
    assert abs(float(freedom.mean()) - expected) < error + 2 * HEUN * expected


def test_levels_that_do_not_fall_are_refused():
    with pytest.raises(BadInput, match="fall"):
        sample(DENOISER, draw(1, 4), torch.tensor([1.0, 2.0, 0.0]))
    with pytest.raises(BadInput, match="generator"):
        sample(DENOISER, draw(1, 4), torch.tensor([1.0, 0.0]), churn=Churn())
    with pytest.raises(BadInput, match="sigma_min"):
        noise_levels(4, 2.0, 1.0)
