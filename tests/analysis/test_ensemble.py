"""Reweighting a two-state ensemble."""

import itertools

import pytest
import torch

from cryorbit.analysis.ensemble import ensemble_weights
from cryorbit.errors import BadInput

F64 = torch.float64


def test_two_states_are_recovered():
    """7 images in 10 from state 0, one-dimensional images with noise 1, states 3 apart: weights 0.7 and 0.3."""
    generator = torch.Generator().manual_seed(0)
    n = 4000
    state = (torch.arange(n) >= 0.7 * n).double()
    image = 3 * state + torch.randn(n, generator=generator, dtype=F64)
    log_likelihood = -0.5 * (image[:, None] - torch.tensor([0.0, 3.0], dtype=F64)) ** 2
    weights = ensemble_weights(log_likelihood)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights[0].item() == pytest.approx(0.7, abs=4 * (0.7 * 0.3 / n) ** 0.5)  # four standard errors


def test_the_likelihood_never_falls():
    """From uniform weights, round by round."""
    log_likelihood = 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=F64)

    def total(w):
        return float(torch.logsumexp(log_likelihood + w.log(), 1).sum())

    values = [total(ensemble_weights(log_likelihood, iterations=k)) for k in range(0, 40, 4)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))
    assert values[-1] > values[0] + 1


def test_images_of_no_state_are_refused():
    """They would make the likelihood zero."""
    with pytest.raises(BadInput, match="finite"):
        ensemble_weights(torch.full((1, 2), -torch.inf))
