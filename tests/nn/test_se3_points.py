"""Chains of points: what turns turns, what is invariant stays, and mirror images differ."""

import pytest
import torch
from torch.nn.functional import normalize

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.nn.point_graph import CLIP, make_edges, point_chains
from cryorbit.nn.se3_points import (
    NoisyPoints,
    PointNetwork,
    centred,
    chain_frames,
    radial_basis,
    soft_direction,
    triple_products,
)
from laws import ROUND_OFF

MIRROR = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_chains(b: int, *, first: int = 7, second: int = 5, padding: int = 3):
    n = first + second + padding
    mask = (torch.arange(n) < first + second).expand(b, n)
    chain = (torch.arange(n) >= first).long().expand(b, n)
    residue = torch.cat((torch.arange(first), torch.arange(second + padding))).expand(b, n)
    return mask, chain, residue


def network(**options) -> PointNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = PointNetwork(8, 2, conditions=3, **options).double()
        # What starts at zero would make every law hold for the wrong reason.
        for p in net.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return net.requires_grad_(False)


def noisy(x: torch.Tensor) -> NoisyPoints:
    b = len(x)
    return NoisyPoints(x, torch.full((b,), 0.4).double(), torch.full((b,), 0.6).double(), draw(b, 3, seed=8))


def test_neighbours_are_found_wherever_rows_stand():
    """Next and previous by chain and residue, not by row; none at ends, gaps, and padding."""
    mask = torch.tensor([[True, True, True, True, True, False]])
    chain = torch.tensor([[4, 7, 4, 4, 7, 4]])
    residue = torch.tensor([[3, 1, 2, 5, 2, 4]])
    found = point_chains(mask, chain, residue)
    assert found.has_next.tolist() == [[False, True, True, False, False, False]]
    assert found.has_previous.tolist() == [[True, False, False, False, True, False]]
    assert found.next[0, 2] == 0
    assert found.next[0, 1] == 4
    assert found.previous[0, 0] == 2


def test_edges_know_how_far_along_the_chain():
    """Clipped offsets inside a chain, a number of their own between chains."""
    n = 80
    mask, residue = torch.ones(1, n, dtype=torch.bool), torch.arange(n)[None]
    chain = (residue >= 50).long()
    edges = make_edges(draw(1, n, 3), point_chains(mask, chain, residue), neighbours=None)
    assert edges.offset[0, 0, 3] == CLIP + 3
    assert edges.offset[0, 49, 0] == 0
    assert edges.offset[0, 0, 49] == 2 * CLIP
    assert edges.offset[0, 0, 50] == 2 * CLIP + 1
    near, far = edges.weights(4, draw(1))
    assert float(near[0, 10].sum()) == pytest.approx(2.0)
    torch.testing.assert_close(far.sum(-1), torch.ones(1, n, dtype=torch.float64))


def test_nearest_neighbours_keep_the_chain():
    """Each point hears its neighbours along the chain however far away, then the nearest in space."""
    n = 60
    x = draw(1, n, 3)
    mask, residue = torch.ones(1, n, dtype=torch.bool), torch.arange(n)[None]
    edges = make_edges(x, point_chains(mask, torch.zeros_like(residue), residue), neighbours=12)
    assert edges.sender is not None
    senders = set(edges.sender[0, 30].tolist())
    assert {26, 27, 28, 29, 31, 32, 33, 34} <= senders
    distance = (x[0] - x[0, 30]).norm(dim=1)
    distance[26:35] = torch.inf
    assert senders - set(range(26, 35)) == set(distance.topk(4, largest=False).indices.tolist())


def test_a_mirror_turns_signed_invariants_round():
    """The sine of the pseudo-dihedral changes sign, its cosine does not; a helix and its mirror image differ."""
    chains = point_chains(*two_chains(2))
    x = draw(2, 15, 3)
    here, there = triple_products(x, chains), triple_products(x @ MIRROR, chains)
    torch.testing.assert_close(there, here * torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert float(here[..., 0].abs().max()) > 0.1


def test_directions_are_smooth_where_bonds_vanish():
    """Finite values and derivatives with all points in one place, and a right angle in the frame where they are long."""
    chains = point_chains(*two_chains(1))
    x = torch.zeros(1, 15, 3, dtype=torch.float64, requires_grad=True)
    net = network()
    value = (
        net(noisy(x), chains).square().sum()
        + chain_frames(x, chains).sum()
        + triple_products(x, chains).sum()
    )
    (slope,) = torch.autograd.grad(value, x)
    assert bool(slope.isfinite().all())
    v = draw(4, 3)
    torch.testing.assert_close(soft_direction(1e6 * v), normalize(v, dim=-1))


def test_radial_functions_cover_all_distances_in_equal_measure():
    """Their sum stays the same but at the ends: Gaussians one spacing apart add up to a constant."""
    d = torch.linspace(0.2, 2.0, 50, dtype=torch.float64)
    total = radial_basis(d).sum(-1)
    assert float(total.max() / total.min()) < 1.1


@pytest.mark.parametrize("dense", [True, False])
def test_vectors_turn_with_the_points(dense):
    """F(x R) = F(x) R for 8 rotations, between all points and between the nearest alone."""
    net = network() if dense else network(neighbours=10, dense_up_to=11)
    chains, x = point_chains(*two_chains(1)), draw(1, 15, 3)
    here = net(noisy(centred(x, chains.mask)), chains)
    for turn in random_rotations(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64):
        there = net(noisy(centred(x @ turn, chains.mask)), chains)
        error = (there - here @ turn).square().mean().sqrt() / here.square().mean().sqrt()
        assert float(error) < ROUND_OFF[torch.float64]
    mirrored = net(noisy(centred(x @ MIRROR, chains.mask)), chains)
    assert float((mirrored - here @ MIRROR).norm() / here.norm()) > 0.05


@pytest.mark.parametrize("dense", [True, False])
def test_padding_changes_nothing_and_stays_zero(dense):
    """Rows without a point: any coordinates there, more of them, or none, give the same vectors elsewhere."""
    net = network() if dense else network(neighbours=10, dense_up_to=11)
    x = draw(2, 15, 3)
    padded, bare = two_chains(2), two_chains(2, padding=0)
    here = net(noisy(centred(x[:, :12])), point_chains(*bare))
    there = net(noisy(centred(x, padded[0])), point_chains(*padded))
    torch.testing.assert_close(there[:, :12], here, rtol=0, atol=1e-11)
    assert float(there[:, 12:].abs().max()) == 0
    assert float(there.sum(1).abs().max()) < 1e-11


def test_the_order_of_rows_and_the_names_of_chains_carry_no_meaning():
    """Rows shuffled, chains renamed: vectors follow their rows."""
    net, (mask, chain, residue) = network(), two_chains(1)
    x = centred(draw(1, 15, 3), mask)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(4))
    here = net(noisy(x), point_chains(mask, chain, residue))
    renamed = 9 - 3 * chain
    there = net(noisy(x[:, order]), point_chains(mask[:, order], renamed[:, order], residue[:, order] + 5))
    torch.testing.assert_close(there, here[:, order], rtol=0, atol=1e-11)


def test_all_senders_named_one_by_one_are_all_senders():
    """Edges from the 11 nearest of 11 others are those between all points: the sparse way equals the dense one."""
    chains, x = point_chains(*two_chains(2, padding=0)), centred(draw(2, 12, 3))
    dense = network()(noisy(x), chains)
    torch.testing.assert_close(
        network(neighbours=11, dense_up_to=11)(noisy(x), chains), dense, rtol=0, atol=1e-11
    )


def test_a_small_molecule_does_not_notice_a_large_one_beside_it():
    """In a batch of both sizes each is treated as it would be alone."""
    net = network(neighbours=6, dense_up_to=10)
    mask, chain, residue = (t.clone() for t in two_chains(2, padding=0))
    mask[1, 6:] = False
    x = centred(draw(2, 12, 3), mask)
    given, together = noisy(x), point_chains(mask, chain, residue)
    both = net(given, together)
    for i in range(2):
        row = torch.arange(2) == i
        alone = net(
            NoisyPoints(x[row], given.step[row], given.bond[row], given.condition[row]), together.samples(row)
        )
        torch.testing.assert_close(both[row], alone, rtol=0, atol=1e-11)


def test_impossible_chains_and_sizes_are_refused():
    mask, chain, residue = two_chains(1)
    with pytest.raises(BadInput, match="same residue index"):
        point_chains(mask, torch.zeros_like(chain), torch.zeros_like(residue))
    with pytest.raises(BadInput, match="no points"):
        point_chains(torch.zeros_like(mask), chain, residue)
    with pytest.raises(BadInput, match="hidden 0"):
        PointNetwork(0, 1, conditions=1)
