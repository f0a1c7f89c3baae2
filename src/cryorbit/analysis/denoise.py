"""Posteriors of pixels whose prior is conjugate to the noise: Gaussian noise, and counted electrons."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """N(mean, variance) of each pixel, shape (...)."""

    mean: Float[Tensor, "..."]
    variance: Float[Tensor, "..."]


@dataclass(frozen=True, eq=False)
class GammaPosterior:
    """Gamma(shape, rate) of each pixel's expected count, shape (...)."""

    shape: Float[Tensor, "..."]
    rate: Float[Tensor, "..."]

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Posterior mean, shape / rate."""
        return self.shape / self.rate

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Posterior variance, shape / rate^2."""
        return self.shape / self.rate**2


def gaussian_posterior(
    observed: Float[Tensor, "*pixels"],
    *,
    noise_variance: Float[Tensor, "..."] | float,
    prior_mean: Float[Tensor, "..."] | float,
    prior_variance: Float[Tensor, "..."] | float,
) -> GaussianPosterior:
    """Of x = signal + noise with signal N(mu, s^2), noise N(0, n^2).

    Mean (n^2 mu + s^2 x) / (n^2 + s^2), variance n^2 s^2 / (n^2 + s^2): the observation without noise, the prior where
    nothing is seen. A network that predicts (mu, s^2) from a pixel's surroundings makes this a denoiser.

    Raises
    ------
    BadInput
        If a variance is negative, or both are 0.
    """
    noise, prior = torch.as_tensor(noise_variance).to(observed), torch.as_tensor(prior_variance).to(observed)
    if bool((noise < 0).any()) or bool((prior < 0).any()) or not bool((noise + prior > 0).all()):
        raise BadInput("gaussian_posterior: variances must be at least 0, and not both 0.")
    mean = (noise * torch.as_tensor(prior_mean).to(observed) + prior * observed) / (noise + prior)
    return GaussianPosterior(mean, (noise * prior / (noise + prior)).expand_as(mean))


def poisson_posterior(
    counts: Float[Tensor, "n *pixels"],
    *,
    prior_shape: Float[Tensor, "..."] | float,
    prior_rate: Float[Tensor, "..."] | float,
) -> GammaPosterior:
    """Of n frames of counts per pixel with Poisson noise and a Gamma(alpha, beta) prior of the rate.

    Gamma(alpha + sum of counts, beta + n); for one frame the mean is (alpha + x) / (beta + 1).

    Raises
    ------
    BadInput
        If a count is negative, or alpha or beta is not above 0.
    """
    alpha, beta = torch.as_tensor(prior_shape).to(counts), torch.as_tensor(prior_rate).to(counts)
    if bool((counts < 0).any()) or not bool((alpha > 0).all()) or not bool((beta > 0).all()):
        raise BadInput("poisson_posterior: counts must be at least 0, prior shape and rate above 0.")
    shape = alpha + counts.sum(0)
    return GammaPosterior(shape, (beta + counts.shape[0]).expand_as(shape))
