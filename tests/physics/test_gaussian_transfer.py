from __future__ import annotations

import pytest
import torch
from hypothesis import given

from cryorbit.data import Gaussians
from cryorbit.errors import BadInput
from cryorbit.physics.gaussian_transfer import carry_points, share_inside
from laws import rotations

EXACT_A = 1e-9  # float64, coordinates of tens of angstrom
G = torch.Generator


def molecule(n: int = 80, seed: int = 0) -> tuple[Gaussians, torch.Tensor]:
    """Gaussians along a molecule 60 A long, and atoms among them and a little outside."""
    g = G().manual_seed(seed)
    size = torch.tensor([30.0, 12.0, 12.0], dtype=torch.float64)
    place = size * (2 * torch.rand(n, 3, generator=g, dtype=torch.float64) - 1)
    atoms = 1.2 * size * (2 * torch.rand(200, 3, generator=g, dtype=torch.float64) - 1)
    amplitude = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    return Gaussians(place, amplitude, torch.full((n,), 4.0, dtype=torch.float64)), atoms


@given(rotations())
def test_a_rigid_motion_moves_atoms_identically(rotation):
    """Gaussians turned and shifted together take every atom along by that very motion."""
    gaussians, atoms = molecule()
    shift = torch.tensor([3.0, -40.0, 11.0], dtype=torch.float64)
    carried = carry_points(atoms, gaussians, gaussians.moved(rotation, shift).position_A[None])
    torch.testing.assert_close(carried[0], atoms @ rotation.T + shift, rtol=0, atol=EXACT_A)


def test_atoms_stay_where_nothing_moves():
    gaussians, atoms = molecule()
    carried = carry_points(atoms, gaussians, gaussians.position_A.expand(3, -1, -1))
    torch.testing.assert_close(carried, atoms.expand(3, -1, -1), rtol=0, atol=EXACT_A)


def test_atoms_deep_in_a_part_move_as_the_part():
    """Of two parts that turn apart, atoms far from the border move as their own."""
    gaussians, atoms = molecule(400)
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.4, 0], [0.4, 0, 0], [0, 0, 0]], dtype=torch.float64))
    right = gaussians.position_A[:, 0] > 0
    moved = torch.where(right[:, None], gaussians.position_A @ turn.T, gaussians.position_A)
    carried = carry_points(atoms, gaussians, moved[None], neighbours=16)[0]
    deep_right, deep_left = atoms[:, 0] > 15, atoms[:, 0] < -15
    torch.testing.assert_close(carried[deep_right], atoms[deep_right] @ turn.T, rtol=0, atol=EXACT_A)
    torch.testing.assert_close(carried[deep_left], atoms[deep_left], rtol=0, atol=EXACT_A)


def test_the_order_of_gaussians_does_not_matter():
    gaussians, atoms = molecule()
    g = G().manual_seed(3)
    moved = gaussians.position_A + torch.randn(80, 3, generator=g, dtype=torch.float64)
    order = torch.randperm(80, generator=g)
    one = carry_points(atoms, gaussians, moved[None])
    other = carry_points(atoms, gaussians.select(order), moved[None, order])
    torch.testing.assert_close(one, other, rtol=0, atol=EXACT_A)


def test_a_model_is_inside_its_map_or_not():
    """Points at the Gaussians are inside, points far away are not."""
    gaussians, _ = molecule()
    assert share_inside(gaussians.position_A + 1.0, gaussians) == 1
    assert share_inside(gaussians.position_A + 200.0, gaussians) == 0


def test_wrong_numbers_are_refused():
    gaussians, atoms = molecule()
    with pytest.raises(BadInput, match="same Gaussians moved"):
        carry_points(atoms, gaussians, gaussians.position_A[None, :7])
    few = gaussians.select(torch.arange(3))
    with pytest.raises(BadInput, match="at least four"):
        carry_points(atoms, few, few.position_A[None])
