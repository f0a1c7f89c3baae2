"""The house frame against published vectors of RELION and cryoSPARC."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryorbit.geometry.conventions import (
    cryosparc_rotvec_to_matrix,
    in_plane_rotation,
    matrix_to_cryosparc_rotvec,
    matrix_to_relion_angles,
    mirror_pose_rotation,
    relion_angles_to_matrix,
    view_rotation,
    viewing_direction,
)
from laws import ROUND_OFF, rotations, unit_vectors

F64 = torch.float64
EXACT = ROUND_OFF[F64]
PRINTED = 1e-6  # the published vectors have six decimals, the last of some rounded twice


def _close(a, b, atol=EXACT):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_relion_vector():
    """Angles (30, 50, 70) give the matrix that RELION computes, and carry (1, 2, 3) where it does."""
    a = relion_angles_to_matrix(torch.tensor([30.0, 50.0, 70.0], dtype=F64))
    expected = [
        [-0.279454, 0.923721, -0.262003],
        [-0.694109, -0.005813, 0.719846],
        [0.663414, 0.383022, 0.642788],
    ]
    _close(a, torch.tensor(expected, dtype=F64), PRINTED)
    moved = a @ torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    _close(moved, torch.tensor([0.781980, 1.453803, 3.357822], dtype=F64), PRINTED)


def test_relion_matrix_in_scipys_terms():
    """A^T is intrinsic ZYZ of (rot, tilt, psi); A is extrinsic zyz of the negatives."""
    angles = [[-170.0, 12.0, 45.0], [10.0, 179.0, -3.0]]
    a = relion_angles_to_matrix(torch.tensor(angles, dtype=F64))
    transposed = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
    negated = Rotation.from_euler("zyz", -torch.tensor(angles).numpy(), degrees=True).as_matrix()
    _close(a.mT, torch.from_numpy(transposed))
    _close(a, torch.from_numpy(negated), 1e-6)


@given(rotations())
def test_relion_angles_round_trip(a):
    """Matrix -> (rot, tilt, psi) -> matrix is the identity; tilt in [0, 180], rot and psi in (-180, 180]."""
    angles = matrix_to_relion_angles(a)
    _close(relion_angles_to_matrix(angles), a)
    assert 0 <= angles[1] <= 180
    assert -180 < angles[0] <= 180
    assert -180 < angles[2] <= 180


def test_relion_angles_at_the_poles():
    """Where tilt is 0 or 180, rot is 0 and psi carries the sum or the difference."""
    angles = torch.tensor([[30.0, 0.0, 70.0], [30.0, 180.0, 70.0]], dtype=F64)
    expected = torch.tensor([[0.0, 0.0, 100.0], [0.0, 180.0, 40.0]], dtype=F64)
    _close(matrix_to_relion_angles(relion_angles_to_matrix(angles)), expected, 1e-9)


@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_two_names_of_one_orientation(angles):
    """(rot, tilt, psi) and (rot + 180, -tilt, psi + 180) are the same."""
    rot, tilt, psi = angles
    one = relion_angles_to_matrix(torch.tensor([rot, tilt, psi], dtype=F64))
    two = relion_angles_to_matrix(torch.tensor([rot + 180, -tilt, psi + 180], dtype=F64))
    _close(one, two)


def test_cryosparc_vector():
    """The published rotation vector has the published RELION angles."""
    rotvec = torch.tensor([2.33866, -0.25596, -1.22368], dtype=F64)
    angles = matrix_to_relion_angles(cryosparc_rotvec_to_matrix(rotvec))
    _close(angles, torch.tensor([-157.8085, 118.7910, 34.6833], dtype=F64), 5e-4)


@given(rotations())
def test_cryosparc_round_trip(a):
    """Matrix -> rotation vector -> matrix is the identity, zero vector included."""
    _close(cryosparc_rotvec_to_matrix(matrix_to_cryosparc_rotvec(a)), a)


@given(rotations())
def test_hand_flip_changes_the_sign_of_tilt(a):
    """F A F is (rot, -tilt, psi); it is a rotation and its own inverse."""
    rot, tilt, psi = matrix_to_relion_angles(a)
    flipped = mirror_pose_rotation(a)
    _close(flipped, relion_angles_to_matrix(torch.stack([rot, -tilt, psi])))
    _close(mirror_pose_rotation(flipped), a)


@given(rotations(), st.integers(0, 2**31))
def test_hand_flip_explains_the_same_image(a, seed):
    """Points mirrored along z, seen at F A F, fall on the same pixels."""
    points = torch.randn(10, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    mirrored = points * torch.tensor([1.0, 1.0, -1.0], dtype=F64)
    _close((points @ a.mT)[:, :2], (mirrored @ mirror_pose_rotation(a).mT)[:, :2])


@given(unit_vectors())
def test_view_rotation_looks_along_its_direction(direction):
    """The third row is the direction and psi is 0."""
    view = view_rotation(direction)
    _close(viewing_direction(view), direction)
    _close(view.mT @ view, torch.eye(3, dtype=F64))
    assert abs(matrix_to_relion_angles(view)[2]) < 1e-6


@given(st.tuples(*[st.floats(1.0, 179.0)] * 3))
def test_a_pose_is_an_in_plane_rotation_of_a_view(angles):
    """A(rot, tilt, psi) = Rz(-psi) times the view along its direction."""
    a = relion_angles_to_matrix(torch.tensor(angles, dtype=F64))
    psi = torch.tensor(math.radians(angles[2]), dtype=F64)
    _close(in_plane_rotation(psi) @ view_rotation(viewing_direction(a)), a)


def test_view_rotation_has_finite_gradients_at_the_pole():
    """Looking straight down is no special case for autograd."""
    direction = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(view_rotation(direction).sum(), direction)
    assert torch.isfinite(gradient).all()


@given(rotations())
def test_hand_flip_turns_rot_and_psi_by_half(a):
    """F A F = Rz(180) A' Rz(180) in RELION's words: (rot + 180, tilt, psi + 180) is (rot, -tilt, psi)."""
    angles_deg = matrix_to_relion_angles(a)
    half = torch.tensor([180.0, 0.0, 180.0], dtype=F64)
    z = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=F64))
    _close(mirror_pose_rotation(a), z @ a @ z)
    _close(relion_angles_to_matrix(angles_deg + half), mirror_pose_rotation(a), 1e-7)
