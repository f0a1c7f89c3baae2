"""Point groups as rotations, in RELION's settings, and the asymmetric unit of viewing directions.

A map with symmetry obeys V(g x) = V(x) for every g of the group, so poses A and A g explain the same image,
and viewing directions d (third row of A) and g^T d are equivalent.
"""

from __future__ import annotations

import functools
import math
import re

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import rotvec_to_matrix

_GOLDEN = (1 + math.sqrt(5)) / 2
_Axis = tuple[int, tuple[float, float, float]]
_POLYHEDRAL: dict[str, list[_Axis]] = {
    "T": [(3, (0, 0, 1)), (2, (0, math.sqrt(2), 1))],
    "O": [(4, (0, 0, 1)), (3, (1, 1, 1))],
    "I1": [(2, (1, 0, 0)), (5, (_GOLDEN, 0, -1))],
    "I2": [(2, (0, 0, 1)), (5, (1, 0, _GOLDEN))],
    "I3": [(5, (0, 0, 1)), (2, (-1, 0, _GOLDEN))],
    "I4": [(5, (0, 0, 1)), (2, (1, 0, _GOLDEN))],
}


def point_group(name: str) -> Float[Tensor, "g 3 3"]:
    """All rotations of the group, the identity first, float64.

    Cn: n-fold on z. Dn: n-fold on z, 2-fold on x. T: 3-fold on z, 2-fold on (0, sqrt 2, 1). O: 4-fold on z,
    3-fold on (1, 1, 1). I is I2: 2-folds on the coordinate axes, 5-fold on (1, 0, golden ratio); I1: 5-fold
    on (golden ratio, 0, -1); I3 and I4: 5-fold on z, 2-fold on (-1, 0, golden ratio) and (1, 0, golden
    ratio).

    Raises
    ------
    BadInput
        If the name is not one of these.

    >>> [len(point_group(name)) for name in ("C1", "C3", "D2", "T", "O", "I")]
    [1, 3, 4, 12, 24, 60]
    """
    return _point_group(canonical_name(name)).clone()


def is_cubic(name: str) -> bool:
    """Whether the group is tetrahedral, octahedral or icosahedral.

    >>> is_cubic("O"), is_cubic("D7")
    (True, False)
    """
    return canonical_name(name) in _POLYHEDRAL


def canonical_name(name: str) -> str:
    """The name in capitals, "I" spelt out as "I2"; BadInput if there is no such group."""
    upper = name.strip().upper()
    upper = "I2" if upper == "I" else upper
    if upper in _POLYHEDRAL or re.fullmatch(r"[CD][1-9][0-9]{0,2}", upper):
        return upper
    raise BadInput(
        f"Symmetry {name!r} is not known. Give C1, C2, ..., D1, D2, ..., T, O, I (= I2), I1, I3 or I4."
    )


@functools.cache
def _point_group(name: str) -> Tensor:
    if name[0] in "CD":
        axes: list[_Axis] = [(int(name[1:]), (0, 0, 1))]
        if name[0] == "D":
            axes.append((2, (1, 0, 0)))
    else:
        axes = _POLYHEDRAL[name]
    return _closure([_about(order, axis) for order, axis in axes])


def _about(order: int, axis: tuple[float, float, float]) -> Tensor:
    vector = torch.tensor(axis, dtype=torch.float64)
    return rotvec_to_matrix(vector / vector.norm() * (2 * math.pi / order))


def _closure(generators: list[Tensor]) -> Tensor:
    """All products of the generators."""
    found = torch.eye(3, dtype=torch.float64)[None]
    fresh = found
    while len(fresh):
        products = torch.cat([fresh @ g for g in generators])
        new: list[Tensor] = []
        for candidate in products:
            known = torch.cat([found, *[n[None] for n in new]])
            if ((known - candidate) ** 2).sum((1, 2)).min() > 1e-12:
                new.append(candidate)
        fresh = torch.stack(new) if new else found[:0]
        found = torch.cat([found, fresh])
    return found


# The asymmetric unit is the set of directions nearer to a reference direction than to any of its
# equivalents. The first reference is in general position for every setting; the others decide on the borders.
_REFERENCES = ((0.2113, 0.1279, 0.9690), (0.7871, 0.2953, 0.5414), (0.3391, 0.8837, 0.3226))
_BORDER = 1e-9


def in_asymmetric_unit(
    directions: Float[Tensor, "*batch 3"], group: Float[Tensor, "g 3 3"]
) -> Bool[Tensor, "*batch"]:
    """Whether each unit vector lies in the asymmetric unit, as one of each set of equivalent ones does."""
    return _best_element(directions, group)[1]


def reduce_to_asymmetric_unit(
    rotation: Float[Tensor, "*batch 3 3"], group: Float[Tensor, "g 3 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """The equivalent rotation A g whose viewing direction lies in the asymmetric unit."""
    chosen = _best_element(rotation[..., 2, :], group)[0]
    return rotation @ group.to(rotation)[chosen]


def _best_element(directions: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the element that brings each direction into the unit, and whether the identity does."""
    references = torch.tensor(_REFERENCES, dtype=torch.float64, device=directions.device)
    # score[..., g, r] = (g^T d) . reference_r = d . (g reference_r)
    moved = torch.einsum("gij,rj->gri", group.to(references), references)
    scores = torch.einsum("...i,gri->...gr", directions.double(), moved)
    candidate = torch.ones(scores.shape[:-1], dtype=torch.bool, device=scores.device)
    for r in range(len(_REFERENCES)):
        score = scores[..., r].masked_fill(~candidate, -torch.inf)
        candidate = score >= score.amax(-1, keepdim=True) - _BORDER
    identity = (group - torch.eye(3).to(group)).abs().amax((-2, -1)).argmin()
    return candidate.int().argmax(-1), candidate[..., identity]
