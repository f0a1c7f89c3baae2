"""Laws of the distances between rotations, plain and up to a symmetry."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.geometry.distance import angle_to_nearest, distance, symmetric_distance
from cryorbit.geometry.rotations import (
    axis_rotation,
    matrix_to_quaternion,
    matrix_to_rotvec,
    random_rotations,
    rotvec_to_matrix,
    skew,
)
from cryorbit.geometry.symmetry import point_group
from laws import HALF_DIGITS, ROUND_OFF, rotations, unit_vectors

F64 = torch.float64
EXACT = ROUND_OFF[F64]
EYE = torch.eye(3, dtype=F64)

TABLE = {  # at 60 degrees, at 180 degrees
    "geodesic": (1.047198, math.pi),
    "chordal": (1.41421356, 2.82842712),
    "quaternion": (0.51763809, 1.41421356),
    "log_frobenius": (1.48096098, math.sqrt(2) * math.pi),
    "spectral": (1.0, 2.0),
}


def _close(a, b, atol=EXACT):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", TABLE)
@given(axis=unit_vectors())
def test_table_of_values(kind, axis):
    """The published values at 60 degrees, and the largest ones."""
    at_60 = distance(rotvec_to_matrix(axis * math.pi / 3), EYE, kind=kind)
    at_180 = distance(rotvec_to_matrix(axis * math.pi), EYE, kind=kind)
    assert at_60.item() == pytest.approx(TABLE[kind][0], abs=5e-7)  # as printed
    assert at_180.item() == pytest.approx(TABLE[kind][1], abs=5e-7)


@given(rotations(), rotations())
def test_distances_are_what_their_names_say(r, s):
    """Norms of differences, of logarithms, and of quaternions of the nearer sign."""
    q, t = matrix_to_quaternion(r), matrix_to_quaternion(s)
    _close(distance(r, s, kind="chordal"), (r - s).norm(), HALF_DIGITS)
    _close(distance(r, s, kind="chordal") ** 2, 6 - 2 * (r.mT @ s).trace(), 1e-11)
    _close(distance(r, s, kind="quaternion"), torch.minimum((q - t).norm(), (q + t).norm()), HALF_DIGITS)
    _close(distance(r, s, kind="log_frobenius"), skew(matrix_to_rotvec(r.mT @ s)).norm(), HALF_DIGITS)
    _close(distance(r, s, kind="spectral"), torch.linalg.matrix_norm(r - s, 2), HALF_DIGITS)
    near, far = sorted(((q - t).norm(), (q + t).norm()))
    _close(distance(r, s), 4 * torch.atan2(near, far), HALF_DIGITS)


@given(rotations(), rotations())
def test_losses_of_supervised_poses(r, s):
    """1 - (q.r)^2 = sin^2(theta / 2); 2 (1 - |q.r|) = d_quat^2; plain L2 of q calls identical rotations 2 apart."""
    q, t = matrix_to_quaternion(r), matrix_to_quaternion(s)
    dot, theta = q @ t, distance(r, s)
    _close(1 - dot**2, torch.sin(theta / 2) ** 2, 1e-11)
    _close(2 * (1 - dot.abs()), distance(r, s, kind="quaternion") ** 2, 1e-11)
    assert (q - (-q)).norm().item() == pytest.approx(2.0)


@pytest.mark.parametrize("kind", TABLE)
@given(r=rotations(), s=rotations(), g=rotations(), h=rotations())
def test_distances_are_bi_invariant_metrics(kind, r, s, g, h):
    """d(g r h, g s h) = d(r, s) = d(s, r); the triangle with g holds."""
    d = distance(r, s, kind=kind)
    _close(distance(g @ r @ h, g @ s @ h, kind=kind), d, HALF_DIGITS)
    _close(distance(s, r, kind=kind), d)
    assert d <= distance(r, g, kind=kind) + distance(g, s, kind=kind) + HALF_DIGITS


@given(unit_vectors(), st.floats(0, math.pi), st.floats(0, math.pi))
def test_turns_about_one_axis_differ_by_their_angles(axis, a, b):
    """Ball exercise: same axis, angles that differ by t: distance t."""
    _close(
        distance(rotvec_to_matrix(axis * a), rotvec_to_matrix(axis * b)),
        torch.tensor(abs(a - b), dtype=F64),
        HALF_DIGITS,
    )


@pytest.mark.parametrize(
    ("psi", "expected"), [(0.0, 0.0), (15.0, 1.304855), (45.0, 3.825798), (90.0, 7.069946), (180.0, 10.0)]
)
def test_turns_by_five_degrees_about_two_axes(psi, expected):
    """Ball exercise: theta = 2 acos(cos^2 2.5 + sin^2 2.5 cos psi) for axes psi apart."""
    axes = axis_rotation("z", torch.deg2rad(torch.tensor([0.0, psi], dtype=F64)))[..., 0]
    a, b = rotvec_to_matrix(axes * math.radians(5.0))
    half = math.radians(2.5)
    law = math.cos(half) ** 2 + math.sin(half) ** 2 * math.cos(math.radians(psi))
    found = math.degrees(distance(a, b))
    assert found == pytest.approx(expected, abs=6e-7)
    assert found == pytest.approx(math.degrees(2 * math.acos(min(law, 1.0))), abs=1e-5)


@pytest.mark.parametrize("name", ["C1", "C4", "D3", "T", "O", "I"])
def test_symmetry_partners_are_the_same_pose(name):
    """d(A, A g) = 0 for every g; it is the least of |G| distances; never more than the plain one."""
    group = point_group(name)
    generator = torch.Generator().manual_seed(0)
    a, b = (
        random_rotations(8, generator=generator, dtype=F64),
        random_rotations(8, generator=generator, dtype=F64),
    )
    for g in group:
        _close(symmetric_distance(a, a @ g, name), torch.zeros(8, dtype=F64), 1e-7)
    by_hand = torch.stack([distance(a, b @ g) for g in group]).amin(0)
    _close(symmetric_distance(a, b, name), by_hand)
    _close(symmetric_distance(a @ group[-1], b, group), by_hand)
    assert (by_hand <= distance(a, b)).all()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_cyclic_energy_has_as_many_minima_as_the_group(n):
    """Along a turn about the n-fold axis the distance to one pose is 0 exactly n times, and peaks at 180 / n."""
    turn = torch.deg2rad(torch.arange(0.0, 360.0, 360.0 / (n * 24), dtype=F64))
    d = symmetric_distance(axis_rotation("z", turn), EYE, f"C{n}")
    assert int((d < 1e-9).sum()) == n
    assert d.max().item() == pytest.approx(math.pi / n)


def test_angle_to_nearest_is_the_least_distance():
    """The quaternion short cut gives what all pairs give."""
    generator = torch.Generator().manual_seed(1)
    a, grid = (
        random_rotations(20, generator=generator, dtype=F64),
        random_rotations(30, generator=generator, dtype=F64),
    )
    _close(angle_to_nearest(a, grid, chunk=7), distance(a[:, None], grid).amin(1), HALF_DIGITS)


def test_unknown_distances_are_refused():
    """By name."""
    with pytest.raises(Exception, match=r"not one of|kind"):
        distance(EYE, EYE, kind="manhattan")
    with pytest.raises(BadInput, match="at least one"):
        angle_to_nearest(EYE[None], EYE[None][:0])
