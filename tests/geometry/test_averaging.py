"""Laws of the means of rotations."""

import math

import pytest
import torch
from hypothesis import given

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import (
    average,
    chordal_mean,
    conjugate_average,
    geodesic_mean,
    geodesic_median,
    nearest_rotation,
    quaternion_mean,
)
from cryorbit.geometry.distance import distance
from cryorbit.geometry.rotations import (
    axis_rotation,
    frobenius_squared,
    geodesic_angle,
    matrix_to_rotvec,
    random_rotations,
    rotvec_to_matrix,
)
from laws import HALF_DIGITS, ROUND_OFF, rotations

F64 = torch.float64
EXACT = ROUND_OFF[F64]
MEANS = [chordal_mean, geodesic_mean, geodesic_median, quaternion_mean]
CHOICES = [(metric, p) for metric in ("geodesic", "chordal", "quaternion") for p in (1, 2)]


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


def _about_one_axis(*degrees):
    return axis_rotation("z", torch.deg2rad(torch.tensor(degrees, dtype=F64)))


@pytest.mark.parametrize(
    ("metric", "p", "expected"),
    [("geodesic", 2, 20.0), ("quaternion", 2, 19.92282), ("chordal", 2, 19.678297), ("geodesic", 1, 10.0)],
)
def test_published_means_of_three_turns(metric, p, expected):
    """0, 10 and 50 degrees about one axis: four means, four answers."""
    found = average(_about_one_axis(0.0, 10.0, 50.0), metric=metric, p=p)
    angle = torch.rad2deg(matrix_to_rotvec(found))
    # Weiszfeld's iteration walks to a data point slowly; the others are as printed.
    _close(angle, torch.tensor([0.0, 0.0, expected], dtype=F64), 1e-4 if p == 1 else 6e-6)


def test_closed_forms_of_the_means_of_turns():
    """Chordal: the angle of the mean of e^(i t); quaternion: twice that of the mean of e^(i t / 2)."""
    turns = torch.tensor([0.0, 10.0, 50.0], dtype=F64)
    rad = torch.deg2rad(turns)
    cloud = _about_one_axis(*turns.tolist())
    chordal = torch.atan2(torch.sin(rad).sum(), torch.cos(rad).sum())
    quaternion = 2 * torch.atan2(torch.sin(rad / 2).sum(), torch.cos(rad / 2).sum())
    _close(chordal_mean(cloud), axis_rotation("z", chordal), EXACT)
    _close(quaternion_mean(cloud), axis_rotation("z", quaternion), EXACT)


@pytest.mark.parametrize(("metric", "p"), CHOICES)
def test_mean_of_a_symmetric_set_is_its_centre(metric, p):
    """S exp(+-0.4 e_i) averages to S, whatever is minimised."""
    centre = _cloud(1)[0]
    steps = 0.4 * torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)])
    _close(average(centre @ rotvec_to_matrix(steps), metric=metric, p=p), centre, 1e-10)


@pytest.mark.parametrize(("metric", "p"), CHOICES)
def test_average_minimises_the_chosen_sum(metric, p):
    """No rotation nearby has a smaller sum of weighted distances to the power p."""
    cloud = _cloud(spread=0.5, seed=3)
    generator = torch.Generator().manual_seed(0)
    weight = 0.5 + torch.rand(9, generator=generator, dtype=F64)
    best = average(cloud, metric=metric, p=p, weight=weight)

    def cost(r):
        return float((weight * distance(r, cloud, kind=metric) ** p).sum())

    for length in (1e-3, 1e-2, 0.1):
        for step in length * torch.randn(20, 3, generator=generator, dtype=F64):
            assert cost(best @ rotvec_to_matrix(step)) >= cost(best) - 1e-9


def test_only_l1_means_resist_outliers():
    """7 rotations 0.02 rad about one, 3 random ones: the median error over 20 draws is least for L1."""
    generator = torch.Generator().manual_seed(0)
    centre = random_rotations(20, generator=generator, dtype=F64)
    noise = rotvec_to_matrix(0.02 * torch.randn(20, 7, 3, generator=generator, dtype=F64))
    wrong = random_rotations(60, generator=generator, dtype=F64).reshape(20, 3, 3, 3)
    cloud = torch.cat([centre[:, None] @ noise, wrong], 1)
    median = {
        (metric, p): math.degrees(geodesic_angle(average(cloud, metric=metric, p=p), centre).median())
        for metric, p in CHOICES
    }
    for metric in ("geodesic", "chordal", "quaternion"):
        assert median[metric, 1] < 3.0
        assert median[metric, 2] > 2 * median[metric, 1]
    assert median["geodesic", 2] > median["chordal", 2]


@given(rotations())
def test_conjugate_average_finds_the_hand_eye_rotation(s):
    """R_i S = S L_i, exactly: S is found."""
    right = _cloud(6, spread=1.0)
    _close(conjugate_average(right, s.mT @ right @ s), s, 1e-10)


def test_conjugate_average_with_noise_and_weights():
    """Noise of 1 degree on 50 pairs leaves less; a pair of weight 0 does not count; batches are kept apart."""
    generator = torch.Generator().manual_seed(2)
    s = random_rotations(2, generator=generator, dtype=F64)
    right = random_rotations(100, generator=generator, dtype=F64).reshape(2, 50, 3, 3)
    noise = rotvec_to_matrix(math.radians(1.0) * torch.randn(2, 50, 3, generator=generator, dtype=F64))
    left = s[:, None].mT @ right @ s[:, None] @ noise
    weight = torch.ones(2, 50, dtype=F64)
    left[:, 0], weight[:, 0] = torch.eye(3, dtype=F64), 0.0
    assert torch.rad2deg(geodesic_angle(conjugate_average(right, left, weight=weight), s)).max() < 0.7


def test_unknown_means_are_refused():
    """A metric or a power that is not offered."""
    with pytest.raises(BadInput, match="p = 3"):
        average(torch.eye(3)[None], p=3)
