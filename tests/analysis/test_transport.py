"""Closed forms of optimal transport."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

from cryorbit.analysis.transport import (
    bures_squared,
    mixture_wasserstein,
    sinkhorn,
    sliced_wasserstein,
    wasserstein_line,
)
from cryorbit.errors import BadInput
from cryorbit.geometry.directions import fibonacci_directions

F64 = torch.float64


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize(("turn", "expected"), [(0.0, 0.0), (45.0, 0.472307), (90.0, 1.0)])
def test_published_distances_of_an_ellipse_from_itself_turned(turn, expected):
    """diag(2, 1/2) against the same by 0, 45 and 90 degrees."""
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    r = torch.tensor([[c, -s], [s, c]], dtype=F64)
    a, zero = torch.diag(torch.tensor([2.0, 0.5], dtype=F64)), torch.zeros(2, dtype=F64)
    assert bures_squared(zero, a, zero, r @ a @ r.T).item() == pytest.approx(expected, abs=6e-7)


def test_bures_laws():
    """Symmetric; |d|^2 for a translation; sums of squared root differences where the axes agree."""
    a, b = (m @ m.T for m in (_randn(3, 3, seed=1), _randn(3, 3, seed=2)))
    mean, other = _randn(3, seed=3), _randn(3, seed=4)
    torch.testing.assert_close(bures_squared(mean, a, other, b), bures_squared(other, b, mean, a))
    torch.testing.assert_close(
        bures_squared(mean, a, other, a), ((mean - other) ** 2).sum(), rtol=0, atol=1e-7
    )
    x, y = torch.rand(2, 3, generator=torch.Generator().manual_seed(5), dtype=F64)
    law = ((x.sqrt() - y.sqrt()) ** 2).sum()
    torch.testing.assert_close(bures_squared(mean, torch.diag(x), mean, torch.diag(y)), law)


def test_on_a_line_sorting_is_optimal():
    """Equal weights: the mean square of sorted differences; weights of 2 count as copies; any sizes."""
    x, y = _randn(40, seed=1), 2 * _randn(40, seed=2) + 1
    law = ((x.sort().values - y.sort().values) ** 2).mean()
    torch.testing.assert_close(wasserstein_line(x, y), law)
    torch.testing.assert_close(wasserstein_line(x, x + 3), torch.tensor(9.0, dtype=F64))
    weight = torch.ones(40, dtype=F64)
    weight[:7] = 2
    doubled = torch.cat([x, x[:7]])
    torch.testing.assert_close(wasserstein_line(x, y, weight_x=weight), wasserstein_line(doubled, y))
    # W_1 = W_2 between a point and a point; and for two points each the quantiles can be read off by hand.
    a, b = torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([0.0, 4.0], dtype=F64)
    w = torch.tensor([0.25, 0.75], dtype=F64)
    assert wasserstein_line(a, b, weight_x=w).item() == pytest.approx(0.25 * 1 + 0.5 * 9)
    assert wasserstein_distance([0, 1], [0, 4], [0.25, 0.75]) == pytest.approx(0.25 * 1 + 0.5 * 3)


@pytest.mark.parametrize("dim", [2, 3])
def test_slices_see_a_translation(dim):
    """The mean over directions of (u . d)^2 is |d|^2 / dim."""
    if dim == 3:
        directions = fibonacci_directions(500)
    else:
        angle = torch.arange(90, dtype=F64) * math.pi / 90
        directions = torch.stack([angle.cos(), angle.sin()], -1)
    x, d = _randn(30, dim), torch.tensor([2.0, -1.0, 0.5], dtype=F64)[:dim]
    found = sliced_wasserstein(x, x + d, directions)
    assert found.item() == pytest.approx((d @ d).item() / dim, rel=1e-3)  # directions balance to 1e-3
    w = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=F64)
    weighted = sliced_wasserstein(x, x + d, directions, weight_x=w, weight_y=w)
    assert weighted.item() == pytest.approx((d @ d).item() / dim, rel=1e-3)


def test_sinkhorn_tends_to_the_best_assignment():
    """The plan has its marginals; its cost falls towards that of the optimal matching as epsilon does."""
    x, y = _randn(12, 2, seed=1), _randn(12, 2, seed=2) + 1
    cost = torch.cdist(x, y) ** 2
    row, column = linear_sum_assignment(cost.numpy())
    best = float(cost[row, column].mean())
    costs = []
    for epsilon in (1.0, 0.3, 0.05):
        plan = sinkhorn(cost, epsilon=epsilon, iterations=3000)
        torch.testing.assert_close(plan.sum(1), torch.full((12,), 1 / 12, dtype=F64), rtol=0, atol=1e-12)
        torch.testing.assert_close(plan.sum(0), torch.full((12,), 1 / 12, dtype=F64), rtol=0, atol=1e-4)
        costs.append(float((plan * cost).sum()))
    assert costs[0] > costs[1] > costs[2] > best - 1e-3
    assert costs[2] < 1.03 * best


def test_mixtures_move_gaussian_to_gaussian():
    """A translated mixture of well separated Gaussians costs |d|^2, one Gaussian each the Bures distance."""
    mean = 10 * torch.eye(3, dtype=F64)
    cov = 0.5 * torch.eye(3, dtype=F64).expand(3, 3, 3)
    d = torch.tensor([0.3, 0.2, -0.1], dtype=F64)
    moved = mixture_wasserstein(mean, cov, mean.flip(0) + d, cov, epsilon=0.05)
    assert moved.item() == pytest.approx((d @ d).item(), rel=1e-6)
    one = mixture_wasserstein(mean[:1], cov[:1], mean[1:2], 2 * cov[:1], epsilon=0.1)
    torch.testing.assert_close(one, bures_squared(mean[0], cov[0], mean[1], 2 * cov[0]))


def test_senseless_transport_is_refused():
    """No points, no weight, no epsilon."""
    with pytest.raises(BadInput, match="no points"):
        wasserstein_line(torch.zeros(0), torch.zeros(2))
    with pytest.raises(BadInput, match="not all 0"):
        wasserstein_line(torch.zeros(2), torch.zeros(2), weight_x=torch.zeros(2))
    with pytest.raises(BadInput, match="epsilon"):
        sinkhorn(torch.zeros(2, 2), epsilon=0.0)
