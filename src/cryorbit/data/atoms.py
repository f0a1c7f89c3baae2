"""`Atoms`: a molecular model as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryorbit.errors import BadInput

_LABELS = ("chain", "residue_name", "atom_name", "residue_number")


@dataclass(frozen=True, eq=False)
class Atoms:
    """Positions and kinds of the atoms of a model, one row per atom.

    Parameters
    ----------
    position_A
        Shape (n, 3): x, y, z in angstrom.
    atomic_number
        Shape (n,): 6 for carbon.
    b_factor_A2
        Shape (n,): isotropic displacement B = 8 pi^2 u^2.
    occupancy
        Shape (n,), 0 to 1.
    chain, residue_name, atom_name, residue_number
        Labels, each a numpy array of length n, or None.
    """

    position_A: Float[Tensor, "n 3"]
    atomic_number: Int[Tensor, "n"]
    b_factor_A2: Float[Tensor, "n"]
    occupancy: Float[Tensor, "n"]
    chain: np.ndarray | None = None
    residue_name: np.ndarray | None = None
    atom_name: np.ndarray | None = None
    residue_number: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = self.position_A.shape[0]
        for name in ("atomic_number", "b_factor_A2", "occupancy"):
            if getattr(self, name).shape != (n,):
                raise BadInput(f"Atoms: {name} has shape {tuple(getattr(self, name).shape)}, wanted ({n},).")

    def __len__(self) -> int:
        return self.position_A.shape[0]

    def select(self, rows: Int[Tensor, "m"] | Bool[Tensor, "n"]) -> Atoms:
        """The atoms at `rows`, or where a mask is true, in that order, with their labels."""
        index = rows.cpu().numpy()
        labels = {name: getattr(self, name) for name in _LABELS}
        return Atoms(
            self.position_A[rows],
            self.atomic_number[rows],
            self.b_factor_A2[rows],
            self.occupancy[rows],
            **{name: None if label is None else label[index] for name, label in labels.items()},
        )
