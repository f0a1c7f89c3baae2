"""Laws of the means of rotations."""

import pytest
import torch
from hypothesis import given

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import chordal_mean, geodesic_mean, geodesic_median, nearest_rotation
from cryorbit.geometry.rotations import (
    frobenius_squared,
    geodesic_angle,
    matrix_to_rotvec,
    random_rotations,
    rotvec_to_matrix,
)
from laws import HALF_DIGITS, ROUND_OFF, rotations

F64 = torch.float64
EXACT = ROUND_OFF[F64]
MEANS = [chordal_mean, geodesic_mean, geodesic_median]


def _cloud(n=9, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = random_rotations(1, generator=generator, dtype=F64)
    return centre @ rotvec_to_matrix(spread * torch.randn(n, 3, generator=generator, dtype=F64))


def _close(a, b, atol):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("mean", MEANS)
@given(rotations(), rotations())
def test_mean_is_bi_equivariant(mean, g, h):
    """The mean of g R h is g (mean of R) h: no frame is preferred."""
    cloud = _cloud()
    _close(mean(g @ cloud @ h), g @ mean(cloud) @ h, HALF_DIGITS)


@pytest.mark.parametrize("mean", MEANS)
@given(rotations())
def test_mean_of_one_is_that_one(mean, r):
    """Copies of a rotation average to it."""
    _close(mean(r.expand(4, 3, 3)), r, EXACT)


@pytest.mark.parametrize("mean", MEANS)
def test_weights_count_copies(mean):
    """A rotation of weight 2 counts as two of weight 1; batches are averaged one by one."""
    cloud = _cloud()
    weight = torch.ones(9, dtype=F64)
    weight[2] = 2
    doubled = torch.cat([cloud, cloud[2:3]])
    _close(mean(cloud, weight=weight), mean(doubled), 1e-9)
    two = torch.stack([cloud, _cloud(seed=1)])
    _close(mean(two)[1], mean(two[1]), 1e-9)


def test_chordal_mean_is_the_nearest_rotation_to_the_arithmetic_mean():
    """Two independent ways: eigenvector of the quaternions, singular vectors of the matrices."""
    for seed in range(5):
        cloud = _cloud(spread=0.8, seed=seed)
        _close(chordal_mean(cloud), nearest_rotation(cloud.mean(0)), 1e-10)


@pytest.mark.parametrize(
    ("mean", "cost"),
    [
        (chordal_mean, lambda m, r: frobenius_squared(m, r).sum()),
        (geodesic_mean, lambda m, r: (geodesic_angle(m, r) ** 2).sum()),
        (geodesic_median, lambda m, r: geodesic_angle(m, r).sum()),
    ],
)
def test_mean_minimises_its_cost(mean, cost):
    """No rotation nearby does better."""
    cloud = _cloud(spread=0.5, seed=3)
    best = mean(cloud)
    generator = torch.Generator().manual_seed(0)
    for length in (1e-3, 1e-2, 0.1):
        for step in length * torch.randn(20, 3, generator=generator, dtype=F64):
            assert cost(best @ rotvec_to_matrix(step), cloud) >= cost(best, cloud) - 1e-9


def test_geodesic_mean_has_no_net_pull():
    """The logarithms seen from the mean add up to zero."""
    cloud = _cloud()
    _close(matrix_to_rotvec(geodesic_mean(cloud).mT @ cloud).sum(0), torch.zeros(3, dtype=F64), 1e-9)


def test_median_resists_outliers():
    """Two rotations of ten far away hardly move the median."""
    cloud = _cloud(n=10, spread=0.01)
    truth = chordal_mean(cloud[:8])
    spoilt = cloud.clone()
    spoilt[8:] = spoilt[8:] @ rotvec_to_matrix(torch.tensor([2.0, 0.0, 0.0], dtype=F64))
    assert geodesic_angle(geodesic_median(spoilt), truth) < 0.02
    assert geodesic_angle(chordal_mean(spoilt), truth) > 0.1


def test_nearest_rotation_is_proper():
    """Of a reflection too, the nearest rotation has determinant 1; of a rotation it is that rotation."""
    mirror = torch.diag(torch.tensor([1.0, 0.9, -1.1], dtype=F64))
    assert torch.linalg.det(nearest_rotation(mirror)) > 0
    r = _cloud()
    _close(nearest_rotation(3 * r), r, EXACT)


def test_senseless_averages_are_refused():
    """No rotations, or no weight, is named."""
    with pytest.raises(BadInput, match="at least one"):
        chordal_mean(torch.zeros(0, 3, 3))
    with pytest.raises(BadInput, match="not all 0"):
        chordal_mean(torch.eye(3)[None], weight=torch.zeros(1))
