"""Laws of the matrix-normal distribution."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from cryorbit.analysis.matrix_normal import (
    matrix_normal_log_prob,
    matrix_normal_parameters,
    matrix_normal_sample,
)
from cryorbit.errors import BadInput

F64 = torch.float64


def _covariance(n, seed):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return a @ a.T + 0.3 * torch.eye(n, dtype=F64)


def _model():
    mean = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return mean, _covariance(4, 1), _covariance(3, 2)


def test_density_is_that_of_the_stacked_columns():
    """MN(M, U, V) of X is N(vec M, V kron U) of vec X; the factor between U and V does not matter."""
    mean, u, v = _model()
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(3), dtype=F64)
    found = matrix_normal_log_prob(x, mean, u, v)
    stacked = MultivariateNormal(mean.T.flatten(), torch.kron(v, u))
    torch.testing.assert_close(found, stacked.log_prob(x.mT.flatten(1)))
    torch.testing.assert_close(matrix_normal_log_prob(x, mean, 3 * u, v / 3), found)


def test_draws_have_the_covariance():
    """Of vec X, V kron U, to the error of 20,000 draws."""
    mean, u, v = _model()
    x = matrix_normal_sample(20_000, mean, u, v, generator=torch.Generator().manual_seed(4))
    vec = (x - mean).mT.flatten(1)
    expected = torch.kron(v, u)
    error = (vec.T @ vec / len(vec) - expected).abs()
    scale = torch.sqrt((expected.diagonal()[:, None] * expected.diagonal() + expected**2) / len(vec))
    assert (error < 5 * scale).all()


def test_count_of_parameters():
    """n (n + 1) / 2 + p (p + 1) / 2 numbers in two symmetric matrices."""
    u, v = torch.triu_indices(7, 7), torch.triu_indices(3, 3)
    assert matrix_normal_parameters(7, 3) == u.shape[1] + v.shape[1]


def test_indefinite_covariances_are_refused():
    """By name."""
    with pytest.raises(BadInput, match="columns"):
        matrix_normal_log_prob(torch.zeros(2, 2), torch.zeros(2, 2), torch.eye(2), -torch.eye(2))
