"""Laws of consistent subsets: what neither frame, hand nor order changes, and mixtures that are known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from jaxtyping import TypeCheckError
from torch import Tensor

from cryorbit.analysis.pose_error import CONSISTENT_BELOW, pose_errors
from cryorbit.analysis.pose_history import PoseSnapshot, pose_history
from cryorbit.analysis.pose_subsets import ConsistentSubsets, consistent_subsets
from cryorbit.data import Pose
from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.geometry.rotations import random_rotations, rotvec_to_matrix
from cryorbit.geometry.symmetry import point_group
from laws import rotations

AT_20_DEG = 3
"""Place of d = 0.25 in the sweep."""
BY_CHANCE = 0.05
"""Views near a mirror plane agree in both hands: 2 to 4 % of uniform ones."""
FLIP = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))


def draw(n: int, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return random_rotations(n, generator=generator, dtype=torch.float64), generator


def noisy(rotation: Tensor, sd_rad: float, generator: torch.Generator) -> Tensor:
    vector = sd_rad * torch.randn(len(rotation), 3, generator=generator, dtype=torch.float64)
    return rotvec_to_matrix(vector) @ rotation


def reflection(normal: Tensor) -> Tensor:
    return torch.eye(3, dtype=torch.float64) - 2 * normal[:, None] * normal


def hands_mixed(truth: Tensor, share_other: float, generator: torch.Generator) -> Tensor:
    """Poses F R M of the same images in a map with mirror plane M, for a share of them."""
    other = FLIP @ truth @ reflection(torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64))
    chosen = torch.rand(len(truth), generator=generator) < share_other
    return noisy(torch.where(chosen[:, None, None], other, truth), 0.05, generator)


def sizes_of(found: ConsistentSubsets) -> Tensor:
    return torch.stack([found.size_a, found.size_b])


def test_sizes_are_counts_by_the_definition():
    """|S_i| counts the j with |R_pred,j Q_i - R_j|^2 below eps, Q_i = R_pred,i^T R_i, in either hand."""
    truth, generator = draw(40, 0)
    predicted = hands_mixed(truth, 0.4, generator)
    found = consistent_subsets(predicted, truth)
    for size, rotation in ((found.size_a, predicted), (found.size_b, mirror_pose_rotation(predicted))):
        gauge = rotation.mT @ truth
        d = ((rotation[None] @ gauge[:, None] - truth) ** 2).sum((-1, -2))
        expected = torch.stack([(d < below).double().mean(1) for below in found.below])
        torch.testing.assert_close(size, expected, rtol=0, atol=1e-12)


@settings(max_examples=6)
@given(rotations())
def test_the_frame_of_the_map_does_not_matter(q):
    """R_i -> R_i Q leaves all sizes, fractions and groups, and turns the gauges by Q."""
    truth, generator = draw(60, 1)
    predicted = hands_mixed(truth, 0.4, generator)
    here, there = consistent_subsets(predicted, truth), consistent_subsets(predicted @ q, truth)
    torch.testing.assert_close(sizes_of(here), sizes_of(there), rtol=0, atol=1e-12)
    assert here.summary() == there.summary()
    torch.testing.assert_close(there.groups[0].gauge, q.T @ here.groups[0].gauge, rtol=0, atol=1e-9)


def test_the_order_of_the_particles_does_not_matter():
    """Permuted particles have permuted sizes and the same groups."""
    truth, generator = draw(80, 2)
    predicted = hands_mixed(truth, 0.4, generator)
    order = torch.randperm(80, generator=generator)
    here, there = consistent_subsets(predicted, truth), consistent_subsets(predicted[order], truth[order])
    torch.testing.assert_close(sizes_of(here)[..., order], sizes_of(there), rtol=0, atol=1e-12)
    assert [g.share for g in here.groups] == pytest.approx([g.share for g in there.groups])


def test_mirrored_poses_exchange_the_hands():
    """F R F for R exchanges size_a with size_b and the groups' hands; size, union and state stay."""
    truth, generator = draw(200, 3)
    predicted = hands_mixed(truth, 0.3, generator)
    here = consistent_subsets(predicted, truth)
    there = consistent_subsets(mirror_pose_rotation(predicted), truth)
    torch.testing.assert_close(here.size_a, there.size_b, rtol=0, atol=1e-12)
    torch.testing.assert_close(here.size, there.size, rtol=0, atol=1e-12)
    torch.testing.assert_close(here.fraction_a, there.fraction_b, rtol=0, atol=1e-12)
    torch.testing.assert_close(here.fraction_union, there.fraction_union, rtol=0, atol=1e-12)
    assert [g.hand for g in here.groups] == [-g.hand for g in there.groups]
    assert here.verdict() == there.verdict()


@pytest.mark.parametrize("share", [0.2, 0.48])
def test_mixed_hands_have_their_fractions(share):
    """A share p of the poses in the other hand: f_B = p, f_A = 1 - p, union 1, and the plane that mixes them."""
    truth, generator = draw(1500, 4)
    found = consistent_subsets(hands_mixed(truth, share, generator), truth)
    assert found.kind == "hands mixed"
    assert [g.hand for g in found.groups[:2]] == [1, -1]
    assert float(found.fraction_a[AT_20_DEG]) == pytest.approx(1 - share, abs=BY_CHANCE)
    assert float(found.fraction_b[AT_20_DEG]) == pytest.approx(share, abs=BY_CHANCE)
    assert float(found.fraction_union[AT_20_DEG]) > 0.999
    assert "Two hands mixed" in found.verdict()
    normal = found.mixing_plane()
    assert normal is not None
    assert abs(float(normal @ normal.new_tensor([0.48, 0.6, 0.64]))) > 0.999


def test_a_false_axis_is_two_frames_in_one_hand():
    """Half of the poses as R C with C a half turn: two groups of one hand, half a turn apart, no plane."""
    truth, generator = draw(900, 5)
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    predicted = noisy(
        torch.where(torch.arange(900)[:, None, None] % 2 == 0, truth @ turn, truth), 0.05, generator
    )
    found = consistent_subsets(predicted, truth)
    assert found.kind == "frames mixed"
    assert "180 degrees apart" in found.verdict()
    assert found.mixing_plane() is None
    assert float(found.size[AT_20_DEG].median()) == pytest.approx(0.5, abs=0.02)


def test_states_have_their_names():
    """All right, some astray, all at random."""
    truth, generator = draw(600, 6)
    right = noisy(truth, 0.03, generator)
    random = random_rotations(600, generator=generator, dtype=torch.float64)
    assert consistent_subsets(right, truth).verdict().startswith("One hand: 100 %")
    astray = torch.where(torch.rand(600, generator=generator)[:, None, None] < 0.4, random, right)
    assert consistent_subsets(astray, truth).kind == "astray"
    assert consistent_subsets(random, truth).kind == "none"


def test_fractions_are_those_of_the_pose_errors():
    """f_A, f_B and their union at 20 degrees are hand_a, hand_b and hand_union of `pose_errors`."""
    truth, generator = draw(500, 7)
    predicted = hands_mixed(truth, 0.4, generator)
    found = consistent_subsets(predicted, truth)
    errors = pose_errors(Pose(predicted, truth[:, 0, :2]), Pose(truth, truth[:, 0, :2]))
    assert float(found.below[AT_20_DEG]) == CONSISTENT_BELOW
    ours = [float(f[AT_20_DEG]) for f in (found.fraction_a, found.fraction_b, found.fraction_union)]
    assert ours == pytest.approx([errors.hand_a, errors.hand_b, errors.hand_union])


def test_equivalent_poses_of_a_symmetric_particle_agree():
    """R S for any S of the group is in the one group when the group is known."""
    truth, generator = draw(300, 8)
    group = point_group("D2")
    pick = torch.randint(len(group), (300,), generator=generator)
    predicted = noisy(truth @ group[pick], 0.03, generator)
    assert consistent_subsets(predicted, truth, group="D2").groups[0].share == 1.0
    assert consistent_subsets(predicted, truth).groups[0].share < 0.5


def test_history_says_when_the_hands_part():
    """Snapshots from mixed to one hand: MedSE is low all along, MSE falls at the end, hands named by the end."""
    truth, generator = draw(400, 9)
    shots = []
    for time, share in ((10.0, 0.45), (20.0, 0.45), (30.0, 0.2), (40.0, 0.0), (50.0, 0.0)):
        row = torch.randperm(400, generator=generator)[:350]
        rotation = mirror_pose_rotation(hands_mixed(truth, share, generator))
        shots.append(PoseSnapshot(time, row, rotation[row]))
    history = pose_history(iter(shots), truth)
    assert history.converged_at() == 40.0
    assert bool((history.medse < 0.1).all())
    assert bool((history.mse[:3] > 0.5).all())
    assert float(history.fraction_a[-1]) == 1.0
    assert float(history.fraction_b[0]) == pytest.approx(0.45, abs=0.1)
    assert bool((history.hand[-1] == 1).all())
    assert history.size.shape == (5, 300)


def test_rows_must_match():
    """Poses are compared row by row, and a snapshot names rows that there are."""
    truth, _ = draw(10, 10)
    with pytest.raises((BadInput, TypeCheckError)):
        consistent_subsets(truth[:9], truth)
    with pytest.raises(BadInput, match="10 true rotations"):
        pose_history([PoseSnapshot(0.0, torch.tensor([12]), truth[:1])], truth)
    with pytest.raises(BadInput, match="no snapshot"):
        pose_history([], truth)
