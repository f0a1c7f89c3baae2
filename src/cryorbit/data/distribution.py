"""`SO3Distribution`: where a particle may point, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class SO3Distribution:
    """p(R) for each of n particles, on a finite set of k cells of SO(3): probability[i, j] at rotation[i, j].

    Parameters
    ----------
    rotation
        Cell centres, shape (n, k, 3, 3).
    probability
        Shape (n, k); rows sum to 1.
    cell_fraction
        Share of SO(3) that one cell covers, so that entropies of different grids compare.
    """

    rotation: Float[Tensor, "n k 3 3"]
    probability: Float[Tensor, "n k"]
    cell_fraction: float

    def __post_init__(self) -> None:
        if self.rotation.shape[:2] != self.probability.shape:
            raise BadInput(
                f"SO3Distribution: {tuple(self.rotation.shape)} rotations but {tuple(self.probability.shape)} "
                "probabilities."
            )

    def __len__(self) -> int:
        return self.probability.shape[0]

    def entropy_nats(self) -> Float[Tensor, "n"]:
        """Differential entropy relative to the uniform distribution: 0 when nothing is known, negative when it is.

        >>> p = SO3Distribution(torch.eye(3).expand(1, 4, 3, 3), torch.full((1, 4), 0.25), cell_fraction=0.25)
        >>> p.entropy_nats().item()
        0.0
        """
        p = self.probability
        return -(p * torch.log(p.clamp_min(1e-30))).sum(-1) + math.log(self.cell_fraction)

    def mode(self) -> Float[Tensor, "n 3 3"]:
        """The most probable rotation of each particle."""
        best = self.probability.argmax(-1)
        return self.rotation[torch.arange(len(self), device=best.device), best]
