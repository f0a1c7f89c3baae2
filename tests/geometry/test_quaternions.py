"""Laws of quaternions, of Shoemake's map and of the angle of uniform rotations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.geometry.quaternions import (
    left_matrix,
    quaternion_conjugate,
    quaternion_multiply,
    quaternion_rotate,
    quaternion_rotate_jacobian,
    right_matrix,
    shoemake_quaternion,
)
from cryorbit.geometry.rotations import (
    geodesic_angle,
    matrix_to_quaternion,
    quaternion_to_matrix,
    random_rotations,
    rotvec_to_matrix,
)
from laws import ROUND_OFF, rotations, unit_vectors

F64 = torch.float64
EXACT = ROUND_OFF[F64]
EYE = torch.eye(3, dtype=F64)


def _t(*values):
    return torch.tensor(values, dtype=F64)


def _close(a, b, atol=EXACT):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_half_turn_and_clockwise_quarter_turn_about_z():
    """(1, 0, 0) by 180 degrees about z is (-1, 0, 0); by 90 clockwise it is (0, -1, 0)."""
    x = _t(1, 0, 0)
    half = _t(0, 0, 0, 1)
    _close(quaternion_multiply(half, _t(0, 1, 0, 0)), _t(0, 0, 1, 0))  # q p = k i = j
    sandwich = quaternion_multiply(quaternion_multiply(half, _t(0, 1, 0, 0)), quaternion_conjugate(half))
    _close(sandwich, _t(0, -1, 0, 0))
    _close(quaternion_rotate(half, x), _t(-1, 0, 0))
    clockwise = matrix_to_quaternion(rotvec_to_matrix(_t(0, 0, -math.pi / 2)))
    _close(clockwise, _t(math.sqrt(0.5), 0, 0, -math.sqrt(0.5)))
    _close(quaternion_rotate(clockwise, x), _t(0, -1, 0))


def test_products_of_the_units():
    """ij = k, jk = i, ki = j, the reversed products negative, squares -1: not commutative."""
    one, i, j, k = torch.eye(4, dtype=F64)
    for a, b, c in ((i, j, k), (j, k, i), (k, i, j)):
        _close(quaternion_multiply(a, b), c)
        _close(quaternion_multiply(b, a), -c)
        _close(quaternion_multiply(a, a), -one)


@given(rotations(), rotations(), unit_vectors())
def test_three_ways_to_turn_a_point(r, s, p):
    """Product of quaternions = product of matrices; sandwich = formula = matrix; q and -q turn alike."""
    q, t = matrix_to_quaternion(r), matrix_to_quaternion(s)
    _close(quaternion_to_matrix(quaternion_multiply(q, t)), r @ s)
    _close(left_matrix(q) @ t, quaternion_multiply(q, t))
    _close(right_matrix(t) @ q, quaternion_multiply(q, t))
    pure = torch.cat([torch.zeros(1, dtype=F64), p])
    sandwich = quaternion_multiply(quaternion_multiply(q, pure), quaternion_conjugate(q))
    _close(quaternion_rotate(q, p), sandwich[1:])
    _close(quaternion_rotate(q, p), r @ p)
    _close(quaternion_rotate(-q, p), r @ p)


@given(st.tuples(*[st.floats(-2, 2)] * 4), unit_vectors())
def test_derivative_of_a_turned_point(values, p):
    """The formula is autograd's derivative, for quaternions of any length."""
    q = _t(*values)
    automatic = torch.autograd.functional.jacobian(lambda x: quaternion_rotate(x, p), q)
    _close(quaternion_rotate_jacobian(q, p), automatic)


def test_shoemake_reads_three_uniforms():
    """u = (0.9, 0.1, 0.9) is a turn by 79.74 degrees, not near the identity, which is u1 = 1, u3 = 0."""
    q = shoemake_quaternion(_t(0.9, 0.1, 0.9))
    _close(q, _t(0.7675, 0.1859, 0.2558, -0.5576), 5e-5)  # half a unit of the fourth decimal
    angle = math.degrees(geodesic_angle(quaternion_to_matrix(q), EYE))
    assert angle == pytest.approx(79.74, abs=5e-3)
    _close(shoemake_quaternion(_t(1.0, 0.3, 0.0)), _t(1, 0, 0, 0))


@pytest.mark.parametrize("way", ["shoemake", "gaussian"])
def test_angle_of_uniform_rotations(way):
    """Density (1 - cos t) / pi: mean pi / 2 + 2 / pi = 126.4756 degrees, median 132.3465."""
    n, generator = 100_000, torch.Generator().manual_seed(5)
    if way == "shoemake":
        uniforms = torch.rand(n, 3, generator=generator, dtype=F64)
        r = quaternion_to_matrix(shoemake_quaternion(uniforms))
    else:
        r = random_rotations(n, generator=generator, dtype=F64)
    angle = geodesic_angle(r, EYE)
    median = math.radians(132.3465)
    assert (median - math.sin(median)) / math.pi == pytest.approx(0.5, abs=1e-6)
    assert math.degrees(math.pi / 2 + 2 / math.pi) == pytest.approx(126.4756, abs=5e-5)
    spread = 4 * float(angle.std()) / math.sqrt(n)  # four standard errors
    assert float(angle.mean()) == pytest.approx(math.pi / 2 + 2 / math.pi, abs=spread)
    share = float((angle < median).double().mean())
    assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))
