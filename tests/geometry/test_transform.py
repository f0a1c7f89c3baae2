"""Laws of `Transform`, and one orientation in the words of every program."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import relion_angles_to_matrix
from cryorbit.geometry.rotations import axis_rotation, random_rotations, rotvec_to_matrix, skew
from cryorbit.geometry.transform import Transform
from laws import ROUND_OFF, angles, rotations, unit_vectors

F64 = torch.float64
EXACT = ROUND_OFF[F64]
PRINTED = 6e-7
"""Half a unit of the sixth decimal of the published angles, and round-off."""
EIGHT = 6e-9
"""Half a unit of the eighth decimal of the published matrices."""
NEAR_END = 1e-5
"""Degrees; an angle read off a matrix next to a tilt of 0 or 180, where half of the digits are left."""

ANGLES = ("eman", "imagic", "spider", "mrc", "xyz", "quaternion", "spinvec")
PAIRS = ("spin", "sgirot")


def _t(*values):
    return torch.tensor(values, dtype=F64)


def _close(a, b, atol=EXACT):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def _there(name, move):
    values = getattr(move, f"to_{name}")()
    return (
        getattr(Transform, f"from_{name}")(*values)
        if name in PAIRS
        else getattr(Transform, f"from_{name}")(values)
    )


FIXTURES = {
    "spider 30 60 45": (
        Transform.from_spider(_t(30, 60, 45)),
        {
            "spider": _t(30, 60, 45),
            "mrc": _t(30, 60, 45),
            "eman": _t(120, 60, 315),
            "imagic": _t(120, 60, 315),
            "xyz": _t(-40.893395, 48.590378, 94.106605),
            "quaternion": _t(0.687064, 0.065263, 0.495722, 0.527203),
        },
        (93.203685, _t(0.089820, 0.682252, 0.725578)),
    ),
    "eman 40 70 110": (
        Transform.from_eman(_t(40, 70, 110)),
        {
            "eman": _t(40, 70, 110),
            "spider": _t(310, 70, 200),
            "mrc": _t(310, 70, 200),
            "xyz": _t(64.586233, 37.158554, 126.012895),
            "quaternion": _t(0.212012, 0.469846, -0.328990, 0.791240),
        },
        (155.519409, _t(0.480776, -0.336643, 0.809646)),
    ),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_one_orientation_in_the_words_of_every_program(name):
    """Angles, quaternion and spin of two published orientations, both ways."""
    move, expected, (omega, axis) = FIXTURES[name]
    for program, values in expected.items():
        _close(getattr(move, f"to_{program}")(), values, PRINTED)
        _close(getattr(Transform, f"from_{program}")(values).rotation, move.rotation, 1e-6)
    found_omega, found_axis = move.to_spin()
    _close(found_omega, torch.tensor(omega, dtype=F64), PRINTED)
    _close(found_axis, axis, PRINTED)
    _close(move.to_spinvec(), axis * omega / 360, PRINTED)


def test_published_matrices():
    """The matrix of SPIDER (30, 60, 45), which is RELION's, and the first row of EMAN (40, 70, 110)."""
    first = FIXTURES["spider 30 60 45"][0]
    rows = [
        [-0.04736717, 0.78914913, -0.61237244],
        [-0.65973961, 0.43559574, 0.61237244],
        [0.75, 0.43301270, 0.5],
    ]
    _close(first.rotation, _t(*rows), EIGHT)
    _close(first.rotation, relion_angles_to_matrix(_t(30, 60, 45)))
    second = FIXTURES["eman 40 70 110"][0]
    _close(second.rotation[0], _t(-0.46859059, 0.02635563, 0.88302222), EIGHT)


@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_relations_of_the_conventions(three):
    """SPIDER is EMAN with az = phi + 90, phi = psi - 90; xyz is a product; quaternions by the half angles."""
    a, b, c = torch.deg2rad(_t(*three))
    turn = _t(three[0] + 90, three[1], three[2] - 90)
    _close(Transform.from_spider(_t(*three)).rotation, Transform.from_eman(turn).rotation)
    product = axis_rotation("z", -c) @ axis_rotation("y", -b) @ axis_rotation("x", -a)
    _close(Transform.from_xyz(_t(*three)).rotation, product)
    half_sum, half_difference, half = (a + c) / 2, (a - c) / 2, b / 2
    from_eman = torch.stack(
        [
            half_sum.cos() * half.cos(),
            half_difference.cos() * half.sin(),
            half_difference.sin() * half.sin(),
            half_sum.sin() * half.cos(),
        ]
    )
    _close(Transform.from_quaternion(from_eman).rotation, Transform.from_eman(_t(*three)).rotation)
    from_spider = torch.stack([from_eman[0], -from_eman[2], from_eman[1], from_eman[3]])
    _close(Transform.from_quaternion(from_spider).rotation, Transform.from_spider(_t(*three)).rotation)


@given(rotations())
def test_every_convention_round_trips(rotation):
    """Into a program's words and back is the same rotation, tilts of 0 and 180 and half turns among them."""
    move = Transform.from_rotation(rotation)
    for name in ANGLES + PAIRS:
        _close(_there(name, move).rotation, rotation, 1e-7)


def test_xyz_angles_are_arc_tangents_of_the_matrix():
    """xtilt = atan2(-M32, M33), ytilt = asin M31, ztilt = atan2(-M21, M11)."""
    m = random_rotations(50, generator=torch.Generator().manual_seed(0), dtype=F64)
    direct = torch.stack(
        [
            torch.atan2(-m[:, 2, 1], m[:, 2, 2]),
            torch.asin(m[:, 2, 0]),
            torch.atan2(-m[:, 1, 0], m[:, 0, 0]),
        ],
        -1,
    )
    _close(Transform.from_rotation(m).to_xyz(), torch.rad2deg(direct), 1e-9)


@pytest.mark.parametrize("tilt", [0.0, 180.0])
def test_degenerate_rule(tilt):
    """Where the tilt is 0 or 180, az (and SPIDER's phi) is 0, and the last angle carries what is determined."""
    move = Transform.from_eman(_t(35, tilt, 50))
    az, alt, phi = move.to_eman()
    assert az == 0
    _close(alt, torch.tensor(tilt, dtype=F64), NEAR_END)
    _close(phi, torch.tensor(85.0 if tilt == 0 else 15.0, dtype=F64), NEAR_END)
    assert move.to_spider()[0] == 0
    for name in ANGLES:
        _close(_there(name, move).rotation, move.rotation, 1e-7)
    assert Transform.from_xyz(_t(20, 90, 30)).to_xyz()[0] == 0


def test_in_the_plane():
    """2d is EMAN with az = alt = 0, phi = alpha; a tilt has no such angle."""
    move = Transform.from_2d(_t(30.0, 350.0))
    _close(move.rotation[0], Transform.from_eman(_t(0, 0, 30)).rotation)
    _close(move.to_2d(), _t(30.0, 350.0))
    with pytest.raises(BadInput, match="to_eman"):
        Transform.from_eman(_t(0, 10, 0)).to_2d()


def test_spin_of_no_axis_is_the_identity_and_sgirot_wants_unit_length():
    """spin normalises its axis, and none at all turns nothing; sgirot does not normalise."""
    _close(Transform.from_spin(torch.tensor(40.0, dtype=F64), _t(0, 0, 0)).rotation, torch.eye(3, dtype=F64))
    _close(
        Transform.from_spin(torch.tensor(40.0, dtype=F64), _t(0, 0, 5)).rotation,
        Transform.from_2d(torch.tensor(40.0, dtype=F64)).rotation,
    )
    with pytest.raises(BadInput, match="length 1"):
        Transform.from_sgirot(torch.tensor(40.0, dtype=F64), _t(0, 0, 5))


@given(unit_vectors(), angles())
def test_spin_matrix_is_a_dyad_formula(axis, angle):
    """M = cos w I + (1 - cos w) n n^T - sin w [n]x: passive, n n the outer product."""
    move = Transform.from_spin(torch.tensor(math.degrees(angle), dtype=F64), axis)
    dyad = axis[:, None] * axis
    expected = (
        math.cos(angle) * torch.eye(3, dtype=F64)
        + (1 - math.cos(angle)) * dyad
        - math.sin(angle) * skew(axis)
    )
    _close(move.rotation, expected)
    odd = torch.stack([move.rotation[i, j] - move.rotation[j, i] for i, j in ((1, 2), (2, 0), (0, 1))])
    _close(odd, 2 * math.sin(angle) * axis)


def _general(seed):
    """Six transforms with every part, half of them mirrored."""
    generator = torch.Generator().manual_seed(seed)
    base = Transform.from_rotation(random_rotations(6, generator=generator, dtype=F64))
    return base.having(
        translation=torch.randn(6, 3, generator=generator, dtype=F64),
        scale=0.5 + torch.rand(6, generator=generator, dtype=F64),
        mirror=torch.arange(6) % 2 == seed % 2,
    )


@pytest.mark.parametrize("seeds", [(0, 1), (1, 1), (2, 4)])
def test_composition_is_the_product_of_affine_matrices(seeds):
    """(second @ first)(x) = second(first(x)), of the same form, its rotation proper."""
    second, first = _general(seeds[0]), _general(seeds[1])
    both = second @ first
    _close(both.to_affine(), second.to_affine() @ first.to_affine())
    _close(torch.linalg.det(both.rotation), torch.ones(6, dtype=F64))
    _close(both.scale, second.scale * first.scale)
    points = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(9), dtype=F64)
    _close(both.apply(points), second.apply(first.apply(points)))


@pytest.mark.parametrize("seed", [0, 1])
def test_inverse_and_pre_translation(seed):
    """T^-1 T = 1; moving by pre_trans first, then by the linear part, is T."""
    move = _general(seed)
    _close((move.inverse() @ move).to_affine(), torch.eye(4, dtype=F64).expand(6, 4, 4))
    linear = move.having(translation=torch.zeros(6, 3, dtype=F64))
    points = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(9), dtype=F64)
    _close(linear.apply(points + move.pre_trans()[:, None]), move.apply(points))
    rigid = Transform.from_rotation(move.rotation).having(translation=move.translation)
    _close(rigid.pre_trans(), (rigid.rotation.mT @ rigid.translation[..., None]).squeeze(-1))


@pytest.mark.parametrize("seed", [0, 1])
def test_matrices_are_taken_apart(seed):
    """from_affine(to_affine) finds rotation, scale, mirror and translation; a mirror negates the first row."""
    move = _general(seed)
    again = Transform.from_affine(move.to_affine())
    _close(again.rotation, move.rotation)
    _close(again.scale, move.scale)
    _close(again.translation, move.translation)
    assert torch.equal(again.mirror, move.mirror)
    flipped = move.having(mirror=torch.ones(6, dtype=torch.bool)).to_matrix()
    plain = move.having(mirror=torch.zeros(6, dtype=torch.bool)).to_matrix()
    _close(flipped, plain * _t(-1, 1, 1)[:, None])


@given(unit_vectors(), unit_vectors(), angles(), angles())
def test_half_angles_of_a_composition(n1, n2, w1, w2):
    """|cos w/2| = |cos w1/2 cos w2/2 - sin w1/2 sin w2/2 n1 . n2|."""
    both = Transform.from_rotation(rotvec_to_matrix(n1 * w1) @ rotvec_to_matrix(n2 * w2))
    w = torch.deg2rad(both.to_spin()[0])
    law = math.cos(w1 / 2) * math.cos(w2 / 2) - math.sin(w1 / 2) * math.sin(w2 / 2) * (n1 @ n2)
    _close(torch.cos(w / 2), law.abs())


def test_line_elements_of_the_angles():
    """dw^2 = dphi^2 + dtheta^2 + dpsi^2 + 2 cos(theta) dphi dpsi = domega^2 + 4 sin^2(omega / 2) |dn|^2."""
    generator = torch.Generator().manual_seed(3)
    step = 1e-4  # radians; the next order is a relative 1e-4
    angles_rad = torch.rand(40, 3, generator=generator, dtype=F64) * _t(6, 2.8, 6) + _t(0, 0.1, 0)
    d = step * torch.randn(40, 3, generator=generator, dtype=F64)
    a = Transform.from_spider(torch.rad2deg(angles_rad - d / 2))
    b = Transform.from_spider(torch.rad2deg(angles_rad + d / 2))
    length2 = torch.deg2rad((b @ a.inverse()).to_spin()[0]) ** 2
    law = (d**2).sum(1) + 2 * angles_rad[:, 1].cos() * d[:, 0] * d[:, 2]
    torch.testing.assert_close(length2, law, rtol=1e-4, atol=step**2 * 1e-4)
    omega = 0.2 + 2.5 * torch.rand(40, generator=generator, dtype=F64)
    n = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator, dtype=F64), dim=-1)
    m = torch.nn.functional.normalize(n + step * torch.randn(40, 3, generator=generator, dtype=F64), dim=-1)
    grow = step * torch.randn(40, generator=generator, dtype=F64)
    a, b = (Transform.from_spin(torch.rad2deg(w), v) for w, v in ((omega, n), (omega + grow, m)))
    length2 = torch.deg2rad((b @ a.inverse()).to_spin()[0]) ** 2
    law = grow**2 + 4 * torch.sin((omega + grow / 2) / 2) ** 2 * ((n - m) ** 2).sum(1)
    torch.testing.assert_close(length2, law, rtol=2e-4, atol=step**2 * 1e-4)


def test_volume_of_the_rotations():
    """sin(theta) dphi dtheta dpsi and 4 sin^2(omega / 2) domega dn both add up to 8 pi^2."""
    n = 20000
    middle = (torch.arange(n, dtype=F64) + 0.5) * math.pi / n
    euler = (2 * math.pi) ** 2 * torch.sin(middle).sum() * math.pi / n
    spin = 4 * math.pi * (4 * torch.sin(middle / 2) ** 2).sum() * math.pi / n
    expected = torch.tensor(8 * math.pi**2, dtype=F64)
    torch.testing.assert_close(euler, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(spin, expected, rtol=1e-8, atol=0)


def test_senseless_transforms_are_refused():
    """Shapes that disagree, scales below 0, and matrices that are no similarity."""
    with pytest.raises(BadInput, match="need a translation"):
        Transform(torch.eye(3)[None], torch.zeros(3), torch.ones(1), torch.zeros(1, dtype=torch.bool))
    with pytest.raises(BadInput, match="mirror"):
        Transform.from_rotation(torch.eye(3)).having(scale=torch.tensor(-1.0))
    with pytest.raises(BadInput, match="rows and columns"):
        Transform.from_matrix(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    with pytest.raises(BadInput, match="rows and columns"):
        Transform.from_matrix(torch.zeros(3, 3))
