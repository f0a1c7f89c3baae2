"""Laws of comparing traces: RMSD, TM-score, lDDT and their chance values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from cryorbit.analysis.chain_comparison import (
    compare_chains,
    lddt_of_ca,
    nearest_structure,
    permuted_rmsd,
)
from cryorbit.analysis.chain_scores import radius_of_gyration
from cryorbit.analysis.tm_score import tm_scale_A, tm_score
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.physics.procedural_protein import procedural_protein

SAME = 1e-6  # float64; the score is flat at its maximum
LOCAL = 1e-4  # two optimisers, each stopped near the same maximum


def trace(residues: int, seed: int) -> torch.Tensor:
    protein = procedural_protein(residues, seed)
    assert protein.atom_name is not None
    return protein.position_A[torch.from_numpy(protein.atom_name == "CA")].double()


def turn(seed: int) -> torch.Tensor:
    return random_rotations(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[0]


def hinged(ca: torch.Tensor, at: int, noise: float, seed: int = 0) -> torch.Tensor:
    """The trace with everything after `at` turned about that residue, and noise."""
    other = ca.clone()
    other[at:] = (ca[at:] - ca[at]) @ turn(seed).mT + ca[at]
    return other + noise * torch.randn(ca.shape, generator=torch.Generator().manual_seed(seed)).double()


def test_a_structure_is_like_itself_in_any_pose():
    """RMSD 0, TM-score and lDDT 1, whatever rotation and shift."""
    ca = trace(60, 0)
    moved = ca @ turn(1).mT + 50.0
    found = compare_chains(moved, ca, generator=torch.Generator().manual_seed(0))
    assert found.rmsd_A < SAME
    assert found.tm == pytest.approx(1, abs=SAME)
    assert found.lddt == 1.0
    assert found.rg_ratio == pytest.approx(1)
    assert not found.mirrored


def test_scores_do_not_depend_on_the_pose():
    """A rotation of either trace leaves all scores alone."""
    a, b = trace(60, 0), hinged(trace(60, 0), 35, 0.5)
    one = compare_chains(b, a, generator=torch.Generator().manual_seed(2))
    other = compare_chains(b @ turn(3).mT - 20.0, a @ turn(4).mT, generator=torch.Generator().manual_seed(2))
    for name in ("rmsd_A", "rmsd_chance_A", "tm", "tm_chance", "lddt", "lddt_chance", "rg_ratio"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=SAME), name


def test_a_random_order_is_near_the_bound_and_never_above():
    """Chance lies between 85 % of sqrt(Rg^2 + Rg'^2) and that, for any pair of proteins of 100 residues."""
    a, b = trace(100, 0), trace(100, 1)
    g = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(100, generator=g) for _ in range(30)])
    for x, y in ((a, a), (a, b)):
        bound = float((radius_of_gyration(x) ** 2 + radius_of_gyration(y) ** 2).sqrt())
        chance = permuted_rmsd(x, y, orders)
        assert float(chance.max()) <= bound
        assert float(chance.mean()) > 0.85 * bound
    found = compare_chains(a, a, generator=g)
    assert found.rmsd_bound_A == pytest.approx(2**0.5 * float(radius_of_gyration(a)))
    assert found.tm_chance < 0.25
    assert found.lddt_chance < 0.25


def test_a_mirror_image_is_seen_by_all_but_lddt():
    """It keeps every distance; it is said to be mirrored."""
    a = trace(60, 0)
    found = compare_chains(a * torch.tensor([1.0, 1.0, -1.0]), a, generator=torch.Generator().manual_seed(0))
    assert found.lddt == pytest.approx(1)
    assert found.tm < 0.6
    assert found.rmsd_A > 3
    assert found.mirrored


@pytest.mark.parametrize("seed", [0, 1])
def test_tm_score_is_the_maximum_over_all_motions(seed: int):
    """No rigid motion found by another optimiser from 60 random starts scores higher, and the best is as high."""
    a = trace(30, seed)
    b = hinged(a, 18, 0.4, seed)
    d0, x, y = tm_scale_A(30), b.numpy(), a.numpy()

    def minus_score(p: np.ndarray) -> float:
        apart = x @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:] - y
        return -float((1 / (1 + (apart**2).sum(1) / d0**2)).mean())

    rng = np.random.default_rng(seed)
    best = 1.0
    for _ in range(60):
        rotation = Rotation.random(rng=rng)
        k = rng.integers(30)  # starts that lay one residue on its partner
        start = np.concatenate((rotation.as_rotvec(), y[k] - rotation.apply(x[k])))
        best = min(best, float(minimize(minus_score, start, method="BFGS").fun))
    found = tm_score(b, a)
    assert found.score == pytest.approx(-best, abs=LOCAL)
    reached = 1 / (1 + ((found.motion.apply(b) - a) ** 2).sum(-1) / d0**2)
    assert float(reached.mean()) == pytest.approx(found.score, abs=SAME)


def test_tm_score_forgives_a_hinge_that_rmsd_does_not():
    """Two thirds of a chain unmoved score at least two thirds, though the RMSD is several angstrom."""
    a = trace(90, 3)
    b = hinged(a, 60, 0.0, seed=5)
    assert tm_score(b, a).score > 0.66
    found = compare_chains(b, a, generator=torch.Generator().manual_seed(0))
    assert found.rmsd_A > 3
    assert tm_score(b[:60], a[:60], residues=90).score == pytest.approx(60 / 90, abs=SAME)


def test_lddt_by_hand():
    """Four points on a line, one moved by 1.5 A: three of six distances are off by 1.5 A, kept at 2 and 4 A only."""
    a = torch.tensor([[0.0, 0, 0], [3, 0, 0], [6, 0, 0], [9, 0, 0]]).double()
    b = a.clone()
    b[3, 0] += 1.5
    assert lddt_of_ca(b, a) == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    with pytest.raises(BadInput, match=r"within 15 A"):
        lddt_of_ca(a * 10, a * 10)


def test_a_copy_is_found_in_the_library():
    """A piece of a known trace, turned and shaken, is found with its place; what is not there scores low."""
    library = [trace(n, seed) for seed, n in enumerate((70, 60, 90, 40))]
    shaken = 0.2 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    found = nearest_structure(library[2][25:75] @ turn(0).mT + shaken, library)
    assert (found.index, found.offset, found.paired) == (2, 25, 50)
    assert found.tm > 0.9
    assert found.rmsd_A < 0.5
    longer = nearest_structure(trace(120, 9), [trace(120, 9)[10:110], library[0]])
    assert (longer.index, longer.offset, longer.paired) == (0, -10, 100)
    assert longer.tm == pytest.approx(100 / 120, abs=SAME)
    assert nearest_structure(trace(50, 99), library).tm < 0.5


def test_too_little_is_refused():
    with pytest.raises(BadInput, match=r"2 residues"):
        compare_chains(torch.zeros(2, 3), torch.zeros(2, 3), generator=torch.Generator())
    with pytest.raises(BadInput, match=r"2 pairs for a length of 2"):
        tm_score(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(BadInput, match=r"at least one known trace"):
        nearest_structure(torch.zeros(5, 3), [])
