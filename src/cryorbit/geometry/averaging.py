"""Means of rotations: chordal (closed form), geodesic L2 and L1 (iterated).

Hartley, Trumpf, Dai & Li 2013, "Rotation averaging", IJCV 103, 267. The set runs along the last batch axis.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import (
    matrix_to_quaternion,
    matrix_to_rotvec,
    quaternion_to_matrix,
    rotvec_to_matrix,
)


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The proper rotation R nearest in Frobenius norm, which also maximises trace(R^T M).

    By singular values, the last one's sign chosen so that det R = 1. Not unique where the two smallest
    singular values coincide with det M <= 0.
    """
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.ones_like(matrix[..., 0])
    sign[..., 2] = torch.linalg.det(u @ vh).sign()
    return (u * sign[..., None, :]) @ vh


def chordal_mean(
    rotation: Float[Tensor, "*batch n 3 3"], *, weight: Float[Tensor, "*batch n"] | None = None
) -> Float[Tensor, "*batch 3 3"]:
    """The rotation with the least weighted sum of squared chordal (Frobenius) distances to n rotations.

    It is the leading eigenvector of sum w q q^T (Markley et al. 2007, J. Guid. Control Dyn. 30, 1193), since
    |A - B|_F^2 = 8 - 8 (a . b)^2 for unit quaternions a, b.
    """
    quaternion = matrix_to_quaternion(rotation)
    w = _normalised(rotation, weight)
    outer = torch.einsum("...n,...ni,...nj->...ij", w, quaternion, quaternion)
    return quaternion_to_matrix(torch.linalg.eigh(outer).eigenvectors[..., -1])


def geodesic_mean(
    rotation: Float[Tensor, "*batch n 3 3"],
    *,
    weight: Float[Tensor, "*batch n"] | None = None,
    iterations: int = 20,
) -> Float[Tensor, "*batch 3 3"]:
    """The rotation with the least weighted sum of squared angles: gradient descent from the chordal mean.

    Unique when all rotations lie within 90 degrees of one.
    """
    w = _normalised(rotation, weight)
    mean = chordal_mean(rotation, weight=weight)
    for _ in range(iterations):
        tangent = matrix_to_rotvec(mean[..., None, :, :].mT @ rotation)
        mean = mean @ rotvec_to_matrix((w[..., None] * tangent).sum(-2))
    return mean


def geodesic_median(
    rotation: Float[Tensor, "*batch n 3 3"],
    *,
    weight: Float[Tensor, "*batch n"] | None = None,
    iterations: int = 50,
) -> Float[Tensor, "*batch 3 3"]:
    """The rotation with the least weighted sum of angles: Weiszfeld's iteration, little moved by outliers.

    Hartley, Aftab & Trumpf 2011, "L1 rotation averaging using the Weiszfeld algorithm", CVPR.
    """
    w = _normalised(rotation, weight)
    median = chordal_mean(rotation, weight=weight)
    floor = torch.finfo(rotation.dtype).eps ** 0.5  # a rotation that the median stands on keeps a finite pull
    for _ in range(iterations):
        tangent = matrix_to_rotvec(median[..., None, :, :].mT @ rotation)
        pull = w / tangent.norm(dim=-1).clamp_min(floor)
        step = (pull[..., None] * tangent).sum(-2) / pull.sum(-1, keepdim=True)
        median = median @ rotvec_to_matrix(step)
    return median


def _normalised(rotation: Tensor, weight: Tensor | None) -> Tensor:
    n = rotation.shape[-3]
    if n == 0:
        raise BadInput("Mean of rotations: there is none to average. Give at least one.")
    if weight is None:
        return rotation.new_full(rotation.shape[:-2], 1.0 / n)
    if not bool((weight >= 0).all()) or not bool((weight.sum(-1) > 0).all()):
        raise BadInput("Mean of rotations: weights must be at least 0, and not all 0.")
    return weight / weight.sum(-1, keepdim=True)
