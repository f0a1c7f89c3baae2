"""Made-up proteins from a seed: secondary structure, ideal geometry, a compact fold, side chains."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import KDTree

from cryorbit.data import Atoms
from cryorbit.data.protein_chain import rg_law_A
from cryorbit.errors import BadInput
from cryorbit.physics.chain_fold import Chain, FoldProblem, chain_of, fold
from cryorbit.physics.side_chains import (
    ABUNDANCE,
    ANGLE_CA_C_O_DEG,
    BOND_C_O_A,
    CHI1_DEG,
    side_chain,
)

_LENGTH = {"H": (5, 20), "E": (4, 9), "L": (3, 10)}
"""Shortest and longest helix, strand and loop, residues."""

_HELIX_SHARE = (0.95, 0.05, 0.55, 0.55)
"""Chance that an element is a helix in a protein of each class: all alpha, all beta, mixed (twice as common)."""

_TORSION_DEG = {"H": (-62.0, -43.0), "E": (-120.0, 130.0)}
_LOOP_DEG = np.array([(-70.0, 145.0), (-120.0, 130.0), (-68.0, -35.0), (57.0, 42.0)])
"""Polyproline II, extended, right-handed and left-handed turns."""

_LOOP_SHARE = (0.45, 0.20, 0.25, 0.10)
_JITTER_DEG = {"H": 3.0, "E": 8.0, "L": 12.0}
_ROOM_A = 4.0
"""Atoms of two residues nearer than this overlap."""

_B_FACTOR_A2 = {"H": 25.0, "E": 25.0, "L": 40.0}


def procedural_protein(residues: int, seed: int) -> Atoms:
    """A right-handed, compact protein that never was, all heavy atoms, the same for the same seed.

    Helices, strands and loops follow one another by chance; the chain has ideal bonds and the torsions of its
    secondary structure with jitter; the loops fold it (`chain_fold.fold`) to the radius of gyration of real proteins,
    give or take 4 %, with neighbouring strands side by side; side chains come in the rotamer that finds most room.
    Residues are drawn as common as in nature. B-factors are 25 A^2, 40 in loops; chain A, residues from 1; the C-alphas'
    mean at the origin. Another build of numpy may round otherwise and so fold otherwise.

    Parameters
    ----------
    residues
        20 to 400: one domain. Longer chains get entangled.

    Raises
    ------
    BadInput
        If the number of residues is out of range.
    """
    if not 20 <= residues <= 400:
        raise BadInput(f"procedural_protein: {residues} residues. Give 20 to 400.")
    rng = np.random.default_rng(seed)
    states = secondary_structure(residues, rng)
    basin = rng.choice(len(_LOOP_DEG), residues, p=_LOOP_SHARE)
    kinds = _sequence(states, basin, rng)
    problem = FoldProblem(
        np.stack([_middle(kind) for kind in kinds]),
        np.repeat((states == "L")[:, None], 2, axis=1),
        _paired(states, rng),
        rg_law_A(residues) * float(np.exp(0.04 * rng.standard_normal())),
    )
    torsion = fold(_torsions(states, basin, rng), problem, rng=rng)
    return _dressed(chain_of(torsion), torsion, kinds, states)


def secondary_structure(residues: int, rng: np.random.Generator) -> np.ndarray:
    """One of "H", "E", "L" per residue: loops and elements in turn; a class drawn first says how many are helices."""
    share = _HELIX_SHARE[rng.integers(len(_HELIX_SHARE))]
    parts = ["L"] * int(rng.integers(1, 5))
    while len(parts) < residues:
        kind = "H" if rng.random() < share else "E"
        for state in (kind, "L"):
            low, high = _LENGTH[state]
            # Loops are mostly short: the mean of the smaller of two draws.
            length = rng.integers(low, high + 1, size=2 if state == "L" else 1).min()
            parts += [state] * int(length)
    states = np.array(parts[:residues])
    for start, stop in _runs(states):
        if states[start] != "L" and stop - start < _LENGTH[str(states[start])][0]:
            states[start:stop] = "L"  # an element cut off by the chain's end
    return states


def _runs(states: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of each stretch of one state."""
    edges = np.flatnonzero(states[1:] != states[:-1]) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(states)], strict=True))


def _sequence(states: np.ndarray, basin: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Names of residues as common as in nature, with glycine at left-handed turns and no proline in elements."""
    names = list(ABUNDANCE)
    share = np.array(list(ABUNDANCE.values()))
    drawn = [names[k] for k in rng.choice(len(names), len(states), p=share / share.sum())]
    for i, kind in enumerate(drawn):
        if states[i] == "L" and basin[i] == 3 and kind not in ("ASN", "ASP"):
            drawn[i] = "GLY"
        elif kind == "PRO" and states[i] != "L":
            drawn[i] = "ALA"
        elif kind == "GLY" and states[i] != "L":
            drawn[i] = "LEU"
    return drawn


def _torsions(states: np.ndarray, basin: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """phi, psi, omega in radians before folding."""
    angle = _LOOP_DEG[basin]
    for state, ideal in _TORSION_DEG.items():
        angle[states == state] = ideal
    spread = np.array([_JITTER_DEG[str(s)] for s in states])[:, None]
    angle = angle + spread * rng.standard_normal(angle.shape)
    omega = 180.0 + 3.0 * rng.standard_normal((len(states), 1))
    return np.radians(np.concatenate((angle, omega), axis=1))


def _paired(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Residues of strands that lie side by side: antiparallel across a loop, parallel across a helix."""
    elements = [(start, stop) for start, stop in _runs(states) if states[start] != "L"]
    pairs: list[tuple[int, int]] = []
    for at, (start, stop) in enumerate(elements):
        if states[start] != "E":
            continue
        if at + 1 < len(elements) and states[elements[at + 1][0]] == "E":
            other = range(*elements[at + 1])
            pairs += zip(reversed(range(start, stop)), other, strict=False)
        elif at + 2 < len(elements) and states[elements[at + 2][0]] == "E" and rng.random() < 0.8:
            pairs += zip(range(start, stop), range(*elements[at + 2]), strict=False)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _middle(kind: str) -> np.ndarray:
    """The middle of a side chain in the residue's frame, over the three rotamers."""
    if kind == "GLY":
        return np.zeros(3)
    middles = [side_chain(kind, rotamer).position_A.mean(0).numpy() for rotamer in range(len(CHI1_DEG))]
    return np.mean(middles, axis=0)


def _dressed(chain: Chain, torsion: np.ndarray, kinds: list[str], states: np.ndarray) -> Atoms:
    """All atoms: backbone, oxygens, side chains in the rotamer that has most room."""
    backbone = np.stack((chain.n, chain.ca, chain.c, _oxygens(chain, torsion)), axis=1)
    chosen = _rotamers(chain, backbone, kinds)
    position, number, names, residue = [], [], [], []
    for i, kind in enumerate(kinds):
        side = side_chain(kind, chosen[i])
        position += [backbone[i], chain.ca[i] + side.position_A.numpy() @ chain.frame[i].T]
        number += [7, 6, 6, 8, *side.atomic_number]
        names += ["N", "CA", "C", "O", *side.names]
        residue += [i] * (4 + len(side.names))
    xyz = np.concatenate(position)
    rows = np.array(residue)
    return Atoms(
        torch.from_numpy(xyz - chain.ca.mean(0)).to(torch.float32),
        torch.tensor(number),
        torch.tensor([_B_FACTOR_A2[str(s)] for s in states])[torch.from_numpy(rows)],
        torch.ones(len(number)),
        chain=np.array(["A"] * len(number), dtype=object),
        residue_name=np.array(kinds, dtype=object)[rows],
        atom_name=np.array(names, dtype=object),
        residue_number=rows + 1,
    )


def _oxygens(chain: Chain, torsion: np.ndarray) -> np.ndarray:
    """Carbonyl oxygens, opposite to the next nitrogen: torsion N-CA-C-O = psi + 180 degrees."""
    psi, bend = torsion[:, 1] + np.pi, np.radians(ANGLE_CA_C_O_DEG)
    # x of the frame runs along CA-C; the torsion counts from the side of N, which lies at +y.
    local = np.stack(
        (-np.cos(bend) + 0 * psi, np.sin(bend) * np.cos(psi), np.sin(bend) * np.sin(psi)), axis=1
    )
    return chain.c + BOND_C_O_A * np.einsum("nij,nj->ni", chain.frame, local)


def _rotamers(chain: Chain, backbone: np.ndarray, kinds: list[str]) -> list[int]:
    """For each residue the rotamer that overlaps least: with the backbone first, then with side chains too."""
    count = len(CHI1_DEG)
    options = [
        [chain.ca[i] + side_chain(kind, r).position_A.numpy() @ chain.frame[i].T for r in range(count)]
        for i, kind in enumerate(kinds)
    ]
    chosen = [0] * len(kinds)
    others, owner = backbone.reshape(-1, 3), np.repeat(np.arange(len(kinds)), 4)
    for _ in range(2):
        found = _crowding(options, others, owner)
        chosen = found.argmin(axis=1).tolist()
        sides = [options[i][r] for i, r in enumerate(chosen)]
        others = np.concatenate((backbone.reshape(-1, 3), *sides))
        own = np.repeat(np.arange(len(kinds)), [len(s) for s in sides])
        owner = np.concatenate((np.repeat(np.arange(len(kinds)), 4), own))
    return chosen


def _crowding(options: list[list[np.ndarray]], others: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Overlap of each rotamer with atoms of other residues, shape (residues, rotamers): sum of (4 A - distance)^2."""
    points = np.concatenate([side for row in options for side in row])
    count = len(options) * len(CHI1_DEG)
    label = np.repeat(np.arange(count), [len(side) for row in options for side in row])
    near = KDTree(points).sparse_distance_matrix(KDTree(others), _ROOM_A, output_type="coo_matrix")
    foreign = owner[near.col] != label[near.row] // len(CHI1_DEG)
    overlap = (_ROOM_A - near.data[foreign]) ** 2
    return np.bincount(label[near.row[foreign]], overlap, count).reshape(len(options), len(CHI1_DEG))
