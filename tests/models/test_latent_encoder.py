from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from cryorbit.models.latent_encoder import Encoded, LatentEncoder

ROUND_OFF = 1e-5
"""Sums of a few float32 numbers of order 1."""


def test_divergence_and_surprise_are_those_of_normal_distributions():
    """As torch.distributions has them; the surprise up to the constant that no weight reaches."""
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, z = (torch.randn(7, 3, generator=generator) for _ in range(3))
    found, normal = Encoded(mean, log_variance), Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(normal, Normal(torch.zeros(3), torch.ones(3))).sum(1)
    torch.testing.assert_close(found.divergence(), expected, rtol=ROUND_OFF, atol=ROUND_OFF)
    gap = found.surprise(z) + normal.log_prob(z).sum(1)
    torch.testing.assert_close(gap, gap[:1].expand(7), rtol=ROUND_OFF, atol=ROUND_OFF)
    torch.testing.assert_close(normal.log_prob(found.draw(z)), Normal(0, 1).log_prob(z) - 0.5 * log_variance)


def test_units_of_features_do_not_matter():
    """Once settled, features in other units and with another zero give the same vectors; a constant one is left out."""
    generator = torch.Generator().manual_seed(1)
    seen, about = torch.randn(50, 6, generator=generator), torch.randn(50, 4, generator=generator)
    seen[:, 2], about[:, 1] = 5.0, -1.0
    network = LatentEncoder(6, 4, latent=3, width=16)
    network.settle(seen, about)
    before = network(seen, about)
    units = torch.tensor([1e-3, 7.0, 1.0, 40.0, 0.2, 1e4])
    network.settle(seen * units + units, about * 3 - 1)
    after = network(seen * units + units, about * 3 - 1)
    # Standardising subtracts means as large as the deviations.
    for name in ("mean", "log_variance"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-3, atol=1e-4)
    assert before.mean.std(0).min() > 0
