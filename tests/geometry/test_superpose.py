"""Laws of superposition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import (
    geodesic_angle,
    quaternion_to_matrix,
    random_rotations,
    rotvec_to_matrix,
)
from cryorbit.geometry.superpose import align_frames, kabsch, profile_matrix, superpose
from cryorbit.geometry.superpose_bayes import superpose_bayes
from laws import ROUND_OFF, rotations

F64 = torch.float64


def _points(n=7, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


@given(rotations(), st.tuples(*[st.floats(-100, 100)] * 3))
def test_a_rigid_motion_is_found(rotation, shift):
    """Points moved by R and t are superposed by R and t, with nothing left."""
    points, translation = _points(), torch.tensor(shift, dtype=F64)
    fixed = points @ rotation.mT + translation
    found = kabsch(points, fixed)
    torch.testing.assert_close(found.rotation, rotation, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.translation, translation, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.apply(points), fixed, rtol=0, atol=1e-10)
    assert found.rmsd < 1e-10


def test_mirror_images_are_not_superposed():
    """The answer is a rotation even where a reflection would fit better."""
    points = _points()
    found = kabsch(points, points * torch.tensor([1.0, 1.0, -1.0], dtype=F64))
    assert abs(torch.linalg.det(found.rotation) - 1) < ROUND_OFF[F64]
    assert found.rmsd > 0.1


def test_no_other_motion_is_nearer():
    """Noise added, the found motion has the least squared distance among many near it."""
    points = _points(20)
    fixed = points.roll(1, dims=-1) + 0.1 * _points(20, seed=1)
    found = kabsch(points, fixed)
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        turn = rotvec_to_matrix(0.05 * torch.randn(3, generator=generator, dtype=F64))
        jump = 0.05 * torch.randn(3, generator=generator, dtype=F64)
        other = points @ (turn @ found.rotation).mT + found.translation + jump
        assert ((other - fixed) ** 2).sum(-1).mean().sqrt() >= found.rmsd


def test_weights_and_batches():
    """A point of weight 0 does not count, and each member of a batch is superposed by itself."""
    points = torch.stack([_points(), _points(seed=1)])
    fixed = points.clone()
    fixed[:, 0] += 50
    weight = torch.ones(2, 7, dtype=F64)
    weight[:, 0] = 0
    found = kabsch(points, fixed, weight=weight)
    assert found.rmsd.shape == (2,)
    assert found.rmsd.max() < 1e-10


def test_senseless_sets_are_refused():
    """No points, or no weight, is named."""
    with pytest.raises(BadInput, match="no points"):
        kabsch(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(BadInput, match="not all 0"):
        kabsch(_points(), _points(), weight=torch.zeros(7, dtype=F64))


def _noisy(seed, n=12):
    """Points, and the same turned, moved and blurred; weights."""
    points, generator = _points(n, seed), torch.Generator().manual_seed(100 + seed)
    fixed = points.roll(1, dims=-1) + 0.3 * torch.randn(n, 3, generator=generator, dtype=F64)
    return points, fixed, 0.2 + torch.rand(n, generator=generator, dtype=F64)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"scale": True}, {"reflection": True}])
def test_quaternions_and_singular_values_agree(seed, options):
    """Two independent ways to the same motion, weights, scale and reflections included."""
    points, fixed, weight = _noisy(seed)
    if "reflection" in options:
        fixed = fixed * torch.tensor([1.0, 1.0, -1.0], dtype=F64)
    a, b = (superpose(points, fixed, weight=weight, method=m, **options) for m in ("svd", "quaternion"))
    torch.testing.assert_close(a.rotation, b.rotation, rtol=0, atol=1e-11)
    torch.testing.assert_close(a.rmsd, b.rmsd, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_eigenvalue_is_the_rmsd(seed):
    """RMSD^2 = (|X|^2 + |Y|^2 - 2 lambda) / n for centred sets; q^T N q = trace(R(q)^T C)."""
    points, fixed, _ = _noisy(seed)
    a, b = points - points.mean(0), fixed - fixed.mean(0)
    n = profile_matrix(b.T @ a)
    largest = torch.linalg.eigvalsh(n)[-1]
    rmsd = superpose(points, fixed, method="quaternion").rmsd
    torch.testing.assert_close(rmsd**2, ((a**2).sum() + (b**2).sum() - 2 * largest) / len(points))
    q = torch.nn.functional.normalize(
        torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=F64), dim=0
    )
    torch.testing.assert_close(q @ n @ q, (quaternion_to_matrix(q) * (b.T @ a)).sum())


@pytest.mark.parametrize("method", ["svd", "quaternion"])
@given(rotation=rotations(), size=st.floats(0.1, 10))
def test_a_scale_and_a_reflection_are_found(method, rotation, size):
    """Where they are asked for; a reflection in the data then leaves nothing, and without it det stays 1."""
    points = _points()
    hand = torch.tensor([1.0, 1.0, -1.0], dtype=F64)
    fixed = size * (points * hand) @ rotation.mT + 3.0
    found = superpose(points, fixed, method=method, scale=True, reflection=True)
    torch.testing.assert_close(found.rotation, rotation * hand, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.scale, torch.tensor(size, dtype=F64), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.apply(points), fixed, rtol=0, atol=1e-8)
    proper = superpose(points, fixed, method=method, scale=True)
    assert abs(torch.linalg.det(proper.rotation) - 1) < ROUND_OFF[F64] * 10
    assert proper.rmsd > found.rmsd


@given(rotations())
def test_frames_are_aligned(rotation):
    """R moving_i = fixed_i, and nothing else is nearer in the chordal sense."""
    generator = torch.Generator().manual_seed(0)
    moving = random_rotations(5, generator=generator, dtype=F64)
    torch.testing.assert_close(align_frames(moving, rotation @ moving), rotation, rtol=0, atol=1e-10)
    fixed = rotation @ moving @ rotvec_to_matrix(0.3 * torch.randn(5, 3, generator=generator, dtype=F64))
    best = align_frames(moving, fixed)
    for step in 0.05 * torch.randn(20, 3, generator=generator, dtype=F64):
        other = rotvec_to_matrix(step) @ best
        assert ((other @ moving - fixed) ** 2).sum() >= ((best @ moving - fixed) ** 2).sum()


def _two_domains(seed=0):
    """60 points of a core that keeps its shape to 0.1, 30 of a domain that turned by 40 degrees."""
    generator = torch.Generator().manual_seed(seed)
    points = 10 * torch.randn(90, 3, generator=generator, dtype=F64)
    moved = points.clone()
    hinge = rotvec_to_matrix(torch.tensor([0.0, 0.7, 0.0], dtype=F64))
    moved[60:] = (moved[60:] - 8) @ hinge.mT + 8
    truth = random_rotations(1, generator=generator, dtype=F64)[0]
    fixed = (moved + 0.1 * torch.randn(90, 3, generator=generator, dtype=F64)) @ truth.mT + 5
    return points, fixed, truth


@pytest.mark.parametrize("seed", range(3))
def test_a_moved_domain_does_not_drag_the_core(seed):
    """Core RMSD far below that of the plain superposition, and the domain's sigmas far above the core's."""
    points, fixed, truth = _two_domains(seed)
    plain, bayes = kabsch(points, fixed), superpose_bayes(points, fixed)

    def core(motion):
        return float(((motion.apply(points) - fixed)[:60] ** 2).sum(-1).mean().sqrt())

    assert core(bayes.motion) < 0.2 * core(plain)
    assert geodesic_angle(bayes.motion.rotation, truth) < 0.2 * geodesic_angle(plain.rotation, truth)
    assert bayes.sigma[60:].median() > 10 * bayes.sigma[:60].median()
    # Two noisy copies, one exact here: 0.1 / sqrt2 per coordinate and copy.
    assert float(bayes.sigma[:60].median()) == pytest.approx(0.1 / 2**0.5, rel=0.4)


def test_the_likelihood_never_falls():
    """Of the displacements, from the first round on: EM."""
    points, fixed, _ = _two_domains()
    rounds = superpose_bayes(points, fixed, iterations=40).log_likelihood
    assert (rounds.diff() >= -1e-9 * rounds.abs().max()).all()


def test_equal_sigmas_are_the_plain_superposition():
    """Many degrees of freedom: all weights are one, the motion is Kabsch's; batches are kept apart."""
    points, fixed, _ = _noisy(0)
    plain, bayes = kabsch(points, fixed), superpose_bayes(points, fixed, dof=1e12)
    torch.testing.assert_close(bayes.motion.rotation, plain.rotation, rtol=0, atol=1e-9)
    expected = plain.rmsd / 6**0.5  # |d|^2 = 3 coordinates of variance 2 sigma^2
    torch.testing.assert_close(bayes.sigma, expected.expand(len(points)), rtol=1e-6, atol=0)
    batch = superpose_bayes(torch.stack([points, fixed]), torch.stack([fixed, points]))
    one = superpose_bayes(fixed, points)
    torch.testing.assert_close(batch.sigma[1], one.sigma)


def test_exact_copies_are_superposed_without_a_crash():
    """Nothing left is no division by zero."""
    points = _points()
    found = superpose_bayes(points, points + 2.0)
    assert torch.isfinite(found.sigma).all()
    assert found.motion.rmsd < 1e-10


def test_senseless_options_are_refused():
    """Methods by name; Bayesian superposition of three points."""
    with pytest.raises(Exception, match=r"not one of|method"):
        superpose(_points(), _points(), method="guess")
    with pytest.raises(BadInput, match="at least 4"):
        superpose_bayes(_points(3), _points(3))


def test_a_third_of_the_points_may_move():
    """50 points of 140 turned by 35 degrees about a hinge: the others are left with their noise alone."""
    generator = torch.Generator().manual_seed(7)
    points = 6 * torch.randn(140, 3, generator=generator, dtype=F64)
    points[90:] += torch.tensor([20.0, 0.0, 0.0], dtype=F64)
    moved = points.clone()
    hinge = rotvec_to_matrix(torch.tensor([0.0, 0.0, 0.61], dtype=F64))
    moved[90:] = (points[90:] - points[90]) @ hinge.mT + points[90]
    moved = moved + 0.35 * torch.randn(140, 3, generator=generator, dtype=F64)
    found = superpose_bayes(moved, points)
    left = (found.motion.apply(moved) - points)[:90]
    assert float((left**2).sum(-1).mean().sqrt()) == pytest.approx(0.35 * 3**0.5, rel=0.15)
