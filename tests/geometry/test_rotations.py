"""Laws of the encodings of rotations and of their distances."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import (
    axis_rotation,
    euler_to_matrix,
    frobenius_squared,
    geodesic_angle,
    matrix_to_euler,
    matrix_to_quaternion,
    matrix_to_rotvec,
    matrix_to_six_d,
    orthogonalise,
    quaternion_to_matrix,
    random_rotations,
    rotvec_to_matrix,
    six_d_to_matrix,
    skew,
)
from laws import HALF_DIGITS, ROUND_OFF, angles, rotations, unit_vectors

F64 = torch.float64
EYE = torch.eye(3, dtype=F64)
EXACT = ROUND_OFF[F64]
CONVENTIONS = [
    form("".join(axes))
    for axes in itertools.product("xyz", repeat=3)
    if axes[0] != axes[1] != axes[2]
    for form in (str.lower, str.upper)
]


def _close(a, b, atol=EXACT):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def _is_rotation(r, atol=EXACT):
    _close(r.mT @ r, torch.eye(3, dtype=r.dtype).expand_as(r), atol)
    _close(torch.linalg.det(r), torch.ones(r.shape[:-2], dtype=r.dtype), atol)


@given(rotations())
def test_quaternion_round_trip(r):
    """Matrix -> quaternion -> matrix is the identity, the quaternion of length 1 with w >= 0."""
    q = matrix_to_quaternion(r)
    _close(q.norm(), torch.ones((), dtype=F64))
    assert q[0] >= 0
    _close(quaternion_to_matrix(q), r)


@given(rotations())
def test_log_then_exp_is_the_identity(r):
    """We have exp(log R) = R for every R, half turns and the identity included; the angle is at most pi."""
    v = matrix_to_rotvec(r)
    assert v.norm() <= math.pi + EXACT
    _close(rotvec_to_matrix(v), r)


@given(unit_vectors(), angles())
def test_exp_then_log_is_the_identity(axis, angle):
    """log(exp v) = v below pi; at pi the sign of the axis is free."""
    back = matrix_to_rotvec(rotvec_to_matrix(axis * angle))
    if angle > math.pi - 1e-6 and back @ axis < 0:
        back = -back * (2 * math.pi - angle) / back.norm().clamp_min(1e-300)
    _close(back, axis * angle)


@given(unit_vectors(), angles())
def test_exp_is_the_matrix_exponential(axis, angle):
    """The exp of a rotation vector is the exponential series of its cross-product matrix."""
    vector = axis * angle
    _close(rotvec_to_matrix(vector), torch.linalg.matrix_exp(skew(vector)))
    _close(rotvec_to_matrix(vector), torch.from_numpy(Rotation.from_rotvec(vector.numpy()).as_matrix()))


@given(unit_vectors())
def test_exp_has_the_right_gradient_at_zero(direction):
    """The derivative d exp(v) at v = 0 is the cross-product matrix of dv."""
    zero = torch.zeros(3, dtype=F64)
    derivative = torch.autograd.functional.jvp(rotvec_to_matrix, zero, direction)[1]
    _close(derivative, skew(direction))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 9.9e-4, 1.1e-3, 1.0, math.pi - 1e-9, math.pi])
@pytest.mark.parametrize(
    ("function", "start"),
    [
        (rotvec_to_matrix, lambda r, v: v),
        (matrix_to_rotvec, lambda r, v: r),
        (matrix_to_quaternion, lambda r, v: r),
        (lambda m: geodesic_angle(EYE, m), lambda r, v: r),
        (lambda m: geodesic_angle(m, m.detach()), lambda r, v: r),
    ],
    ids=["exp", "log", "quaternion", "angle from identity", "angle from itself"],
)
def test_gradients_are_finite_at_every_angle(function, start, angle):
    """No encoding or distance gives a NaN or infinite gradient, at 0, at pi or near them."""
    vector = torch.tensor([0.6, 0.0, -0.8], dtype=F64) * angle
    x = start(rotvec_to_matrix(vector), vector).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    assert torch.isfinite(gradient).all()


def test_gradients_agree_with_finite_differences():
    """Both exp and log pass gradcheck on both sides of the switch between series and closed form."""
    for length in (5e-4, 9.9e-4, 1.1e-3, 1.0, 3.0):
        v = (torch.tensor([[0.6, 0.0, -0.8]], dtype=F64) * length).requires_grad_()
        assert torch.autograd.gradcheck(rotvec_to_matrix, (v,))
        assert torch.autograd.gradcheck(lambda u: matrix_to_rotvec(rotvec_to_matrix(u)), (v,))


@given(rotations())
def test_six_d_round_trip(r):
    """Matrix -> its first two columns -> matrix is the identity."""
    _close(six_d_to_matrix(matrix_to_six_d(r)), r)


@given(rotations(), st.integers(0, 2**31))
def test_orthonormalisations_are_equivariant_rotations(g, seed):
    """Both ways from two vectors to a rotation give a rotation, and turning the vectors turns it."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, generator=generator, dtype=F64)
    for build in (orthogonalise, lambda u, v: six_d_to_matrix(torch.cat([u, v], -1))):
        _is_rotation(build(a, b), HALF_DIGITS)
        _close(build(g @ a, g @ b), g @ build(a, b), HALF_DIGITS)


def test_orthogonalise_is_the_polar_factor():
    """The two columns are U V^T of the singular value decomposition of [a, b], whatever their length."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 100, 3, generator=generator, dtype=F64)
    for scale in (1e-6, 1.0, 1e6):
        u, _, vh = torch.linalg.svd(torch.stack([a, b], -1) * scale, full_matrices=False)
        _close(orthogonalise(a * scale, b * scale)[..., :2], u @ vh, 1e-10)


def test_orthogonalise_has_finite_gradients_for_parallel_vectors():
    """Degenerate input gives finite numbers and finite gradients."""
    a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    b = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    out = orthogonalise(a, b)
    gradients = torch.autograd.grad(out.sum(), (a, b))
    assert all(torch.isfinite(t).all() for t in (out, *gradients))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_euler_angles_agree_with_scipy(convention):
    """All 24 conventions give scipy's matrix, and back gives scipy's angles; ends of the range included."""
    generator = torch.Generator().manual_seed(1)
    given_deg = (torch.rand(40, 3, generator=generator, dtype=F64) - 0.5) * 360
    given_deg[:8, 1] = torch.tensor([0, 90, -90, 180, -180, 1e-5, 90 - 1e-5, 180 - 1e-5], dtype=F64)
    theirs = Rotation.from_euler(convention, given_deg.numpy(), degrees=True)
    matrix = torch.from_numpy(theirs.as_matrix())
    _close(euler_to_matrix(given_deg, convention=convention), matrix)
    back = matrix_to_euler(matrix, convention=convention)
    _close(euler_to_matrix(back, convention=convention), matrix)
    regular = slice(8, None)
    _close(back[regular], torch.from_numpy(theirs[regular].as_euler(convention, degrees=True)), 1e-9)
    assert (back <= 180).all()
    assert (back > -180).all()


@pytest.mark.parametrize("convention", ["ZZY", "zY", "abc", "Zyz", ""])
def test_unknown_euler_convention_is_refused(convention):
    """A convention that is none says what one looks like."""
    with pytest.raises(BadInput, match="three axes such as"):
        euler_to_matrix(torch.zeros(3), convention=convention)


def test_axis_rotation_is_right_handed():
    """A quarter turn carries x to y, y to z, z to x, and an unknown axis is refused."""
    quarter = torch.tensor(math.pi / 2, dtype=F64)
    for axis, source, target in (("z", 0, 1), ("x", 1, 2), ("y", 2, 0)):
        _close(axis_rotation(axis, quarter) @ EYE[source], EYE[target])
    with pytest.raises(BadInput, match="'w'"):
        axis_rotation("w", quarter)


@given(rotations(), rotations(), rotations())
def test_angle_is_bi_invariant_and_symmetric(a, b, g):
    """Turning both frames together, from either side, leaves the angle alone; so does swapping them."""
    angle = geodesic_angle(a, b)
    for other in (geodesic_angle(g @ a, g @ b), geodesic_angle(a @ g, b @ g), geodesic_angle(b, a)):
        _close(other, angle)


@given(rotations(), rotations(), rotations())
def test_angle_obeys_the_triangle_inequality(a, b, c):
    """No detour is shorter."""
    assert geodesic_angle(a, c) <= geodesic_angle(a, b) + geodesic_angle(b, c) + EXACT


@given(unit_vectors(), angles(), rotations())
def test_angle_is_the_angle_of_rotation(axis, angle, a):
    """The rotation by theta is theta from where it started, to round-off also near 0 and pi."""
    _close(geodesic_angle(a, a @ rotvec_to_matrix(axis * angle)), torch.tensor(angle, dtype=F64))


@given(rotations(), rotations())
def test_frobenius_distance_is_8_sin_squared_of_half_the_angle(a, b):
    """|a - b|^2 = 8 sin^2(theta / 2), between 0 and 8."""
    _close(frobenius_squared(a, b), 8 * torch.sin(geodesic_angle(a, b) / 2) ** 2)


def test_distances_broadcast():
    """(n, 1) against (m,) rotations gives (n, m) distances."""
    r = random_rotations(5, generator=torch.Generator().manual_seed(0))
    assert geodesic_angle(r[:3, None], r).shape == (3, 5)
    assert frobenius_squared(r[:3, None], r).shape == (3, 5)


def test_random_rotations_are_uniform_and_repeatable():
    """The mean of R and of trace^2 are those of the Haar measure (0 and 1); the same seed gives the same."""
    draw = [random_rotations(20_000, generator=torch.Generator().manual_seed(3), dtype=F64) for _ in range(2)]
    assert torch.equal(*draw)
    _is_rotation(draw[0])
    sigma = 1 / math.sqrt(3 * 20_000)
    assert draw[0].mean(0).abs().max() < 5 * sigma
    trace = draw[0].diagonal(dim1=1, dim2=2).sum(1)
    assert abs((trace**2).mean() - 1) < 5 * (trace**2).std() / math.sqrt(20_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_input(dtype):
    """Every function keeps the dtype and its round-off."""
    r = random_rotations(200, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for back in (
        quaternion_to_matrix(matrix_to_quaternion(r)),
        rotvec_to_matrix(matrix_to_rotvec(r)),
        six_d_to_matrix(matrix_to_six_d(r)),
        euler_to_matrix(matrix_to_euler(r)),
        orthogonalise(r[..., 0], r[..., 1]),
    ):
        assert back.dtype == dtype
        _close(back, r, ROUND_OFF[dtype])
