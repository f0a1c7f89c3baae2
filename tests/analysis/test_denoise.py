"""Closed forms of conjugate posteriors."""

import pytest
import torch

from cryorbit.analysis.denoise import gaussian_posterior, poisson_posterior
from cryorbit.errors import BadInput

F64 = torch.float64


def test_gaussian_posterior_is_the_product_of_prior_and_likelihood():
    """Mean and variance of the density on a fine grid."""
    x, mu, s2, n2 = 1.7, -0.4, 0.8, 0.3
    grid = torch.linspace(-8, 8, 20001, dtype=F64)
    weight = torch.softmax(-((grid - mu) ** 2) / (2 * s2) - (grid - x) ** 2 / (2 * n2), 0)
    mean = (weight * grid).sum()
    found = gaussian_posterior(
        torch.tensor([x], dtype=F64), noise_variance=n2, prior_mean=mu, prior_variance=s2
    )
    torch.testing.assert_close(found.mean[0], mean)
    torch.testing.assert_close(found.variance[0], (weight * (grid - mean) ** 2).sum())


def test_limits_of_the_gaussian_posterior():
    """No noise: what is seen. Endless noise: the prior."""
    x = torch.tensor([1.7, -3.0], dtype=F64)
    sharp = gaussian_posterior(x, noise_variance=0.0, prior_mean=0.5, prior_variance=2.0)
    assert torch.equal(sharp.mean, x)
    assert (sharp.variance == 0).all()
    blind = gaussian_posterior(x, noise_variance=1e18, prior_mean=0.5, prior_variance=2.0)
    torch.testing.assert_close(blind.mean, torch.full_like(x, 0.5))
    torch.testing.assert_close(blind.variance, torch.full_like(x, 2.0))


def test_poisson_posterior_is_a_gamma():
    """(alpha + sum x) / (beta + n), for one frame (alpha + x) / (beta + 1), and the density's own moments."""
    counts = torch.tensor([[3.0, 0.0], [5.0, 1.0]], dtype=F64)
    found = poisson_posterior(counts, prior_shape=2.0, prior_rate=0.5)
    torch.testing.assert_close(found.mean, torch.tensor([10 / 2.5, 3 / 2.5], dtype=F64))
    one = poisson_posterior(counts[:1], prior_shape=2.0, prior_rate=0.5)
    torch.testing.assert_close(one.mean, (2 + counts[0]) / 1.5)
    rate = torch.linspace(1e-6, 40, 400001, dtype=F64)
    log_density = (
        torch.log(rate) - 0.5 * rate + 8 * torch.log(rate) - 2 * rate
    )  # prior x two Poisson likelihoods
    weight = torch.softmax(log_density, 0)
    mean = (weight * rate).sum()
    torch.testing.assert_close(found.mean[0], mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance[0], (weight * (rate - mean) ** 2).sum(), rtol=1e-6, atol=0)


def test_senseless_priors_are_refused():
    """Negative variances and counts."""
    x = torch.ones(1, 2)
    with pytest.raises(BadInput, match="not both 0"):
        gaussian_posterior(x, noise_variance=0.0, prior_mean=0.0, prior_variance=0.0)
    with pytest.raises(BadInput, match="at least 0"):
        poisson_posterior(-x, prior_shape=1.0, prior_rate=1.0)
