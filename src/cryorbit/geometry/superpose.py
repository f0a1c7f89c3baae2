"""One set of points onto another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import nearest_rotation


@dataclass(frozen=True, eq=False)
class Superposition:
    """fixed = rotation @ moving + translation, as nearly as may be.

    Parameters
    ----------
    rotation
        Shape (..., 3, 3), proper.
    translation
        Shape (..., 3), unit of the points.
    rmsd
        Root of the (weighted) mean squared distance that is left, shape (...).
    """

    rotation: Float[Tensor, "... 3 3"]
    translation: Float[Tensor, "... 3"]
    rmsd: Float[Tensor, "..."]

    def apply(self, points: Float[Tensor, "... n 3"]) -> Float[Tensor, "... n 3"]:
        """Move `points` as the moving set was moved."""
        return points @ self.rotation.mT + self.translation[..., None, :]


def kabsch(
    moving: Float[Tensor, "*batch n 3"],
    fixed: Float[Tensor, "*batch n 3"],
    *,
    weight: Float[Tensor, "*batch n"] | None = None,
) -> Superposition:
    """The rotation and translation of `moving` that bring it nearest to `fixed`, point i to point i.

    Least weighted squares; never a reflection. Kabsch 1976, Acta Cryst. A32, 922.

    Raises
    ------
    BadInput
        If there is no point, or the weights are negative or all 0.
    """
    n = moving.shape[-2]
    if n == 0:
        raise BadInput("kabsch: there are no points. Give at least one pair (three for a unique answer).")
    if weight is None:
        w = moving.new_full((*moving.shape[:-1], 1), 1.0 / n)
    elif bool((weight < 0).any()) or not bool((weight.sum(-1) > 0).all()):
        raise BadInput("kabsch: weights must be at least 0, and not all 0.")
    else:
        w = (weight / weight.sum(-1, keepdim=True))[..., None]
    centre_moving, centre_fixed = (w * moving).sum(-2), (w * fixed).sum(-2)
    a, b = moving - centre_moving[..., None, :], fixed - centre_fixed[..., None, :]
    rotation = nearest_rotation((w * b).mT @ a)
    translation = centre_fixed - (rotation @ centre_moving[..., None]).squeeze(-1)
    left = (w * (a @ rotation.mT - b) ** 2).sum((-2, -1))
    return Superposition(rotation, translation, torch.sqrt(left))
