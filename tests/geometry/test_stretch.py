"""Laws of the stretch that views can share."""

import math

import pytest
import torch

from cryorbit.geometry.rotations import random_rotations, rotvec_to_matrix
from cryorbit.geometry.stretch import stretch_equations, stretch_of, stretched, typical_turn
from cryorbit.geometry.symmetry import point_group

F64 = torch.float64
ROUND_OFF = 1e-7
"""Turn vectors of nearly equal rotations, in float64, keep half their digits; and the equations are damped by 1e-9."""
SMALL = 1e-4
SECOND_ORDER = 5 * SMALL**2
"""What first-order formulas leave at stretches of SMALL."""


def some_stretch(seed: int, size: float = SMALL):
    a = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    a = a + a.T
    return size * (a - a.trace() / 3 * torch.eye(3, dtype=F64))


def some_rotations(n: int, seed: int = 0):
    return random_rotations(n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def solved(before, after, group: str = "C1"):
    return stretch_of(*stretch_equations(before, after), point_group(group))


def test_the_slice_of_a_stretched_map_is_seen_in_the_stretched_view():
    """The plane that (1 + A) makes of a slice's plane is normal to the new view."""
    a, rotation = some_stretch(1), some_rotations(20)
    x, y = (rotation[:, :2] @ (torch.eye(3, dtype=F64) + a)).unbind(1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(x, y), dim=-1)
    torch.testing.assert_close(stretched(rotation, a)[:, 2], normal, atol=SECOND_ORDER, rtol=0)


@pytest.mark.parametrize("frame", [0.0, 0.02])
def test_the_stretch_is_found_whatever_the_frame(frame):
    a, before = some_stretch(2), some_rotations(300)
    axis = torch.tensor([0.3, -0.5, 0.8], dtype=F64)
    after = stretched(before, a) @ rotvec_to_matrix(frame * axis)
    # The frame's turn mixes with the stretch at second order.
    torch.testing.assert_close(
        solved(before, after), a, atol=SECOND_ORDER + ROUND_OFF + frame * 3 * SMALL, rtol=0
    )


def test_equations_of_parts_add_up():
    before, after = some_rotations(40), stretched(some_rotations(40), some_stretch(3))
    parts = [stretch_equations(before[i : i + 15], after[i : i + 15]) for i in (0, 15, 30)]
    whole = stretch_equations(before, after)
    for k in (0, 1):
        torch.testing.assert_close(sum(p[k] for p in parts), whole[k])


def test_symmetry_leaves_what_it_allows():
    before, a = some_rotations(300), some_stretch(4)
    after = stretched(before, a)
    axial = solved(before, after, "C3")
    along = torch.diag(torch.tensor([-0.5, -0.5, 1.0], dtype=F64)) * a[2, 2]
    torch.testing.assert_close(axial, along, atol=SECOND_ORDER + ROUND_OFF, rtol=0)
    assert typical_turn(solved(before, after, "O")) < SECOND_ORDER + ROUND_OFF


def test_the_typical_turn_is_that_of_even_views():
    a, rotation = some_stretch(5), some_rotations(20_000)
    view = rotation[:, 2]
    turn = torch.linalg.cross(view, view @ a).square().sum(1).mean().sqrt()
    monte_carlo = 3 / math.sqrt(20_000)
    assert typical_turn(a) == pytest.approx(float(turn), rel=monte_carlo)
