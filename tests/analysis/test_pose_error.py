"""Laws of pose errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from cryorbit.analysis.pose_error import PoseErrors, pose_errors
from cryorbit.data import Pose
from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.geometry.rotations import random_rotations, rotvec_to_matrix
from cryorbit.geometry.symmetry import point_group
from laws import rotations

GAUGE = 1e-9
"""Float64; distances enter squared and are differences of numbers near 6."""


def draw(n: int, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return random_rotations(n, generator=generator, dtype=torch.float64), generator


def noisy(rotation: Tensor, sd_rad: float, generator: torch.Generator) -> Tensor:
    vector = sd_rad * torch.randn(len(rotation), 3, generator=generator, dtype=torch.float64)
    return rotvec_to_matrix(vector) @ rotation


def poses(rotation: Tensor, shift_A: Tensor | None = None) -> Pose:
    return Pose(rotation, rotation.new_zeros(len(rotation), 2) if shift_A is None else shift_A)


def numbers(e: PoseErrors) -> Tensor:
    return torch.tensor([e.mse, e.medse, e.mse_refined, e.hand_union], dtype=torch.float64)


def test_equal_poses_have_no_error():
    """Every error of the truth against itself is zero, the hand is as given and all are consistent."""
    truth, generator = draw(200, 0)
    shift = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    e = pose_errors(poses(truth, shift), poses(truth, shift))
    assert e.mse < GAUGE
    assert e.hand == 1
    assert e.hand_a == e.hand_union == 1.0
    assert float(e.rotation_error_deg.max()) < 1e-4
    assert float(e.shift_error_A.max()) < GAUGE
    assert float(e.offset_A.norm()) < GAUGE


@settings(max_examples=8)
@given(rotations())
def test_the_frame_of_the_map_does_not_matter(q):
    """R_i -> R_i Q leaves every error as it is, and the gauge undoes Q."""
    truth, generator = draw(150, 1)
    predicted = noisy(truth, 0.05, generator)
    plain = pose_errors(poses(predicted), poses(truth))
    turned = pose_errors(poses(predicted @ q), poses(truth))
    torch.testing.assert_close(numbers(plain), numbers(turned), rtol=0, atol=GAUGE)
    torch.testing.assert_close(turned.gauge, q.T @ plain.gauge, rtol=0, atol=GAUGE)
    torch.testing.assert_close(turned.rotation, plain.rotation, rtol=0, atol=GAUGE)


def test_the_hand_of_the_map_does_not_matter_but_is_told():
    """F R F instead of R gives the same errors with hand -1 and the two hands' fractions exchanged."""
    truth, generator = draw(300, 2)
    predicted = noisy(truth, 0.05, generator)
    plain = pose_errors(poses(predicted), poses(truth))
    other = pose_errors(poses(mirror_pose_rotation(predicted)), poses(truth))
    torch.testing.assert_close(numbers(plain), numbers(other), rtol=0, atol=GAUGE)
    assert (plain.hand, other.hand) == (1, -1)
    assert (plain.hand_a, plain.hand_b) == (other.hand_b, other.hand_a)


def test_chance_is_six():
    """Independent uniform rotations: mean distance 6, candidates only a little below, no hand favoured."""
    truth, _ = draw(4000, 3)
    guess, _ = draw(4000, 4)
    e = pose_errors(poses(guess), poses(truth))
    assert e.mse_refined == pytest.approx(6.0, abs=0.15)
    assert 5.7 < e.mse < 6.0
    assert e.hand_union < 0.05


def test_a_known_error_is_found_again():
    """Rotation noise of sd s per axis gives mean d = 2 * 3 s^2, its median angle, and REL lies just above."""
    truth, generator = draw(3000, 5)
    sd = 0.03
    e = pose_errors(poses(noisy(truth, sd, generator)), poses(truth))
    assert e.mse_refined == pytest.approx(6 * sd**2, rel=0.05)
    assert e.mse_refined <= e.mse < 1.2 * e.mse_refined
    median = math.degrees(sd * 1.5382)  # median of a chi variable with three degrees of freedom
    assert float(e.rotation_error_deg.median()) == pytest.approx(median, rel=0.05)
    parts = (e.view_error_deg**2 + e.in_plane_error_deg**2).sqrt()
    torch.testing.assert_close(parts, e.rotation_error_deg, rtol=0.01, atol=1e-3)


def test_mixed_hands_are_seen():
    """A third of the particles in the other hand: the fractions say so and their union is whole."""
    truth, generator = draw(900, 6)
    predicted = noisy(truth, 0.03, generator)
    predicted[::3] = mirror_pose_rotation(predicted[::3])
    e = pose_errors(poses(predicted), poses(truth))
    assert e.hand == 1
    assert e.hand_a == pytest.approx(2 / 3, abs=0.03)
    assert e.hand_b == pytest.approx(1 / 3, abs=0.03)
    assert e.hand_union > 0.99
    assert e.medse < 0.02 < 0.5 < e.mse


@pytest.mark.parametrize("hand", [1, -1])
def test_a_map_off_centre_is_no_shift_error(hand):
    """Shifts that differ by (R u)_xy for one u are explained by it; u and the map's own shift come out."""
    truth, generator = draw(500, 7)
    q = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    u = torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
    shift = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    moved = shift + (truth @ u)[:, :2] + 0.1 * torch.randn(500, 2, generator=generator, dtype=torch.float64)
    predicted = truth @ q.T if hand == 1 else mirror_pose_rotation(truth @ q.T)
    e = pose_errors(poses(predicted, moved), poses(truth, shift))
    assert e.hand == hand
    torch.testing.assert_close(e.offset_A, u, rtol=0, atol=0.03)
    assert float(e.shift_error_A.median()) == pytest.approx(0.1 * 1.1774, rel=0.1)
    # an image does not change: R x + t = R_pred (Q x + c) + t_pred
    left = moved - shift
    right = -(e.rotation @ e.gauge.T @ e.map_shift_A)[:, :2]
    assert float((left - right).norm(dim=-1).median()) < 0.2


@pytest.mark.parametrize("name", ["C3", "D2", "O"])
def test_equivalent_poses_of_a_symmetric_particle_are_equal(name):
    """R S for any S of the group is no error when the group is known, and a large one when it is not."""
    truth, generator = draw(400, 8)
    group = point_group(name)
    pick = torch.randint(len(group), (400,), generator=generator)
    q = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    predicted = noisy(truth @ group[pick] @ q, 0.02, generator)
    e = pose_errors(poses(predicted), poses(truth), group=name)
    assert e.mse_refined == pytest.approx(6 * 0.02**2, rel=0.15)
    assert e.hand_a == 1.0
    assert pose_errors(poses(predicted), poses(truth)).mse > 1.0


def test_many_particles_are_no_matter():
    """The distances in pieces equal the distances at once."""
    truth, generator = draw(2000, 9)
    predicted = noisy(truth, 0.1, generator)
    e = pose_errors(poses(predicted), poses(truth), n_candidates=40)
    rows = torch.linspace(0, 1999, 40).round().long()
    q = predicted[rows].mT @ truth[rows]
    d = ((predicted[None] @ q[:, None] - truth) ** 2).sum((-1, -2))
    assert e.mse == pytest.approx(float(d.mean(1).min()), abs=GAUGE)
    assert e.medse == pytest.approx(float(d.median(1).values.min()), abs=GAUGE)


def test_summary_has_the_names_others_read():
    """The keys of `cryorbit evaluate --json`."""
    truth, _ = draw(10, 10)
    keys = set(pose_errors(poses(truth), poses(truth)).summary())
    wanted = {"mse", "medse", "hand", "hand_a", "hand_b", "hand_union"}
    assert wanted | {"rotation_error_deg_median", "shift_error_A_median"} <= keys


def test_unequal_numbers_are_refused():
    """Poses are compared row by row, so there must be as many."""
    truth, _ = draw(10, 11)
    with pytest.raises(BadInput, match="9 predicted poses but 10"):
        pose_errors(poses(truth[:9]), poses(truth))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_far_below_single_precision_of_a_matrix_are_found(dtype):
    """0.003 degrees: its square is a tenth of what single precision leaves of an orthonormal matrix's trace."""
    truth = random_rotations(200, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    axis = torch.nn.functional.normalize(
        torch.randn(200, 3, generator=torch.Generator().manual_seed(5)).double()
    )
    predicted = truth @ rotvec_to_matrix(math.radians(0.003) * axis)
    found = pose_errors(*(Pose(r.to(dtype), torch.zeros(200, 2, dtype=dtype)) for r in (predicted, truth)))
    # A matrix rounded to 6e-8 turns by 3e-6 degrees; the frame takes 3 of 600 numbers out of the errors.
    assert abs(float(found.rotation_error_deg.square().mean().sqrt()) / 0.003 - 1) < 0.01
