"""The house frame, and named converters to and from other programs.

House: x_lab = A x_particle + shift; A is RELION's matrix Rz(-psi) Ry(-tilt) Rz(-rot); an image is the sum
along lab z; the third row of A is the viewing direction in the particle's frame.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.geometry.rotations import (
    axis_rotation,
    euler_to_matrix,
    matrix_to_euler,
    matrix_to_rotvec,
    rotvec_to_matrix,
)


def relion_angles_to_matrix(angles_deg: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """A from (rlnAngleRot, rlnAngleTilt, rlnAnglePsi) in degrees: [Rz(rot) Ry(tilt) Rz(psi)]^T."""
    return euler_to_matrix(angles_deg, convention="ZYZ").mT


def matrix_to_relion_angles(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """(rot, tilt, psi) in degrees, tilt in [0, 180], the others in (-180, 180].

    Where tilt is 0 or 180, rot is 0 and psi carries the sum.
    """
    return matrix_to_euler(rotation.mT, convention="ZYZ")


def cryosparc_rotvec_to_matrix(rotvec: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """A from `alignments3D/pose` (axis times angle in radians), whose exponential is the transpose of A."""
    return rotvec_to_matrix(rotvec).mT


def matrix_to_cryosparc_rotvec(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """`alignments3D/pose` of a house rotation."""
    return matrix_to_rotvec(rotation.mT)


def mirror_pose_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """F A F with F = diag(1, 1, -1): the pose that explains the same image with the map mirrored along z.

    In RELION's angles (rot, tilt, psi) becomes (rot, -tilt, psi); the shift does not change.
    """
    sign = rotation.new_tensor([1.0, 1.0, -1.0])
    return rotation * sign[:, None] * sign


def viewing_direction(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """The third row: where the beam points in the particle's frame."""
    return rotation[..., 2, :]


def view_rotation(direction: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Ry(-tilt) Rz(-rot): the rotation with psi = 0 whose third row is the unit vector `direction`.

    At the poles rot is taken as 0, as in `matrix_to_relion_angles`.
    """
    x, y, z = direction.unbind(-1)
    squared = x * x + y * y
    pole = squared <= torch.finfo(direction.dtype).tiny
    sine = torch.where(pole, torch.ones_like(squared), squared).sqrt()
    cos_rot = torch.where(pole, torch.ones_like(x), x / sine)
    sin_rot = torch.where(pole, torch.zeros_like(y), y / sine)
    sine = torch.where(pole, torch.zeros_like(sine), sine)
    rows = [z * cos_rot, z * sin_rot, -sine, -sin_rot, cos_rot, torch.zeros_like(x), x, y, z]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def in_plane_rotation(psi_rad: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Rz(-psi), which multiplies a view on the left: A(rot, tilt, psi) = in_plane_rotation(psi) @ view."""
    return axis_rotation("z", -psi_rad)
