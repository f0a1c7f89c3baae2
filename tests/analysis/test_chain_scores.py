"""Laws of the scores of C-alpha traces."""

from __future__ import annotations

import math

import pytest
import torch

from cryorbit.analysis.chain_scores import (
    clash_fraction,
    pseudo_torsions,
    radius_of_gyration,
    right_handed_fraction,
    score_chain,
    secondary_structure_of_ca,
    step_fraction,
)
from cryorbit.data.protein_chain import rg_law_A
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.io.atoms import read_atoms
from cryorbit.io.structure_folder import protein_chains
from cryorbit.physics.procedural_protein import procedural_protein
from laws import ROUND_OFF

MIRROR = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
READ_A = 1e-3
"""Rg of deposited coordinates, which have three decimals."""


def trace(residues: int = 100, seed: int = 0) -> torch.Tensor:
    protein = procedural_protein(residues, seed)
    assert protein.atom_name is not None
    return protein.position_A[torch.from_numpy(protein.atom_name == "CA")].double()


def helix(residues: int) -> torch.Tensor:
    """An ideal alpha helix: radius 2.3 A, 100 degrees and 1.5 A a residue, right-handed."""
    i = torch.arange(residues, dtype=torch.float64)
    angle = torch.deg2rad(100 * i)
    return torch.stack((2.3 * torch.cos(angle), 2.3 * torch.sin(angle), 1.5 * i), -1)


def strand(residues: int) -> torch.Tensor:
    """A flat zigzag of 3.3 A a residue."""
    i = torch.arange(residues, dtype=torch.float64)
    return torch.stack((3.3 * i, 0.94 * (-1.0) ** i, 0 * i), -1)


@pytest.mark.parametrize("seed", range(3))
def test_no_score_depends_on_the_pose(seed: int):
    """Rotated by any rotation and moved by 100 A, every score is the same."""
    ca = trace(80, seed)
    turn = random_rotations(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[0]
    moved = ca @ turn.mT + 100.0
    one, other = (score_chain(x, generator=torch.Generator().manual_seed(1)) for x in (ca, moved))
    assert one.rg_A == pytest.approx(other.rg_A, rel=1e3 * ROUND_OFF[torch.float64])
    for name in ("step_fraction", "step_chance", "clash_fraction", "helix_fraction", "strand_fraction"):
        assert getattr(one, name) == getattr(other, name)
    torch.testing.assert_close(pseudo_torsions(moved), pseudo_torsions(ca), rtol=0, atol=1e-9)


def test_the_mirror_image_has_the_other_hand_and_nothing_else():
    """Helices and strands are where they were; every turn to the right is one to the left."""
    for seed in (0, 2):
        ca = trace(100, seed)
        assert secondary_structure_of_ca(ca * MIRROR) == secondary_structure_of_ca(ca)
        assert "HHHHH" in secondary_structure_of_ca(ca)
        right = right_handed_fraction(ca)
        assert right == 1.0
        assert right_handed_fraction(ca * MIRROR) == pytest.approx(1 - right)


def test_ideal_elements_are_recognised():
    """A helix is H, a zigzag E, a straight line of 3.8 A steps neither, all from end to end."""
    assert secondary_structure_of_ca(helix(20)) == "H" * 20
    assert secondary_structure_of_ca(strand(12)) == "E" * 12
    line = torch.stack((3.8 * torch.arange(12.0), torch.zeros(12), torch.zeros(12)), -1)
    assert secondary_structure_of_ca(line.double()) == "-" * 12
    torch.testing.assert_close(
        torch.rad2deg(pseudo_torsions(helix(10))), torch.full((7,), 50.0).double(), rtol=0, atol=2.0
    )
    assert math.isnan(right_handed_fraction(strand(12)))


def test_radius_of_gyration_is_the_pair_distance():
    """Rg^2 = mean over all pairs of d^2 / 2, for a batch too."""
    points = torch.randn(3, 17, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = torch.cdist(points, points).square().mean((-1, -2)) / 2
    torch.testing.assert_close(radius_of_gyration(points) ** 2, pairs)


def test_steps_and_their_chance():
    """A made protein has all its steps; in random order fewer than one in ten; gaps in the numbers are no steps."""
    ca = trace()
    scores = score_chain(ca, generator=torch.Generator().manual_seed(0))
    assert scores.step_fraction == 1.0
    assert scores.step_chance < 0.1
    assert scores.rg_ratio == pytest.approx(scores.rg_A / rg_law_A(100))
    broken = torch.cat((ca[:40], ca[50:]))
    number = torch.cat((torch.arange(40), torch.arange(50, 100)))
    assert step_fraction(broken) == pytest.approx(88 / 89)
    assert step_fraction(broken, residue_number=number) == 1.0
    assert step_fraction(ca * 1.05) == 0.0


def test_a_clash_counts_both_residues():
    """Two residues brought together are two of n; neighbours along the chain do not count."""
    ca = strand(20)
    assert clash_fraction(ca) == 0.0
    ca[15] = ca[5] + 0.1
    assert clash_fraction(ca) >= 2 / 20
    squeezed = strand(4) * 0.5
    assert clash_fraction(squeezed[:3]) == 0.0


def test_one_residue_is_no_chain():
    with pytest.raises(BadInput, match=r"1 C-alphas. Give a chain of at least two"):
        score_chain(torch.zeros(1, 3), generator=torch.Generator())
    assert secondary_structure_of_ca(torch.zeros(2, 3)) == "--"


@pytest.mark.data
@pytest.mark.parametrize(("entry", "rg"), [("6lyz.pdb.gz", 13.745), ("4lzt.cif.gz", 13.755)])
def test_lysozyme_in_angstrom(data_dir, entry: str, rg: float):
    """Radius of gyration of the C-alphas, a third of it helices, all of them right-handed, no clash."""
    (chain,) = protein_chains(read_atoms(data_dir / "structures" / "proteins" / entry), entry[:4])
    scores = score_chain(
        chain.ca_A, generator=torch.Generator().manual_seed(0), residue_number=chain.residue_number
    )
    assert scores.rg_A == pytest.approx(rg, abs=READ_A)
    assert scores.step_fraction == 1.0
    assert scores.clash_fraction == 0.0
    assert 0.3 < scores.helix_fraction < 0.45
    assert scores.right_handed_fraction == 1.0
