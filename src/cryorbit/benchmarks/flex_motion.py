"""Rigid pieces of a model turned about a hinge: which axis, which angles, what bumps into what."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from torch import Tensor

from cryorbit.data import Atoms
from cryorbit.errors import BadInput
from cryorbit.geometry.directions import fibonacci_directions
from cryorbit.geometry.rotations import random_rotations, rotvec_to_matrix

CLASH_A = 5.0
"""C-alpha atoms of two pieces that come nearer than this bump: neighbours of one chain are 3.8 A apart."""

_FREE_A = 8.0
"""Around the hinge the pieces are one chain, and their distances say nothing."""

_DIRECTIONS, _TRIAL_ANGLES = 400, 24


@dataclass(frozen=True, eq=False)
class Hinge:
    """A piece of a model that turns about a point.

    Parameters
    ----------
    atoms
        The whole model.
    moving
        Which atoms turn, shape (n,).
    pivot_A
        The point that stays, shape (3,).
    """

    atoms: Atoms
    moving: Bool[Tensor, "n"]
    pivot_A: Float[Tensor, "3"]

    def turned(self, rotation: Float[Tensor, "3 3"]) -> Atoms:
        """The model with the piece turned about the pivot."""
        position = self.atoms.position_A.double()
        pivot = self.pivot_A.double()
        turned = (position - pivot) @ rotation.double().T + pivot
        placed = torch.where(self.moving[:, None], turned, position)
        return replace(self.atoms, position_A=placed.to(self.atoms.position_A.dtype))

    def arm(self) -> Float[Tensor, "3"]:
        """Unit vector from the pivot to the middle of the piece's C-alpha atoms."""
        return torch.nn.functional.normalize(self._traces()[0].mean(0), dim=0)

    def clashes(self, rotation: Float[Tensor, "r 3 3"]) -> Float[Tensor, "r"]:
        """Number of the piece's C-alpha atoms that bump into the rest, per rotation."""
        piece, rest = self._traces()
        tree = KDTree(rest.numpy())
        counts = []
        for turn in rotation.double():
            near, _ = tree.query((piece @ turn.T).numpy(), distance_upper_bound=CLASH_A)
            counts.append(float(np.isfinite(near).sum()))
        return torch.tensor(counts)

    def widest_free_axis(self) -> Float[Tensor, "3"]:
        """The axis through the pivot about which a full turn sweeps the piece furthest without a clash.

        Among 400 directions spread over the sphere: no clash at any of 24 angles, and the largest angle to the arm,
        at most 90 degrees (an axis along the arm would only spin the piece in its place).

        Raises
        ------
        BadInput
            If every axis leads to a clash.
        """
        angles = torch.arange(_TRIAL_ANGLES, dtype=torch.float64) * (2 * torch.pi / _TRIAL_ANGLES)
        directions = fibonacci_directions(_DIRECTIONS).double()
        along = directions @ self.arm()
        for index in along.clamp_min(0).argsort(stable=True).tolist():
            turns = rotvec_to_matrix(angles[:, None] * directions[index])
            if along[index] >= 0 and not bool(self.clashes(turns).any()):
                return directions[index]
        raise BadInput(
            "hinge: a full turn bumps into the rest about every axis. Move less, or another piece."
        )

    def random_turns(self, n: int, *, cone_deg: float, generator: torch.Generator) -> Float[Tensor, "n 3 3"]:
        """Uniform random rotations that keep the arm within a cone about where it stands, without a clash."""
        arm, found = self.arm(), []
        for _ in range(1000):
            trial = random_rotations(4 * n, generator=generator, dtype=torch.float64)
            inside = torch.einsum("i,rij,j->r", arm, trial, arm) > np.cos(np.radians(cone_deg))
            trial = trial[inside]
            found += list(trial[self.clashes(trial) == 0])
            if len(found) >= n:
                return torch.stack(found[:n])
        raise BadInput(f"hinge: fewer than {n} free positions within {cone_deg:g} degrees. Widen the cone.")

    def _traces(self) -> tuple[Tensor, Tensor]:
        """C-alpha atoms of the piece and of the rest, relative to the pivot, but for those next to it."""
        if self.atoms.atom_name is None:
            raise BadInput("hinge: the model has no atom names. Read it from a PDB or mmCIF file.")
        alpha = torch.from_numpy(np.asarray(self.atoms.atom_name == "CA", dtype=bool))
        from_pivot = self.atoms.position_A.double() - self.pivot_A.double()
        kept = alpha & (from_pivot.norm(dim=1) > _FREE_A)
        return from_pivot[kept & self.moving], from_pivot[kept & ~self.moving]
