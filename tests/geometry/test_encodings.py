"""Laws of the encodings: every one maps onto SO(3), most without a jump, all with finite gradients."""

import math

import pytest
import torch
from hypothesis import given

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import nearest_rotation
from cryorbit.geometry.encodings import (
    ENCODING_SIZE,
    bingham_to_quaternion,
    decode_rotation,
    encode_rotation,
    matrix_to_bingham,
)
from cryorbit.geometry.rotations import (
    axis_rotation,
    euler_to_matrix,
    matrix_to_euler_pair,
    matrix_to_quaternion,
    matrix_to_rotvec,
    random_rotations,
    rotvec_to_matrix,
)
from laws import ROUND_OFF, rotations

F64 = torch.float64
EXACT = ROUND_OFF[F64]
EYE = torch.eye(3, dtype=F64)
ENCODINGS = list(ENCODING_SIZE)


def _close(a, b, atol=EXACT):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_numbers_give_a_rotation(encoding):
    """Onto SO(3), not near it: orthogonal, determinant 1, batches of any shape."""
    r = decode_rotation(_random(4, 5, ENCODING_SIZE[encoding]), encoding=encoding)
    _close(r @ r.mT, EYE.expand(4, 5, 3, 3))
    _close(torch.linalg.det(r), torch.ones(4, 5, dtype=F64))


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(r=rotations())
def test_every_rotation_has_a_preimage(encoding, r):
    """decode(encode(R)) = R, half turns among them."""
    _close(decode_rotation(encode_rotation(r, encoding=encoding), encoding=encoding), r, 1e-10)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_which_encodings_jump(encoding):
    """Through half turns 6d, 9d and bingham move as little as the rotation; rotvec and quaternions change sign."""
    before, after = (axis_rotation("z", torch.tensor(math.pi + d, dtype=F64)) for d in (-1e-4, 1e-4))
    jump = (encode_rotation(before, encoding=encoding) - encode_rotation(after, encoding=encoding)).norm()
    if encoding in ("rotvec", "quat"):
        assert jump > 1.9
    else:
        assert jump < 1e-3


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_finite_differences(encoding, seed):
    """At generic numbers."""
    values = _random(ENCODING_SIZE[encoding], seed=seed).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: decode_rotation(v, encoding=encoding), values)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, math.pi - 1e-6, math.pi])
def test_gradients_at_exact_rotations(encoding, angle):
    """Also where singular values or eigenvalues coincide, and for rotvec at 0 and at pi."""
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=F64)
    values = encode_rotation(rotvec_to_matrix(axis * angle), encoding=encoding).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: decode_rotation(v, encoding=encoding), values)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, math.pi - 1e-3])
def test_gradient_of_the_logarithm(angle):
    """exp(log R) has the derivative of R, at the identity too."""
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=F64)
    start = (axis * angle).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: matrix_to_rotvec(rotvec_to_matrix(v)), start)


def test_logarithm_at_half_turns_has_finite_gradients():
    """At pi the axis may have either sign, but nothing becomes infinite."""
    r = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=F64)).requires_grad_()
    matrix_to_rotvec(r).sum().backward()
    assert r.grad is not None
    assert torch.isfinite(r.grad).all()


def test_nearest_rotation_differs_where_it_may():
    """Gradients of the projection are finite differences' for reflections too, where the nearest is unique."""
    matrix = torch.diag(torch.tensor([2.0, 1.0, -0.4], dtype=F64)) @ random_rotations(
        1, generator=torch.Generator().manual_seed(0), dtype=F64
    )
    assert torch.autograd.gradcheck(nearest_rotation, matrix.requires_grad_())


def test_bingham_reads_the_mode():
    """The quaternion maximises q^T S q; q q^T itself gives q back, and -q the same ten numbers."""
    values = _random(10)
    row, column = torch.triu_indices(4, 4)
    s = torch.zeros(4, 4, dtype=F64)
    s[row, column] = values
    s[column, row] = values
    q = bingham_to_quaternion(values)
    others = torch.nn.functional.normalize(_random(200, 4, seed=1), dim=-1)
    assert ((others @ s * others).sum(-1) <= q @ s @ q).all()
    r = random_rotations(6, generator=torch.Generator().manual_seed(2), dtype=F64)
    _close(bingham_to_quaternion(matrix_to_bingham(r)), matrix_to_quaternion(r), 1e-10)


def test_both_euler_solutions_of_a_published_matrix():
    """Rz(45) Ry(45) Rx(45): (psi, theta, phi) = (45, 45, 45) or (-135, 135, -135) (Slabaugh)."""
    r = euler_to_matrix(torch.tensor([45.0, 45.0, 45.0], dtype=F64), convention="ZYX")
    rows = [[0.5, -0.1464, 0.8536], [0.5, 0.8536, -0.1464], [-0.7071, 0.5, 0.5]]
    _close(r, torch.tensor(rows, dtype=F64), 5e-5)  # half a unit of the fourth decimal
    expected = torch.tensor([[45.0, 45.0, 45.0], [-135.0, 135.0, -135.0]], dtype=F64)
    _close(matrix_to_euler_pair(r, convention="ZYX"), expected, 1e-10)


@pytest.mark.parametrize("convention", ["ZYX", "ZYZ", "XYZ", "zxz", "xzy"])
@given(r=rotations())
def test_both_euler_solutions_give_the_matrix(convention, r):
    """For every order of axes, gimbal cases among them."""
    for solution in matrix_to_euler_pair(r, convention=convention):
        _close(euler_to_matrix(solution, convention=convention), r, 1e-7)


@pytest.mark.parametrize("theta", [90.0, -90.0])
def test_slabaughs_gimbal_cases(theta):
    """R31 = -1: phi = 0, theta = 90, psi = atan2(R12, R13); R31 = +1: theta = -90, psi = atan2(-R12, -R13)."""
    r = euler_to_matrix(torch.tensor([25.0, theta, 40.0], dtype=F64), convention="ZYX")
    phi, found, psi = matrix_to_euler_pair(r, convention="ZYX")[0]
    sign = 1.0 if theta > 0 else -1.0
    assert phi == 0
    assert found.item() == pytest.approx(theta, abs=1e-5)  # half of the digits are left at the end
    assert psi.item() == pytest.approx(math.degrees(math.atan2(sign * r[0, 1], sign * r[0, 2])), abs=1e-9)


def test_senseless_encodings_are_refused():
    """Names and lengths."""
    with pytest.raises(BadInput, match="has 6 numbers"):
        decode_rotation(torch.zeros(5), encoding="6d")
    with pytest.raises(Exception, match=r"not one of|encoding"):
        encode_rotation(torch.eye(3), encoding="7d")
