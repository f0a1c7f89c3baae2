"""Quaternions (w, x, y, z): product, action on points and its derivative, Shoemake's uniform rotations.

q and -q are one rotation; the product is not commutative (ij = k, ji = -k). Matrices are in `rotations`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.geometry.rotations import skew


def quaternion_multiply(a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "..."]:
    """Hamilton's product a b, shape (..., 4): of unit quaternions, the rotation by b followed by that by a.

    >>> i, j = torch.tensor([0.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 0])
    >>> quaternion_multiply(i, j).tolist(), quaternion_multiply(j, i).tolist()
    ([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0])
    """
    a, b = torch.broadcast_tensors(a, b)
    return (left_matrix(a) @ b[..., None]).squeeze(-1)


def quaternion_conjugate(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """(w, -x, -y, -z): of a unit quaternion, the inverse rotation."""
    return quaternion * quaternion.new_tensor([1.0, -1.0, -1.0, -1.0])


def left_matrix(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The matrix L(q) with L(q) p = q p."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w]
    return torch.stack(rows, -1).unflatten(-1, (4, 4))


def right_matrix(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The matrix R(q) with R(q) p = p q."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [w, -x, -y, -z, x, w, z, -y, y, -z, w, x, z, y, -x, w]
    return torch.stack(rows, -1).unflatten(-1, (4, 4))


def quaternion_rotate(
    quaternion: Float[Tensor, "*#batch 4"], point: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "..."]:
    """Vector part of q p q*, shape (..., 3): |q|^2 times the rotated point.

    (w^2 - v . v) p + 2 v (v . p) + 2 w v x p. For more than about three points per rotation the matrix is the
    cheaper way (9 products a point against 24 or more).
    """
    w, v = quaternion[..., :1], quaternion[..., 1:]
    v, p = torch.broadcast_tensors(v, point)
    along = (v * p).sum(-1, keepdim=True)
    return (w * w - (v * v).sum(-1, keepdim=True)) * p + 2 * along * v + 2 * w * torch.linalg.cross(v, p)


def quaternion_rotate_jacobian(
    quaternion: Float[Tensor, "*batch 4"], point: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3 4"]:
    """Derivative of `quaternion_rotate` with respect to (w, x, y, z); its column k belongs to component k.

    d/dw = 2 (w p + v x p); d/dv = 2 [(v . p) I + v p^T - p v^T - w [p]x]. For steps on the sphere of unit
    quaternions project them on the tangent, q . dq = 0.
    """
    w, v = quaternion[..., :1], quaternion[..., 1:]
    by_w = 2 * (w * point + torch.linalg.cross(v, point))
    eye = torch.eye(3).to(point)
    along = (v * point).sum(-1)[..., None, None]
    dyads = v[..., :, None] * point[..., None, :] - point[..., :, None] * v[..., None, :]
    by_v = 2 * (along * eye + dyads - w[..., None] * skew(point))
    return torch.cat([by_w[..., None], by_v], -1)


def shoemake_quaternion(uniforms: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """The unit quaternion of three numbers in [0, 1): uniform rotations of uniform numbers.

    (x, y, z, w) = (a sin 2 pi u2, a cos 2 pi u2, b sin 2 pi u3, b cos 2 pi u3), a = sqrt(1 - u1), b = sqrt(u1)
    (Shoemake 1992, in Graphics Gems III, 124). The identity is u1 = 1, u3 = 0.
    """
    u1, u2, u3 = uniforms.unbind(-1)
    a, b = torch.sqrt(1 - u1), torch.sqrt(u1)
    second, third = 2 * math.pi * u2, 2 * math.pi * u3
    parts = [b * torch.cos(third), a * torch.sin(second), a * torch.cos(second), b * torch.sin(third)]
    return torch.stack(parts, -1)
