"""The twenty residues of proteins: backbone geometry, side chains from ideal internal coordinates, how common each is.

Bond lengths, angles and torsions are rounded from Engh and Huber (1991, Acta Cryst. A47, 392) and from the commonest
rotamers; hydrogens are left out, as in most deposited models.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

BOND_N_CA_A, BOND_CA_C_A, BOND_C_N_A = 1.458, 1.525, 1.329
ANGLE_N_CA_C_DEG, ANGLE_CA_C_N_DEG, ANGLE_C_N_CA_DEG = 111.0, 116.6, 121.7
BOND_CA_CB_A, ANGLE_N_CA_CB_DEG, TORSION_C_N_CA_CB_DEG = 1.53, 110.1, -122.8
BOND_C_O_A, ANGLE_CA_C_O_DEG = 1.231, 120.1

CHI1_DEG = (-60.0, 180.0, 60.0)
"""The three staggered rotamers about CA-CB, commonest first."""

Atom = tuple[str, int, tuple[str, str, str], float, float, float]
"""Name, atomic number, three earlier atoms (the last one bonded), bond A, angle deg, torsion deg."""

SIDE_CHAIN: dict[str, tuple[Atom, ...]] = {
    "ALA": (),
    "SER": (("OG", 8, ("N", "CA", "CB"), 1.42, 111, -60),),
    "VAL": (("CG1", 6, ("N", "CA", "CB"), 1.52, 111, 180), ("CG2", 6, ("N", "CA", "CB"), 1.52, 111, -60)),
    "LEU": (
        ("CG", 6, ("N", "CA", "CB"), 1.53, 116, -65),
        ("CD1", 6, ("CA", "CB", "CG"), 1.52, 111, 175),
        ("CD2", 6, ("CA", "CB", "CG"), 1.52, 111, -65),
    ),
    "GLU": (
        ("CG", 6, ("N", "CA", "CB"), 1.52, 114, -65),
        ("CD", 6, ("CA", "CB", "CG"), 1.52, 113, 180),
        ("OE1", 8, ("CB", "CG", "CD"), 1.25, 118, 0),
        ("OE2", 8, ("CB", "CG", "CD"), 1.25, 118, 180),
    ),
    "LYS": (
        ("CG", 6, ("N", "CA", "CB"), 1.52, 114, -65),
        ("CD", 6, ("CA", "CB", "CG"), 1.52, 111, 180),
        ("CE", 6, ("CB", "CG", "CD"), 1.52, 111, 180),
        ("NZ", 7, ("CG", "CD", "CE"), 1.49, 112, 180),
    ),
    "ASN": (
        ("CG", 6, ("N", "CA", "CB"), 1.52, 113, -65),
        ("OD1", 8, ("CA", "CB", "CG"), 1.23, 121, -30),
        ("ND2", 7, ("CA", "CB", "CG"), 1.33, 116, 150),
    ),
    "MET": (
        ("CG", 6, ("N", "CA", "CB"), 1.52, 114, -65),
        ("SD", 16, ("CA", "CB", "CG"), 1.81, 113, 180),
        ("CE", 6, ("CB", "CG", "SD"), 1.79, 101, 70),
    ),
    "GLY": (),
    "THR": (("OG1", 8, ("N", "CA", "CB"), 1.43, 109, -60), ("CG2", 6, ("N", "CA", "CB"), 1.52, 111, 180)),
    "CYS": (("SG", 16, ("N", "CA", "CB"), 1.81, 114, -65),),
    "PRO": (("CG", 6, ("N", "CA", "CB"), 1.49, 104, 30), ("CD", 6, ("CA", "CB", "CG"), 1.50, 106, -36)),
    "ASP": (
        ("CG", 6, ("N", "CA", "CB"), 1.52, 113, -65),
        ("OD1", 8, ("CA", "CB", "CG"), 1.25, 118, -30),
        ("OD2", 8, ("CA", "CB", "CG"), 1.25, 118, 150),
    ),
    "GLN": (
        ("CG", 6, ("N", "CA", "CB"), 1.52, 114, -65),
        ("CD", 6, ("CA", "CB", "CG"), 1.52, 113, 180),
        ("OE1", 8, ("CB", "CG", "CD"), 1.23, 121, 0),
        ("NE2", 7, ("CB", "CG", "CD"), 1.33, 116, 180),
    ),
    "ILE": (
        ("CG1", 6, ("N", "CA", "CB"), 1.53, 110, -60),
        ("CG2", 6, ("N", "CA", "CB"), 1.52, 111, 176),
        ("CD1", 6, ("CA", "CB", "CG1"), 1.51, 114, 170),
    ),
    "ARG": (
        ("CG", 6, ("N", "CA", "CB"), 1.52, 114, -65),
        ("CD", 6, ("CA", "CB", "CG"), 1.52, 111, 180),
        ("NE", 7, ("CB", "CG", "CD"), 1.46, 112, 180),
        ("CZ", 6, ("CG", "CD", "NE"), 1.33, 124, 180),
        ("NH1", 7, ("CD", "NE", "CZ"), 1.33, 120, 0),
        ("NH2", 7, ("CD", "NE", "CZ"), 1.33, 120, 180),
    ),
    "HIS": (
        ("CG", 6, ("N", "CA", "CB"), 1.50, 114, -65),
        ("ND1", 7, ("CA", "CB", "CG"), 1.38, 123, -70),
        ("CD2", 6, ("CA", "CB", "CG"), 1.36, 131, 110),
        ("CE1", 6, ("CB", "CG", "ND1"), 1.32, 109, 180),
        ("NE2", 7, ("CB", "CG", "CD2"), 1.37, 107, 180),
    ),
    "PHE": (
        ("CG", 6, ("N", "CA", "CB"), 1.50, 114, -65),
        ("CD1", 6, ("CA", "CB", "CG"), 1.39, 120, 90),
        ("CD2", 6, ("CA", "CB", "CG"), 1.39, 120, -90),
        ("CE1", 6, ("CB", "CG", "CD1"), 1.39, 120, 180),
        ("CE2", 6, ("CB", "CG", "CD2"), 1.39, 120, 180),
        ("CZ", 6, ("CG", "CD1", "CE1"), 1.39, 120, 0),
    ),
    "TYR": (
        ("CG", 6, ("N", "CA", "CB"), 1.51, 114, -65),
        ("CD1", 6, ("CA", "CB", "CG"), 1.39, 120, 90),
        ("CD2", 6, ("CA", "CB", "CG"), 1.39, 120, -90),
        ("CE1", 6, ("CB", "CG", "CD1"), 1.39, 120, 180),
        ("CE2", 6, ("CB", "CG", "CD2"), 1.39, 120, 180),
        ("CZ", 6, ("CG", "CD1", "CE1"), 1.39, 120, 0),
        ("OH", 8, ("CD1", "CE1", "CZ"), 1.38, 120, 180),
    ),
    "TRP": (
        ("CG", 6, ("N", "CA", "CB"), 1.50, 114, -65),
        ("CD1", 6, ("CA", "CB", "CG"), 1.37, 127, 90),
        ("CD2", 6, ("CA", "CB", "CG"), 1.43, 127, -90),
        ("NE1", 7, ("CB", "CG", "CD1"), 1.38, 110, 180),
        ("CE2", 6, ("CB", "CG", "CD2"), 1.41, 107, 180),
        ("CE3", 6, ("CB", "CG", "CD2"), 1.40, 134, 0),
        ("CZ2", 6, ("CG", "CD2", "CE2"), 1.39, 122, 180),
        ("CZ3", 6, ("CG", "CD2", "CE3"), 1.39, 119, 180),
        ("CH2", 6, ("CD2", "CE2", "CZ2"), 1.37, 118, 0),
    ),
}

ABUNDANCE = {
    **{"ALA": 8.3, "ARG": 5.5, "ASN": 4.1, "ASP": 5.5, "CYS": 1.4, "GLN": 3.9, "GLU": 6.7, "GLY": 7.1},
    **{"HIS": 2.3, "ILE": 5.9, "LEU": 9.7, "LYS": 5.8, "MET": 2.4, "PHE": 3.9, "PRO": 4.7, "SER": 6.6},
    **{"THR": 5.3, "TRP": 1.1, "TYR": 2.9, "VAL": 6.9},
}
"""Per cent of the residues of proteins (the statistics of UniProtKB/Swiss-Prot, rounded)."""


class SideChain(NamedTuple):
    """Atoms beyond C-alpha in one rotamer, in the frame of `residue_frames`."""

    names: tuple[str, ...]
    atomic_number: tuple[int, ...]
    position_A: Float[Tensor, "n 3"]


def place_atom(
    a: Float[Tensor, "3"],
    b: Float[Tensor, "3"],
    c: Float[Tensor, "3"],
    *,
    bond_A: float,
    angle_deg: float,
    torsion_deg: float,
) -> Float[Tensor, "3"]:
    """Position of d from its bond c-d, angle b-c-d and torsion a-b-c-d (Parsons et al. 2005, NeRF)."""
    theta, phi = math.radians(angle_deg), math.radians(torsion_deg)
    bc = torch.nn.functional.normalize(c - b, dim=0)
    n = torch.nn.functional.normalize(torch.linalg.cross(b - a, bc), dim=0)
    m = torch.linalg.cross(n, bc)
    return c + bond_A * (
        -math.cos(theta) * bc + math.sin(theta) * math.cos(phi) * m + math.sin(theta) * math.sin(phi) * n
    )


def residue_frames(
    n: Float[Tensor, "*batch 3"], ca: Float[Tensor, "*batch 3"], c: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """Right-handed axes (columns) fixed to N, CA, C of a residue: x along CA-C, N in the x-y plane."""
    x = torch.nn.functional.normalize(c - ca, dim=-1)
    z = torch.nn.functional.normalize(torch.linalg.cross(x, n - ca), dim=-1)
    return torch.stack((x, torch.linalg.cross(z, x), z), dim=-1)


@cache
def side_chain(kind: str, rotamer: int = 0) -> SideChain:
    """CB and the side chain of a residue in rotamer 0, 1 or 2 of `CHI1_DEG`, C-alpha at the origin.

    >>> side_chain("SER").names
    ('CB', 'OG')
    """
    angle = math.radians(ANGLE_N_CA_C_DEG)
    at = {
        "N": BOND_N_CA_A * torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64),
        "CA": torch.zeros(3, dtype=torch.float64),
        "C": torch.tensor([BOND_CA_C_A, 0.0, 0.0], dtype=torch.float64),
    }
    if kind == "GLY":
        return SideChain((), (), torch.zeros(0, 3, dtype=torch.float64))
    at["CB"] = place_atom(
        *(at[p] for p in ("C", "N", "CA")),
        bond_A=BOND_CA_CB_A,
        angle_deg=ANGLE_N_CA_CB_DEG,
        torsion_deg=TORSION_C_N_CA_CB_DEG,
    )
    turn = 0.0 if kind == "PRO" else CHI1_DEG[rotamer] - CHI1_DEG[0]  # the ring of proline does not turn
    names, numbers = ["CB"], [6]
    for name, z, parents, bond, bend, torsion in SIDE_CHAIN[kind]:
        about = torsion + (turn if parents == ("N", "CA", "CB") else 0.0)
        at[name] = place_atom(*(at[p] for p in parents), bond_A=bond, angle_deg=bend, torsion_deg=about)
        names.append(name)
        numbers.append(z)
    return SideChain(tuple(names), tuple(numbers), torch.stack([at[n] for n in names]))
