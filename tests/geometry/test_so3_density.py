"""Laws of densities on the rotations."""

import math

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import nearest_rotation
from cryorbit.geometry.rotations import matrix_to_quaternion, random_rotations, rotvec_to_matrix
from cryorbit.geometry.so3_density import (
    LOG_VOLUME,
    exp_log_volume,
    matrix_fisher_entropy,
    matrix_fisher_log_normaliser,
    matrix_fisher_log_prob,
    matrix_fisher_mean,
    matrix_fisher_sample,
    wrapped_normal_log_prob,
    wrapped_normal_sample,
)
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.geometry.superpose import profile_matrix

F64 = torch.float64
GRID_ERROR = 2e-3
"""Integral by 36,864 cells of 7.5 degrees, of densities some 30 degrees wide."""


def _rotation(seed):
    return random_rotations(1, generator=torch.Generator().manual_seed(seed), dtype=F64)[0]


def _parameter(seed, s):
    return _rotation(seed) @ torch.diag(torch.tensor(s, dtype=F64)) @ _rotation(seed + 50)


@pytest.fixture(scope="module")
def grid():
    return so3_grid(3, dtype=F64).flatten(0, 1)


SHAPES = [(0.0, 0.0, 0.0), (3.0, 2.0, 1.0), (4.0, 1.0, -0.5), (5.0, 5.0, 5.0), (2.0, 0.0, 0.0)]


@pytest.mark.parametrize("s", SHAPES)
def test_matrix_fisher_integrates_to_one(grid, s):
    """Over the nested grid; its mean and entropy are the grid's."""
    f = _parameter(1, s)
    log_p = matrix_fisher_log_prob(grid, f)
    cell = 8 * math.pi**2 / len(grid)
    p = log_p.exp() * cell
    assert p.sum().item() == pytest.approx(1.0, abs=GRID_ERROR)
    mean = (p[:, None, None] * grid).sum(0)
    torch.testing.assert_close(matrix_fisher_mean(f), mean, rtol=0, atol=2 * GRID_ERROR)
    assert matrix_fisher_entropy(f).item() == pytest.approx(-(p * log_p).sum().item(), abs=10 * GRID_ERROR)


def test_nothing_known_is_uniform():
    """F = 0: log p = -log 8 pi^2 everywhere, entropy its opposite."""
    zero = torch.zeros(3, 3, dtype=F64)
    assert matrix_fisher_log_prob(_rotation(0), zero).item() == pytest.approx(-math.log(8 * math.pi**2))
    assert matrix_fisher_entropy(zero).item() == pytest.approx(LOG_VOLUME)


def test_mode_bi_equivariance_and_bingham():
    """The mode is the nearest rotation; A F B moves it; on quaternions it is exp(q^T N q)."""
    f, a, b = _parameter(2, (4.0, 3.0, -1.0)), _rotation(3), _rotation(4)
    r = random_rotations(200, generator=torch.Generator().manual_seed(5), dtype=F64)
    log_p = matrix_fisher_log_prob(r, f)
    assert (log_p <= matrix_fisher_log_prob(nearest_rotation(f), f)).all()
    torch.testing.assert_close(matrix_fisher_log_prob(a @ r @ b, a @ f @ b), log_p)
    q = matrix_to_quaternion(r)
    bingham = (q @ profile_matrix(f) * q).sum(-1)
    torch.testing.assert_close(bingham - bingham[0], log_p - log_p[0])


@pytest.mark.parametrize("kappa", [100.0, 1000.0])
def test_sharp_matrix_fisher_is_a_normal_in_the_tangent(kappa):
    """F = kappa I: tr(F^T R) = kappa (1 + 2 cos t), a Gaussian of variance 1 / (2 kappa) per axis."""
    log_c = matrix_fisher_log_normaliser(kappa * torch.eye(3, dtype=F64)).item()
    assert log_c == pytest.approx(3 * kappa + 1.5 * math.log(math.pi / kappa), abs=2 / kappa)


def test_draws_have_the_mean():
    """20,000 draws against E[R]; a density too sharp to reject from is refused."""
    f = _parameter(6, (3.0, 2.0, -1.0))
    r = matrix_fisher_sample(20_000, f, generator=torch.Generator().manual_seed(7))
    assert (r.mean(0) - matrix_fisher_mean(f)).abs().max() < 5 / 20_000**0.5
    with pytest.raises(BadInput, match="wrapped normal"):
        matrix_fisher_sample(1, 500 * torch.eye(3, dtype=F64), generator=torch.Generator())


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_wrapped_normal_integrates_to_one(grid, sigma):
    """Over the nested grid; wide enough it is nearly uniform."""
    log_p = wrapped_normal_log_prob(grid, _rotation(8), sigma_rad=sigma)
    # Where sigma is large the density has a pole at the mean, |v|^2 over a vanishing volume: integrable, but the
    # grid sees it coarsely.
    error = GRID_ERROR if sigma < 1 else 3e-2
    assert (log_p.exp().mean() * 8 * math.pi**2).item() == pytest.approx(1.0, abs=error)


def test_wrapped_normal_draws_have_the_density(grid):
    """Share of draws within 45 degrees of a direction against the integral over the grid."""
    mean, sigma = _rotation(9), 0.6
    draws = wrapped_normal_sample(20_000, mean, sigma_rad=sigma, generator=torch.Generator().manual_seed(1))
    centre = mean @ rotvec_to_matrix(torch.tensor([0.5, 0.0, 0.2], dtype=F64))

    def near(r):
        return ((centre * r).sum((-2, -1)) - 1) / 2 > math.cos(math.pi / 4)

    p = wrapped_normal_log_prob(grid, mean, sigma_rad=sigma).exp()
    expected = float(p[near(grid)].sum() / p.sum())
    assert float(near(draws).double().mean()) == pytest.approx(
        expected, abs=0.02
    )  # the grid's edge, and draws


def test_volume_of_the_exponential_map():
    """2 (1 - cos t) / t^2, smooth through 0, by automatic differentiation too."""
    t = torch.tensor([0.0, 1e-5, 1e-2, 1.0, 3.0], dtype=F64)
    v = t[:, None] * torch.tensor([0.6, 0.0, 0.8], dtype=F64)
    law = torch.where(t > 1e-4, 2 * (1 - torch.cos(t)) / t.clamp_min(1e-9) ** 2, 1 - t**2 / 12)
    torch.testing.assert_close(exp_log_volume(v), law.log(), rtol=0, atol=1e-11)
    v = v[0].clone().requires_grad_()
    exp_log_volume(v).backward()
    assert torch.isfinite(v.grad).all()
