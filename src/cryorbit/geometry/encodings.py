"""What a network may put out for a rotation, and the way from there onto SO(3).

Every function maps any generic vector onto a rotation. "rotvec" and "quat" must jump somewhere on SO(3) when read
backwards (at half turns, and between q and -q); "6d", "9d" and "bingham" need not (Zhou et al. 2019, CVPR;
Levinson et al. 2020, NeurIPS; Peretroukhin et al. 2020, RSS).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import nearest_rotation
from cryorbit.geometry.rotations import (
    matrix_to_quaternion,
    matrix_to_rotvec,
    matrix_to_six_d,
    quaternion_to_matrix,
    rotvec_to_matrix,
    six_d_to_matrix,
)

Encoding = Literal["rotvec", "quat", "6d", "9d", "bingham"]

ENCODING_SIZE: dict[Encoding, int] = {"rotvec": 3, "quat": 4, "6d": 6, "9d": 9, "bingham": 10}
"""Numbers per rotation."""


def nine_d_to_matrix(nine_d: Float[Tensor, "*batch 9"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation nearest to the matrix with these rows, differentiable where it is unique."""
    return nearest_rotation(nine_d.unflatten(-1, (3, 3)))


def matrix_to_nine_d(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 9"]:
    """The rows, one after the other."""
    return matrix.flatten(-2)


def bingham_to_quaternion(bingham: Float[Tensor, "*batch 10"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion that maximises q^T S q, S the symmetric 4 x 4 matrix with this upper triangle, row by row.

    It is the mode of the Bingham density exp(q^T S q). Where the largest eigenvalue is double there is no answer;
    elsewhere first derivatives are finite, also where smaller eigenvalues coincide.
    """
    row, column = torch.triu_indices(4, 4, device=bingham.device)
    s = bingham.new_zeros(*bingham.shape[:-1], 4, 4)
    s[..., row, column] = bingham
    s[..., column, row] = bingham
    with torch.no_grad():
        value, vector = torch.linalg.eigh(s)
        q = vector[..., -1]
        q = torch.where(q[..., :1] < 0, -q, q)
    if not bingham.requires_grad:
        return q
    # d q = (lambda I - S)^+ dS q for the top eigenvector: 0 in value, and exact in the first derivative.
    with torch.no_grad():
        gap = value[..., 3:] - value[..., :3]
        others = vector[..., :3]
        inverse = (others / gap.clamp_min(torch.finfo(gap.dtype).tiny)[..., None, :]) @ others.mT
    return q + (inverse @ (s @ q[..., None])).squeeze(-1)


def bingham_to_matrix(bingham: Float[Tensor, "*batch 10"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation of `bingham_to_quaternion`."""
    return quaternion_to_matrix(bingham_to_quaternion(bingham))


def matrix_to_bingham(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 10"]:
    """Upper triangle of q q^T: smooth in the rotation, and the same for q and -q."""
    q = matrix_to_quaternion(matrix)
    row, column = torch.triu_indices(4, 4, device=matrix.device)
    return (q[..., :, None] * q[..., None, :])[..., row, column]


_DECODERS = {
    "rotvec": rotvec_to_matrix,
    "quat": quaternion_to_matrix,
    "6d": six_d_to_matrix,
    "9d": nine_d_to_matrix,
    "bingham": bingham_to_matrix,
}
_ENCODERS = {
    "rotvec": matrix_to_rotvec,
    "quat": matrix_to_quaternion,
    "6d": matrix_to_six_d,
    "9d": matrix_to_nine_d,
    "bingham": matrix_to_bingham,
}


def decode_rotation(values: Float[Tensor, "*batch k"], *, encoding: Encoding) -> Float[Tensor, "*batch 3 3"]:
    """Rotations from k = ENCODING_SIZE[encoding] numbers each.

    Raises
    ------
    BadInput
        If the encoding is not known, or the last axis has another length.

    >>> decode_rotation(torch.tensor([0.0, 0.0, 0.0]), encoding="rotvec").diagonal().tolist()
    [1.0, 1.0, 1.0]
    """
    size = ENCODING_SIZE.get(encoding)
    if size is None:
        raise BadInput(f"Encoding {encoding!r} is not one of {', '.join(ENCODING_SIZE)}.")
    if values.shape[-1] != size:
        raise BadInput(
            f"Encoding {encoding!r} has {size} numbers a rotation, but {values.shape[-1]} were given."
        )
    return _DECODERS[encoding](values)


def encode_rotation(matrix: Float[Tensor, "*batch 3 3"], *, encoding: Encoding) -> Float[Tensor, "*batch k"]:
    """One preimage of each rotation under `decode_rotation`; BadInput if the encoding is not known."""
    if encoding not in _ENCODERS:
        raise BadInput(f"Encoding {encoding!r} is not one of {', '.join(ENCODING_SIZE)}.")
    return _ENCODERS[encoding](matrix)
