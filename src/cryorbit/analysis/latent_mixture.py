"""Images sorted into classes by their latents, each image with its own precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.latent_units import ErrorUnits
from cryorbit.analysis.latents import k_means

_CHUNK = 50_000
"""Images handled at a time: 25 MB of precisions at eight latent numbers."""
_SETTLED = 1e-6
"""Rounds end when one gains less than this, nats per image."""


@dataclass(frozen=True, eq=False)
class LatentMixture:
    """k point-like classes in latent space.

    Parameters
    ----------
    centre
        Latent vector of each class, (k, d).
    weight
        Share of the images in each, (k,).
    probability
        Of each class for each image, (n, k).
    log_likelihood
        Of all images, nats, less that of a single class at latent 0; with the centres' prior.
    """

    centre: Float[Tensor, "k d"]
    weight: Float[Tensor, "k"]
    probability: Float[Tensor, "n k"]
    log_likelihood: float

    @property
    def label(self) -> Int[Tensor, "n"]:
        """The most probable class of each image."""
        return self.probability.argmax(1)


def classify(
    latents: Float[Tensor, "n d"],
    precision: Float[Tensor, "n d d"],
    k: int,
    *,
    restarts: int = 10,
    rounds: int = 100,
    seed: int = 0,
) -> LatentMixture:
    """The most likely mixture of `k` latent vectors, by E-M from several k-means.

    The posterior N(z, P^-1) of an image under the prior N(0, I) stands for the likelihood exp(c.(P z) - c.(P - I) c / 2) of
    a latent vector c, up to a factor without c. So images that tell little count little, along each direction apart, and
    an image that tells nothing (P = I) does no harm: nothing is divided by P - I. Centres have the prior N(0, I). Where all
    P are alike and large this is a mixture of Gaussians of one known covariance. The likelihood is taken as that quadratic
    everywhere, which it is for a linear model; the precision of a model that bends holds near z alone, and there the mean
    precision, given for all, sorts better.

    Parameters
    ----------
    latents, precision
        Posterior means and precisions of the images.
    restarts
        Runs from different k-means; the most likely is kept.
    rounds
        Most rounds of E-M in each.

    Raises
    ------
    BadInput
        If there are fewer images than classes, or latents and precisions are not finite.
    """
    units = ErrorUnits.of(precision)
    evidence = _Evidence(latents, precision)
    best = None
    for run in range(max(restarts, 1)):
        start = units.latents(k_means(units.coordinates(latents), k, restarts=1, seed=seed + run).centre)
        found = _settle(evidence, start, rounds)
        if best is None or found.log_likelihood > best.log_likelihood:
            best = found
    assert best is not None  # there is at least one run
    return best


class _Evidence:
    """Q = P - I, flat, and Q m = P z of each image."""

    def __init__(self, latents: Tensor, precision: Tensor) -> None:
        p = precision.detach().to("cpu", torch.float64)
        z = latents.detach().to("cpu", torch.float64)
        self.pull = (p @ z[..., None])[..., 0]
        # Curvature below the prior's own is no evidence but noise of a finite difference: it would repel from the centres.
        values, axes = torch.linalg.eigh(0.5 * (p + p.mT) - torch.eye(p.shape[-1], dtype=p.dtype))
        self.hold = ((axes * values.clamp_min(0)[:, None]) @ axes.mT).flatten(1)

    def expect(self, centre: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Probabilities, sums of Q and of Q m per class, and the log-likelihood."""
        outer = (centre[:, :, None] * centre[:, None]).flatten(1)
        kept, hold, pull, total = [], 0.0, 0.0, -0.5 * float(centre.square().sum())
        for q, b in zip(self.hold.split(_CHUNK), self.pull.split(_CHUNK), strict=True):
            score = weight.log() - 0.5 * q @ outer.T + b @ centre.T
            each = score.logsumexp(1)
            probability = (score - each[:, None]).exp()
            hold, pull = hold + probability.T @ q, pull + probability.T @ b
            total += float(each.sum())
            kept.append(probability)
        assert isinstance(hold, Tensor)
        assert isinstance(pull, Tensor)  # there is at least one image
        return torch.cat(kept), hold, pull, total


def _settle(evidence: _Evidence, centre: Tensor, rounds: int) -> LatentMixture:
    """Rounds of E-M from given centres."""
    n, d = evidence.pull.shape
    weight = torch.full((len(centre),), 1 / len(centre), dtype=torch.float64)
    before = -torch.inf
    while True:
        probability, hold, pull, total = evidence.expect(centre, weight)
        rounds -= 1
        if rounds <= 0 or total - before < _SETTLED * n:
            return LatentMixture(centre, weight, probability, total)
        before = total
        weight = probability.mean(0).clamp_min(1e-12)
        matrix = hold.unflatten(1, (d, d)) + torch.eye(d, dtype=hold.dtype)
        centre = torch.linalg.solve(matrix, pull[..., None])[..., 0]
