"""Laws of made-up proteins: geometry, size, hand, mass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryorbit.data import Atoms
from cryorbit.data.protein_chain import rg_law_A
from cryorbit.errors import BadInput
from cryorbit.io.atoms import read_atoms
from cryorbit.physics.chain_fold import FoldProblem, _forces, _Near, _torsion_gradient, chain_of
from cryorbit.physics.procedural_protein import procedural_protein, secondary_structure
from cryorbit.physics.scatter import scattering_factor_A
from cryorbit.physics.side_chains import SIDE_CHAIN, residue_frames, side_chain

SIZES = (64, 97, 160)
STEP_A = 0.05  # omega jitters by 3 degrees, bonds and angles do not
WRITTEN = 1e-3  # positions are float32 of numbers below 100


@pytest.fixture(scope="module")
def proteins() -> list[Atoms]:
    return [procedural_protein(n, seed) for n in SIZES for seed in range(3)]


def named(protein: Atoms, name: str) -> torch.Tensor:
    assert protein.atom_name is not None
    return protein.position_A[torch.from_numpy(protein.atom_name == name)].double()


def test_bonds_of_the_backbone(proteins: list[Atoms]):
    """C-alpha steps 3.80 +- 0.05 A; N-CA, CA-C, C-N, C-O of ideal length."""
    for protein in proteins:
        n, ca, c, o = (named(protein, name) for name in ("N", "CA", "C", "O"))
        assert ((ca[1:] - ca[:-1]).norm(dim=1) - 3.80).abs().max() < STEP_A
        for a, b, bond in ((n, ca, 1.458), (ca, c, 1.525), (c[:-1], n[1:], 1.329), (c, o, 1.231)):
            assert ((a - b).norm(dim=1) - bond).abs().max() < WRITTEN


def test_oxygen_lies_in_the_plane_of_the_peptide(proteins: list[Atoms]):
    """CA, C, O and the next N are coplanar, O on the far side of N: 123 degrees between C-O and C-N."""
    for protein in proteins:
        ca, c, o, n = (named(protein, name) for name in ("CA", "C", "O", "N"))
        a, b, d = (v / v.norm(dim=1, keepdim=True) for v in ((ca - c)[:-1], (o - c)[:-1], n[1:] - c[:-1]))
        assert (torch.linalg.cross(a, b) * d).sum(1).abs().max() < 1e-2
        angle = torch.rad2deg(torch.acos((b * d).sum(1)))
        assert (angle - (360 - 120.1 - 116.6)).abs().max() < 1.0


def test_no_residue_clashes(proteins: list[Atoms]):
    """C-alphas three or more apart are nearer than 3.6 A for fewer than 1 % of residues."""
    close = total = 0
    for protein in proteins:
        ca = named(protein, "CA")
        apart = torch.cdist(ca, ca)
        i, j = torch.triu_indices(len(ca), len(ca), 3)
        close += int((apart[i, j] < 3.6).sum())
        total += len(ca)
    assert close < 0.01 * total


def test_the_size_of_globular_proteins(proteins: list[Atoms]):
    """Mean radius of gyration within 10 % of 2.2 n^0.38 A, and no protein 25 % off."""
    ratio = torch.tensor(
        [
            float((p - p.mean(0)).square().sum(1).mean().sqrt()) / rg_law_A(len(p))
            for p in map(ca_of, proteins)
        ]
    )
    assert abs(ratio.mean() - 1) < 0.10
    assert (ratio - 1).abs().max() < 0.25


def ca_of(protein: Atoms) -> torch.Tensor:
    return named(protein, "CA")


def test_every_helix_is_right_handed():
    """The pseudo-torsion of four C-alphas inside a helix is +50 degrees, for each one of each helix."""
    found = 0
    for seed in range(4):
        states = secondary_structure(97, np.random.default_rng(seed))
        ca = ca_of(procedural_protein(97, seed))
        inside = torch.from_numpy(np.stack([states[i : i + 94] == "H" for i in range(4)]).all(0))
        a, b, c = (ca[i + 1 : i + 95] - ca[i : i + 94] for i in range(3))
        first, second = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
        sine = (b / b.norm(dim=1, keepdim=True) * torch.linalg.cross(first, second)).sum(1)
        torsion = torch.rad2deg(torch.atan2(sine, (first * second).sum(1)))[inside]
        found += len(torsion)
        assert (torsion - 50).abs().max() < 25
    assert found > 50


def test_amino_acids_are_left_handed(proteins: list[Atoms]):
    """(N - CA) x (C - CA) . (CB - CA) > 0 in every residue but glycine."""
    for protein in proteins:
        assert protein.residue_name is not None
        has = torch.from_numpy(protein.residue_name != "GLY")
        part = protein.select(has)
        n, ca, c, cb = (named(part, name) for name in ("N", "CA", "C", "CB"))
        assert ((torch.linalg.cross(n - ca, c - ca) * (cb - ca)).sum(1) > 0).all()


def test_the_seed_decides_everything():
    """The same seed gives the same atoms, other seeds others; both run through all classes."""
    a, b, c = (procedural_protein(40, seed) for seed in (5, 5, 6))
    assert torch.equal(a.position_A, b.position_A)
    assert a.residue_name is not None
    assert b.residue_name is not None
    assert (a.residue_name == b.residue_name).all()
    assert a.position_A.shape != c.position_A.shape or not torch.equal(a.position_A, c.position_A)


def test_elements_follow_the_lengths_asked_for():
    """Helices have 5-20 residues, strands 4-9; loops lie between any two."""
    limits = {"H": (5, 20), "E": (4, 9)}
    for seed in range(20):
        text = "".join(secondary_structure(150, np.random.default_rng(seed)))
        assert "HE" not in text
        assert "EH" not in text
        for state, (low, high) in limits.items():
            for run in "".join(c if c == state else " " for c in text).split():
                assert low <= len(run) <= high


def test_a_chain_that_touches_nothing_folds():
    """The smallest proteins, of many seeds, whose residues may start out of reach of one another."""
    for seed in (0, 8):  # 8 has no two side chains within reach when it starts
        protein = procedural_protein(20, seed)
        assert torch.isfinite(protein.position_A).all()
        assert len(ca_of(protein)) == 20


def test_sizes_out_of_range_are_refused():
    with pytest.raises(BadInput, match=r"19 residues. Give 20 to 400"):
        procedural_protein(19, 0)


def test_torsions_are_read_back():
    """A chain built from torsions has those torsions: phi from C, N, CA, C and psi from N, CA, C, N."""
    rng = np.random.default_rng(0)
    torsion = rng.uniform(-np.pi, np.pi, (12, 3))
    chain = chain_of(torsion)

    def dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
        u, v, w = b - a, c - b, d - c
        first, second = np.cross(u, v), np.cross(v, w)
        sine = (v * np.cross(first, second)).sum(1) / np.linalg.norm(v, axis=1)
        return np.arctan2(sine, (first * second).sum(1))

    phi = dihedral(chain.c[:-1], chain.n[1:], chain.ca[1:], chain.c[1:])
    psi = dihedral(chain.n[:-1], chain.ca[:-1], chain.c[:-1], chain.n[1:])
    omega = dihedral(chain.ca[:-1], chain.c[:-1], chain.n[1:], chain.ca[1:])
    for found, wanted in ((phi, torsion[1:, 0]), (psi, torsion[:-1, 1]), (omega, torsion[:-1, 2])):
        np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * wanted), atol=1e-9)
    frames = residue_frames(*(torch.from_numpy(x) for x in (chain.n, chain.ca, chain.c)))
    np.testing.assert_allclose(frames.numpy(), chain.frame, atol=1e-9)


def test_the_slope_along_torsions_is_the_derivative():
    """For forces held fixed, axis . moment equals the finite difference of sum x . force over each torsion."""
    rng = np.random.default_rng(1)
    torsion = rng.uniform(-np.pi, np.pi, (15, 3))
    side_A = rng.standard_normal((15, 3))
    problem = FoldProblem(side_A, np.ones((15, 2), dtype=bool), np.array([[1, 9]]), 6.0)

    def places(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chain = chain_of(t)
        return chain.ca, chain.ca + np.einsum("nij,nj->ni", chain.frame, side_A)

    chain, (ca, side) = chain_of(torsion), places(torsion)
    at_ca, at_side = _forces(chain, side, problem, hardness=1.0, near=_Near())
    # Forces of internal energies feel neither moves nor turns of the whole: the first C-alpha stays put here.
    slope = _torsion_gradient(chain, side, at_ca, at_side)
    for k in range(15):
        for column in range(2):
            step = np.zeros_like(torsion)
            step[k, column] = 1e-6
            change = 0.0
            for sign in (1, -1):
                moved = places(torsion + sign * step)
                change += sign * float((at_ca * (moved[0] - ca)).sum() + (at_side * (moved[1] - side)).sum())
            np.testing.assert_allclose(slope[k, column], change / 2e-6, atol=1e-5 * np.abs(slope).max())


def test_side_chains_have_their_bonds_and_no_overlap():
    """Each atom is bonded (1.2 - 1.9 A) to an earlier one; no two atoms of a rotamer are nearer than 1.2 A."""
    for kind in SIDE_CHAIN:
        for rotamer in range(3):
            side = side_chain(kind, rotamer)
            points = torch.cat((torch.zeros(1, 3, dtype=torch.float64), side.position_A))
            apart = torch.cdist(points, points)
            for row in range(1, len(points)):
                assert 1.2 < apart[row, :row].min() < 1.9, (kind, side.names[row - 1])


@pytest.mark.data
def test_scattering_mass_per_residue_is_that_of_real_proteins(data_dir, proteins: list[Atoms]):
    """Sum of f(0) over heavy atoms per residue within 10 % of the mean of lysozyme, myoglobin and ubiquitin."""
    folder = data_dir / "structures" / "proteins"
    real = [
        mass_per_residue(read_atoms(folder / f"{e}")) for e in ("6lyz.pdb.gz", "101m.pdb.gz", "1ubq.cif.gz")
    ]
    made = [mass_per_residue(p) for p in proteins]
    assert abs(np.mean(made) / np.mean(real) - 1) < 0.10


def mass_per_residue(atoms: Atoms) -> float:
    assert atoms.residue_name is not None
    protein = torch.from_numpy(np.isin(atoms.residue_name, list(SIDE_CHAIN))) & (atoms.atomic_number > 1)
    part = atoms.select(protein)
    zero = torch.zeros(1, dtype=torch.float64)
    values = {z: float(scattering_factor_A(z, zero)) for z in part.atomic_number.unique().tolist()}
    assert part.atom_name is not None
    return sum(
        values[z] * o for z, o in zip(part.atomic_number.tolist(), part.occupancy.tolist(), strict=True)
    ) / float((part.atom_name == "CA").sum())
