"""Preconditioning and loss against the one case where everything is known: Gaussian data."""

import copy

import pytest
import torch
from torch import nn

from cryorbit.errors import BadInput
from cryorbit.models.score import (
    MovingAverage,
    TrainingNoise,
    denoising_loss,
    loss_weight,
    preconditioning,
)
from laws import ROUND_OFF

FIVE_STANDARD_ERRORS = 5.0  # a fixed seed passes or not for ever; chance alone would fail once in a million


class GaussianDenoiser:
    """The posterior mean for data of N(mean, covariance), times `gain` to make it wrong."""

    sigma_data = 1.0

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor, *, gain: float = 1.0) -> None:
        self.mean, self.gain = mean, gain
        self.value, self.vector = torch.linalg.eigh(covariance)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        shrink = self.gain * self.value / (self.value + sigma[:, None] ** 2)
        return self.mean + (((x - self.mean) @ self.vector) * shrink) @ self.vector.T


def gaussian(dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    return torch.randn(dim, generator=g, dtype=torch.float64), root @ root.T / dim


@pytest.mark.parametrize("sigma_data", [0.5, 3.0])
def test_input_and_target_have_unit_variance_at_every_level(sigma_data):
    """Var(c_in x) = 1, Var((x0 - c_skip x) / c_out) = 1, and weight times c_out^2 is 1."""
    sigma = torch.logspace(-3, 2, 20, dtype=torch.float64)
    c = preconditioning(sigma, sigma_data)
    total = sigma**2 + sigma_data**2
    target = ((1 - c.skip) ** 2 * sigma_data**2 + c.skip**2 * sigma**2) / c.out**2
    for value in (c.into**2 * total, target, loss_weight(sigma, sigma_data) * c.out**2):
        torch.testing.assert_close(value, torch.ones_like(value), rtol=0, atol=ROUND_OFF[torch.float64] * 1e3)


def test_the_skip_alone_is_right_for_white_data():
    """For data of N(0, sigma_data^2) the optimal network says nothing, and its loss is 1 at every level."""
    g = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(4000, 8, generator=g, dtype=torch.float64) for _ in range(2))

    class Skip:
        sigma_data = 2.0

        def __call__(self, x, sigma):
            return preconditioning(sigma, 2.0).skip[:, None] * x

    for level in (0.01, 2.0, 50.0):
        loss = denoising_loss(Skip(), 2 * clean, noise, torch.full((4000,), level, dtype=torch.float64))
        assert abs(float(loss.mean()) - 1) < FIVE_STANDARD_ERRORS * float(loss.std()) / 4000**0.5


def test_the_posterior_mean_minimises_the_loss():
    """Any gain but 1, and any shift, raises the loss of the same draws by what calculus says it must."""
    mean, covariance = gaussian()
    g = torch.Generator().manual_seed(2)
    n = 20_000
    root = torch.linalg.cholesky(covariance)
    clean = mean + torch.randn(n, 3, generator=g, dtype=torch.float64) @ root.T
    noise = torch.randn(n, 3, generator=g, dtype=torch.float64)
    sigma = TrainingNoise(centre=0.0, spread=0.5).draw(torch.ones(n, dtype=torch.float64), generator=g)

    def loss(denoiser: GaussianDenoiser) -> torch.Tensor:
        return denoising_loss(denoiser, clean, noise, sigma)

    best = loss(GaussianDenoiser(mean, covariance))
    others = [GaussianDenoiser(mean, covariance, gain=gain) for gain in (0.9, 1.1)]
    for other in [*others, GaussianDenoiser(mean + 0.1, covariance)]:
        worse = loss(other) - best
        assert float(worse.mean()) > FIVE_STANDARD_ERRORS * float(worse.std()) / n**0.5


def test_levels_of_training_have_the_centre_and_spread_asked_for():
    """ln(sigma / sigma_data), per sample its own sigma_data."""
    scale = torch.linspace(0.5, 5, 5000, dtype=torch.float64)
    level = TrainingNoise(centre=-1.0, spread=1.5).draw(scale, generator=torch.Generator().manual_seed(3))
    log = (level / scale).log()
    assert abs(float(log.mean()) + 1) < FIVE_STANDARD_ERRORS * 1.5 / 5000**0.5
    assert abs(float(log.std()) / 1.5 - 1) < FIVE_STANDARD_ERRORS / 10_000**0.5


def test_masked_values_do_not_count():
    """What lies outside the mask changes nothing."""
    denoiser = GaussianDenoiser(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    g = torch.Generator().manual_seed(4)
    clean, noise = (torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([True, True, False]).expand(5, 3)
    sigma = torch.full((5,), 0.7, dtype=torch.float64)
    first = denoising_loss(denoiser, clean, noise, sigma, mask=mask)
    noise[:, 2] += 100
    torch.testing.assert_close(denoising_loss(denoiser, clean, noise, sigma, mask=mask), first)


def test_the_average_is_the_weighted_sum_of_what_was():
    """Constant weights stay; otherwise the recursion, from the average's own early decays."""
    net = nn.Linear(2, 2)
    average = MovingAverage(net, decay=0.9)
    expected = net.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            net.weight += 0.1
        average.update(net)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    torch.testing.assert_close(average.network.weight.detach(), expected, rtol=0, atol=1e-4)
    # A ramp is followed at a distance of decay / (1 - decay) steps.
    lag = (net.weight - average.network.weight).detach()
    torch.testing.assert_close(lag, torch.full_like(lag, 0.9), rtol=1e-3, atol=0)


def test_an_average_comes_back_from_its_state():
    net = nn.Linear(2, 2)
    average = MovingAverage(net, decay=0.9)
    average.update(net)
    other = MovingAverage(copy.deepcopy(net), decay=0.9)
    with torch.no_grad():
        other.network.weight.zero_()
    other.restore("ema", average.state("ema"))
    assert torch.equal(other.network.weight, average.network.weight)
    assert other.steps == 1


def test_impossible_settings_are_refused():
    with pytest.raises(BadInput, match="spread"):
        TrainingNoise(spread=0.0)
    with pytest.raises(BadInput, match="decay"):
        MovingAverage(nn.Linear(1, 1), decay=1.0)
