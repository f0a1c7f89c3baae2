"""How far apart two rotations are, by five measures, and up to the symmetry of a map.

All are functions of the angle theta between them: theta; |R - S|_F = 2 sqrt2 sin(theta / 2); the smaller of |q - r|
and |q + r|, 2 sin(theta / 4); |log R^T S|_F = sqrt2 theta; |R - S|_2 = 2 sin(theta / 2) (Hartley, Trumpf, Dai and
Li 2013, IJCV 103, 267; Huynh 2009, J. Math. Imaging Vis. 35, 155). None changes when both rotations are multiplied
from the left or the right by the same one.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import geodesic_angle, matrix_to_quaternion
from cryorbit.geometry.symmetry import point_group

DistanceKind = Literal["geodesic", "chordal", "quaternion", "log_frobenius", "spectral"]


def distance(
    a: Float[Tensor, "*#batch 3 3"], b: Float[Tensor, "*#batch 3 3"], *, kind: DistanceKind = "geodesic"
) -> Float[Tensor, "..."]:
    """Distance of `a` and `b`, shape of the broadcast batches.

    Largest values, at half turns: pi, 2 sqrt2, sqrt2, sqrt2 pi and 2 in the order of `DistanceKind`. The angle is
    found by atan2, so that small distances keep their digits.

    Raises
    ------
    BadInput
        If the kind is not known.

    >>> half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    >>> round(distance(torch.eye(3), half_turn, kind="spectral").item(), 6)
    2.0
    """
    theta = geodesic_angle(a, b)
    if kind == "geodesic":
        return theta
    if kind == "chordal":
        return 2 * math.sqrt(2) * torch.sin(theta / 2)
    if kind == "quaternion":
        return 2 * torch.sin(theta / 4)
    if kind == "log_frobenius":
        return math.sqrt(2) * theta
    if kind == "spectral":
        return 2 * torch.sin(theta / 2)
    raise BadInput(f"Distance {kind!r} is not one of {', '.join(get_args(DistanceKind))}.")


def symmetric_distance(
    a: Float[Tensor, "*#batch 3 3"],
    b: Float[Tensor, "*#batch 3 3"],
    group: str | Float[Tensor, "g 3 3"],
    *,
    kind: DistanceKind = "geodesic",
) -> Float[Tensor, "..."]:
    """The least distance of `a` to b g over the elements g of a point group: poses that show the same image are 0.

    A map with V(g x) = V(x) is seen alike at A and A g. A network trained on the plain distance to one of the |G|
    answers learns their mean; trained on this one it learns one of them (Manhardt et al. 2019, ICCV).

    Parameters
    ----------
    group
        Name as `symmetry.point_group` knows it, or its rotations.
    """
    elements = point_group(group) if isinstance(group, str) else group
    return distance(a[..., None, :, :], b[..., None, :, :] @ elements.to(b), kind=kind).amin(-1)


def angle_to_nearest(
    rotation: Float[Tensor, "n 3 3"], grid: Float[Tensor, "m 3 3"], *, chunk: int = 4096
) -> Float[Tensor, "n"]:
    """Angle in radians from each rotation to the nearest of a grid: its maximum is the grid's covering radius.

    By theta = 2 acos |q . r|, whose smallest angles are good to the root of the round-off.
    """
    if not len(rotation) or not len(grid):
        raise BadInput("angle_to_nearest: give at least one rotation and one grid node.")
    nodes = matrix_to_quaternion(grid)
    best = [(part @ nodes.mT).abs().amax(-1) for part in matrix_to_quaternion(rotation).split(chunk)]
    return 2 * torch.acos(torch.cat(best).clamp(max=1.0))
