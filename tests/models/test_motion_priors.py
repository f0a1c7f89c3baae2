from __future__ import annotations

import torch
from torch import Tensor

from cryorbit.geometry.rotations import random_rotations, rotvec_to_matrix
from cryorbit.models.motion_priors import (
    clash_energy,
    elastic_energy,
    neighbour_pairs,
    pair_lengths,
    smoothness,
    without_rigid_motion,
)

EXACT = 1e-10  # float64 arithmetic over squares of lengths of some ten units; pair_lengths adds 1e-12 under the root
SECOND_ORDER = 2.0  # a turn by w leaves at most |w|^2 / 2 of each arm; twice that is granted


def points(n: int = 60) -> Tensor:
    return 5 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rigidly_moved(x: Tensor, b: int = 4) -> Tensor:
    g = torch.Generator().manual_seed(1)
    rotation = random_rotations(b, generator=g, dtype=torch.float64)
    return x @ rotation.mT + torch.randn(b, 1, 3, generator=g, dtype=torch.float64)


def test_pairs_are_neighbours_each_once():
    x = points()
    pairs = neighbour_pairs(x, neighbours=6)
    assert bool((pairs[:, 0] < pairs[:, 1]).all())
    assert len(pairs.unique(dim=0)) == len(pairs)
    nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).argmin(1)
    listed = {tuple(p) for p in pairs.tolist()}
    assert all(tuple(sorted((i, int(j)))) in listed for i, j in enumerate(nearest))


def test_no_prior_sees_a_rigid_motion():
    x = points()
    pairs = neighbour_pairs(x)
    rest, moved = pair_lengths(x, pairs), rigidly_moved(x)
    assert float(elastic_energy(moved, rest, pairs, released=0.0)) < EXACT
    shift = torch.ones(2, 60, 3, dtype=torch.float64)
    assert float(smoothness(shift, pairs)) < EXACT
    still = clash_energy(x[None], pairs, least=2.0)
    torch.testing.assert_close(clash_energy(moved, pairs, least=2.0), still, rtol=1e-9, atol=1e-9)


def test_elastic_energy_of_a_stretch_is_what_springs_hold():
    x = points()
    pairs = neighbour_pairs(x)
    rest = pair_lengths(x, pairs)
    found = elastic_energy(1.1 * x[None], rest, pairs, released=0.0)
    torch.testing.assert_close(found, (0.1 * rest).square().sum(), rtol=1e-9, atol=1e-9)
    assert float(elastic_energy(1.1 * x[None], rest, pairs, released=0.2)) < float(found)


def test_clashes_count_only_what_is_too_near():
    x = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [5.0, 0, 0]]], dtype=torch.float64)
    pairs = torch.tensor([[0, 1], [1, 2]])
    torch.testing.assert_close(clash_energy(x, pairs, least=3.0), torch.tensor(4.0, dtype=torch.float64))
    assert float(clash_energy(x, pairs, least=0.5)) == 0


def test_energies_have_finite_slopes_where_points_meet():
    x = torch.zeros(1, 3, 3, requires_grad=True)
    pairs = torch.tensor([[0, 1], [1, 2]])
    (elastic_energy(x, torch.ones(2), pairs) + clash_energy(x, pairs, least=1.0)).backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_a_shift_and_a_small_turn_are_taken_out_and_nothing_else_is():
    x, weight = points(), torch.rand(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = torch.tensor([0.01, -0.02, 0.015], dtype=torch.float64)
    rigid = x @ rotvec_to_matrix(w).mT - x + torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    left = without_rigid_motion(rigid[None], x, weight)
    assert float(left.norm(dim=-1).max()) < SECOND_ORDER * float(w.norm() ** 2) * float(x.norm(dim=1).max())
    inner = torch.randn(3, 60, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    once = without_rigid_motion(inner, x, weight)
    # A projection: what is left has no rigid part.
    torch.testing.assert_close(without_rigid_motion(once, x, weight), once, rtol=1e-6, atol=1e-7)
    share = weight / weight.sum()
    assert float(torch.einsum("n,bni->bi", share, once).norm()) < 1e-9
