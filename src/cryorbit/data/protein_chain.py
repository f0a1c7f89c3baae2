"""`ProteinChain`: one chain of a protein, its sequence, its C-alphas and its atoms."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data.atoms import Atoms
from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class ProteinChain:
    """The residues of a chain that have a C-alpha, in the order of the chain.

    Parameters
    ----------
    name
        Entry and chain: "6lyz_A".
    sequence
        One letter per residue, X where there is none.
    ca_A
        Shape (n, 3): C-alphas, angstrom, where the file has them.
    residue_number
        Shape (n,): numbers of the file; a gap in them may be a gap in the chain.
    atoms
        Every atom of those residues.
    """

    name: str
    sequence: str
    ca_A: Float[Tensor, "n 3"]
    residue_number: Int[Tensor, "n"]
    atoms: Atoms

    def __post_init__(self) -> None:
        n = len(self.sequence)
        if self.ca_A.shape != (n, 3) or self.residue_number.shape != (n,):
            raise BadInput(
                f"ProteinChain {self.name}: {n} letters but C-alphas {tuple(self.ca_A.shape)} and residue numbers "
                f"{tuple(self.residue_number.shape)}. Give one of each per residue."
            )

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def entry(self) -> str:
        """The part of the name before the chain."""
        return self.name.rpartition("_")[0]


def rg_law_A(residues: int) -> float:
    """Radius of gyration of the C-alphas of a globular protein of so many residues, 2.2 n^0.38 A.

    The exponent and factor are those of Skolnick, Kolinski and Ortiz (1997, J. Mol. Biol. 265, 217).

    >>> round(rg_law_A(129), 1)
    13.9
    """
    return 2.2 * residues**0.38
