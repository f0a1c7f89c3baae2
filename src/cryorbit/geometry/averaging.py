"""Means of rotations in three metrics, L2 and L1; the rotation between two sets of poses (hand-eye).

Hartley, Trumpf, Dai & Li 2013, "Rotation averaging", IJCV 103, 267. The set runs along the last batch axis. Against
outliers take L1. From relative rotations between pairs: `synchronise`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.quaternions import left_matrix, right_matrix
from cryorbit.geometry.rotations import (
    geodesic_angle,
    matrix_to_quaternion,
    matrix_to_rotvec,
    quaternion_to_matrix,
    rotvec_to_matrix,
    skew,
)

MeanMetric = Literal["geodesic", "chordal", "quaternion"]


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The proper rotation R nearest in Frobenius norm, which also maximises trace(R^T M).

    By singular values, the last one's sign chosen so that det R = 1. Not unique where the two smallest
    singular values coincide with det M <= 0; elsewhere first derivatives are finite, those at a rotation too.
    """
    with torch.no_grad():
        u, value, vh = torch.linalg.svd(matrix)
        sign = torch.ones_like(matrix[..., 0])
        sign[..., 2] = torch.linalg.det(u @ vh).sign()
        rotation = (u * sign[..., None, :]) @ vh
    if not matrix.requires_grad:
        return rotation
    # With the polar form M = R S: dR = R [w]x, where (tr(S) I - S) w is the axial vector of R^T dM - dM^T R. The
    # term is 0 in value. (The derivative through the SVD itself fails where singular values are equal.)
    with torch.no_grad():
        signed = value * sign
        spread = (signed.sum(-1, keepdim=True) - signed).clamp_min(torch.finfo(value.dtype).tiny)
        inverse = (vh.mT / spread[..., None, :]) @ vh
    turned = rotation.mT @ matrix
    odd = turned - turned.mT
    axial = torch.stack([odd[..., 2, 1], odd[..., 0, 2], odd[..., 1, 0]], -1)
    return rotation + rotation @ skew((inverse @ axial[..., None]).squeeze(-1))


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


def quaternion_mean(
    rotation: Float[Tensor, "*batch n 3 3"],
    *,
    weight: Float[Tensor, "*batch n"] | None = None,
    iterations: int = 20,
) -> Float[Tensor, "*batch 3 3"]:
    """The rotation with the least weighted sum of min |q - +-r|^2: the sum of quaternions of agreeing signs.

    It is what "average the quaternions" means once their signs are chosen, here by alternation from the chordal mean.
    Not the chordal mean: their sums weigh large angles differently, 8 sin^2(theta / 2) against 4 sin^2(theta / 4).
    """
    w = _normalised(rotation, weight)
    quaternion = matrix_to_quaternion(rotation)
    mean = matrix_to_quaternion(chordal_mean(rotation, weight=weight))
    for _ in range(iterations):
        agree = (quaternion @ mean[..., None]).squeeze(-1)
        signed = torch.where(agree < 0, -w, w)
        total = (signed[..., None] * quaternion).sum(-2)
        mean = total / total.norm(dim=-1, keepdim=True)
    return quaternion_to_matrix(mean)


def average(
    rotation: Float[Tensor, "*batch n 3 3"],
    *,
    metric: MeanMetric = "geodesic",
    p: int = 1,
    weight: Float[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch 3 3"]:
    """The rotation with the least weighted sum of distances to the power p, 1 or 2.

    p = 1, the robust one, is the default. For the chordal and the quaternion metric it is found by reweighting the
    L2 mean by 1 / distance (50 times).

    Raises
    ------
    BadInput
        If the metric or p is not offered, nothing is given, or weights are negative or all 0.

    >>> average(torch.eye(3)[None], metric="chordal", p=2).diagonal().tolist()
    [1.0, 1.0, 1.0]
    """
    squares = {"geodesic": geodesic_mean, "chordal": chordal_mean, "quaternion": quaternion_mean}.get(metric)
    if squares is None or p not in (1, 2):
        raise BadInput(
            f"average: metric {metric!r} with p = {p} is not offered. Metrics are 'geodesic', 'chordal' and "
            "'quaternion', p is 1 or 2."
        )
    if p == 2:
        return squares(rotation, weight=weight)
    if metric == "geodesic":
        return geodesic_median(rotation, weight=weight)
    w = _normalised(rotation, weight)
    median = squares(rotation, weight=weight)
    floor = torch.finfo(rotation.dtype).eps ** 0.5
    for _ in range(50):
        theta = geodesic_angle(median[..., None, :, :], rotation)
        far = torch.sin(theta / 2 if metric == "chordal" else theta / 4)  # up to a factor
        median = squares(rotation, weight=w / far.clamp_min(floor))
    return median


def conjugate_average(
    right: Float[Tensor, "*batch n 3 3"],
    left: Float[Tensor, "*batch n 3 3"],
    *,
    weight: Float[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch 3 3"]:
    """S with right_i S = S left_i, in least (weighted) squares of quaternions: the hand-eye problem.

    In cryo-EM: two refinements of the same particles in frames that differ by S, whose *relative* rotations are
    conjugate. S is the quaternion s least changed by (L(r_i) - R(l_i)) s, so at least two axes must differ.
    Signs of r_i and l_i are taken with w >= 0, which agrees where no rotation is a half turn (conjugates have the
    same angle); noise at half turns may flip one.
    """
    w = _normalised(right, weight)
    r, m = matrix_to_quaternion(right), matrix_to_quaternion(left)
    rows = left_matrix(r) - right_matrix(m)
    normal = (w[..., None, None] * (rows.mT @ rows)).sum(-3)
    return quaternion_to_matrix(torch.linalg.eigh(normal).eigenvectors[..., 0])


def _normalised(rotation: Tensor, weight: Tensor | None) -> Tensor:
    n = rotation.shape[-3]
    if n == 0:
        raise BadInput("Mean of rotations: there is none to average. Give at least one.")
    if weight is None:
        return rotation.new_full(rotation.shape[:-2], 1.0 / n)
    if not bool((weight >= 0).all()) or not bool((weight.sum(-1) > 0).all()):
        raise BadInput("Mean of rotations: weights must be at least 0, and not all 0.")
    return weight / weight.sum(-1, keepdim=True)
