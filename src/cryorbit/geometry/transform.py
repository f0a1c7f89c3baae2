"""Similarity transforms, and the angle conventions of EMAN2, SPIDER, RELION, IMAGIC and MRC.

The rotation is the house's A: coordinates in the view are A x. In those programs' words A is the passive matrix, the
transpose of the active one that the angles name: A = (Rz(az) Rx(alt) Rz(phi))^T for EMAN, and so on (Baldwin and
Penczek 2007, J. Struct. Biol. 157, 250).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import (
    euler_to_matrix,
    matrix_to_euler,
    matrix_to_quaternion,
    matrix_to_rotvec,
    quaternion_to_matrix,
    rotvec_to_matrix,
)

_PRINTED = 1e-3
"""How far a matrix may be from a similarity, or an axis from unit length: rounded print-outs pass, mistakes do not."""


@dataclass(frozen=True, eq=False)
class Transform:
    """x -> F (scale * rotation) x + translation, F = diag(-1, 1, 1) where `mirror` is set (EMAN2's mirror in x).

    Batched; all angles in degrees. Azimuths are in [0, 360), tilts in [0, 180], those of xyz in (-180, 180]. Where
    the tilt is 0 or 180 only a sum of the others is determined: the first angle (az, SPIDER's phi, and xtilt where
    ytilt is 90 or -90) is then 0.

    Parameters
    ----------
    rotation
        Proper, shape (..., 3, 3).
    translation
        Shape (..., 3), unit of the coordinates, applied last.
    scale
        Shape (...), above 0.
    mirror
        Shape (...).

    >>> move = Transform.from_spider(torch.tensor([30.0, 60.0, 45.0], dtype=torch.float64))
    >>> [round(angle, 3) for angle in move.to_eman().tolist()]
    [120.0, 60.0, 315.0]
    """

    rotation: Float[Tensor, "... 3 3"]
    translation: Float[Tensor, "... 3"]
    scale: Float[Tensor, "..."]
    mirror: Bool[Tensor, "..."]

    def __post_init__(self) -> None:
        batch = tuple(self.rotation.shape[:-2])
        given = [tuple(t.shape) for t in (self.translation, self.scale, self.mirror)]
        if given != [(*batch, 3), batch, batch]:
            raise BadInput(
                f"Transform: rotations of batch {batch} need a translation {(*batch, 3)}, a scale {batch} and a "
                f"mirror {batch}; got {given[0]}, {given[1]} and {given[2]}."
            )
        if not bool((self.scale > 0).all()):
            raise BadInput(
                "Transform: a scale is not above 0. A reflection is `mirror`, not a negative scale."
            )

    @classmethod
    def from_rotation(cls, rotation: Float[Tensor, "*batch 3 3"]) -> Transform:
        """No translation, scale 1, no mirror."""
        one = torch.ones_like(rotation[..., 0, 0])
        return cls(rotation, torch.zeros_like(rotation[..., 0]), one, torch.zeros_like(one, dtype=torch.bool))

    def having(
        self,
        *,
        translation: Float[Tensor, "... 3"] | None = None,
        scale: Float[Tensor, "..."] | None = None,
        mirror: Bool[Tensor, "..."] | None = None,
    ) -> Transform:
        """The same with other parts; shapes broadcast to the rotations' batch."""
        t = self.translation if translation is None else translation.expand_as(self.translation)
        s = self.scale if scale is None else scale.expand_as(self.scale)
        m = self.mirror if mirror is None else mirror.expand_as(self.mirror)
        return replace(self, translation=t, scale=s, mirror=m)

    # ---- as an operator -----------------------------------------------------------------------------------

    def to_matrix(self) -> Float[Tensor, "... 3 3"]:
        """The linear part, scale and mirror included; row-major m11 ... m33 by `.flatten(-2)`."""
        return _flip(self.rotation * self.scale[..., None, None], self.mirror)

    def to_affine(self) -> Float[Tensor, "... 4 4"]:
        """[linear part, translation; 0 0 0 1]."""
        top = torch.cat([self.to_matrix(), self.translation[..., None]], -1)
        bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand_as(top[..., :1, :])
        return torch.cat([top, bottom], -2)

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "*batch 3 3"]) -> Transform:
        """Rotation, scale and mirror of a linear map; BadInput if it is no similarity (to 0.1 %)."""
        determinant = torch.linalg.det(matrix)
        mirror, scale = determinant < 0, determinant.abs().pow(1 / 3)
        rotation = _flip(matrix, mirror) / scale.clamp_min(torch.finfo(matrix.dtype).tiny)[..., None, None]
        error = (rotation @ rotation.mT - torch.eye(3).to(matrix)).abs().amax() if matrix.numel() else 0.0
        if not float(error) < _PRINTED:
            raise BadInput(
                "Transform: a matrix is not a rotation times a scale (and a mirror). Check rows and columns."
            )
        return cls(rotation, torch.zeros_like(matrix[..., 0]), scale, mirror)

    @classmethod
    def from_affine(cls, affine: Float[Tensor, "*batch 4 4"]) -> Transform:
        """Inverse of `to_affine`; the last row is not looked at."""
        return cls.from_matrix(affine[..., :3, :3]).having(translation=affine[..., :3, 3])

    def apply(self, points: Float[Tensor, "... n 3"]) -> Float[Tensor, "... n 3"]:
        """Move points, shape (..., n, 3)."""
        return points @ self.to_matrix().mT + self.translation[..., None, :]

    def __matmul__(self, other: Transform) -> Transform:
        """`self @ other` applies `other` first."""
        linear = _flip(self.rotation @ _flip(other.rotation, other.mirror), self.mirror)
        mirror = self.mirror ^ other.mirror
        moved = self.apply(other.translation[..., None, :]).squeeze(-2)
        return Transform(_flip(linear, mirror), moved, self.scale * other.scale, mirror)

    def inverse(self) -> Transform:
        """The transform that undoes this one."""
        rotation = _flip(_flip(self.rotation, self.mirror).mT, self.mirror)
        back = Transform(rotation, torch.zeros_like(self.translation), 1 / self.scale, self.mirror)
        return replace(back, translation=-back.apply(self.translation[..., None, :]).squeeze(-2))

    def pre_trans(self) -> Float[Tensor, "... 3"]:
        """The translation p that does the same before the linear part L: L (x + p) = L x + translation."""
        return -self.inverse().translation

    # ---- the programs' angles -----------------------------------------------------------------------------

    @classmethod
    def from_eman(cls, az_alt_phi: Float[Tensor, "*batch 3"]) -> Transform:
        """EMAN2: (Rz(az) Rx(alt) Rz(phi))^T."""
        return cls.from_rotation(euler_to_matrix(az_alt_phi, convention="ZXZ").mT)

    def to_eman(self) -> Float[Tensor, "... 3"]:
        """(az, alt, phi)."""
        return _turns(matrix_to_euler(self.rotation.mT, convention="ZXZ"))

    @classmethod
    def from_imagic(cls, alpha_beta_gamma: Float[Tensor, "*batch 3"]) -> Transform:
        """IMAGIC: as EMAN2, under the names alpha, beta, gamma."""
        return cls.from_eman(alpha_beta_gamma)

    def to_imagic(self) -> Float[Tensor, "... 3"]:
        """(alpha, beta, gamma)."""
        return self.to_eman()

    @classmethod
    def from_spider(cls, phi_theta_psi: Float[Tensor, "*batch 3"]) -> Transform:
        """SPIDER, and RELION's (rot, tilt, psi): (Rz(phi) Ry(theta) Rz(psi))^T; az = phi + 90, phi = psi - 90."""
        return cls.from_rotation(euler_to_matrix(phi_theta_psi, convention="ZYZ").mT)

    def to_spider(self) -> Float[Tensor, "... 3"]:
        """(phi, theta, psi)."""
        return _turns(matrix_to_euler(self.rotation.mT, convention="ZYZ"))

    @classmethod
    def from_mrc(cls, phi_theta_omega: Float[Tensor, "*batch 3"]) -> Transform:
        """MRC: as SPIDER, with omega for psi."""
        return cls.from_spider(phi_theta_omega)

    def to_mrc(self) -> Float[Tensor, "... 3"]:
        """(phi, theta, omega)."""
        return self.to_spider()

    @classmethod
    def from_xyz(cls, tilts: Float[Tensor, "*batch 3"]) -> Transform:
        """(xtilt, ytilt, ztilt): Rz(-ztilt) Ry(-ytilt) Rx(-xtilt)."""
        return cls.from_rotation(euler_to_matrix(tilts, convention="XYZ").mT)

    def to_xyz(self) -> Float[Tensor, "... 3"]:
        """(xtilt, ytilt, ztilt), ytilt in [-90, 90]."""
        return matrix_to_euler(self.rotation.mT, convention="XYZ")

    @classmethod
    def from_quaternion(cls, e: Float[Tensor, "*batch 4"]) -> Transform:
        """(e0, e1, e2, e3), e0 the scalar: the transpose of its active matrix; the length does not matter."""
        return cls.from_rotation(quaternion_to_matrix(e).mT)

    def to_quaternion(self) -> Float[Tensor, "... 4"]:
        """(e0, e1, e2, e3) of length 1, e0 >= 0."""
        return matrix_to_quaternion(self.rotation.mT)

    @classmethod
    def from_spin(cls, omega_deg: Float[Tensor, "*batch"], axis: Float[Tensor, "*batch 3"]) -> Transform:
        """By omega about an axis of any length (none at all: the identity)."""
        length = axis.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(axis.dtype).tiny)
        return cls.from_rotation(rotvec_to_matrix(torch.deg2rad(omega_deg)[..., None] * axis / length).mT)

    def to_spin(self) -> tuple[Float[Tensor, "..."], Float[Tensor, "... 3"]]:
        """Angle omega in [0, 180] and the unit axis; (0, 0, 1) where omega is 0."""
        rotvec = matrix_to_rotvec(self.rotation.mT)
        omega = rotvec.norm(dim=-1)
        axis = rotvec / omega.clamp_min(torch.finfo(omega.dtype).tiny)[..., None]
        at_rest = torch.tensor([0.0, 0.0, 1.0]).to(axis)
        return torch.rad2deg(omega), torch.where(omega[..., None] > 0, axis, at_rest)

    @classmethod
    def from_spinvec(cls, turns: Float[Tensor, "*batch 3"]) -> Transform:
        """About a vector whose length counts whole turns, not radians."""
        return cls.from_rotation(rotvec_to_matrix(2 * math.pi * turns).mT)

    def to_spinvec(self) -> Float[Tensor, "... 3"]:
        """Axis times angle in turns, length at most 1/2."""
        return matrix_to_rotvec(self.rotation.mT) / (2 * math.pi)

    @classmethod
    def from_sgirot(cls, q_deg: Float[Tensor, "*batch"], axis: Float[Tensor, "*batch 3"]) -> Transform:
        """As spin, but the axis is not normalised: another length than 1 gives no rotation, and is refused."""
        if not bool(((axis.norm(dim=-1) - 1).abs() < _PRINTED).all()):
            raise BadInput("Transform.from_sgirot: an axis has not length 1. Normalise it, or use from_spin.")
        return cls.from_spin(q_deg, axis)

    def to_sgirot(self) -> tuple[Float[Tensor, "..."], Float[Tensor, "... 3"]]:
        """As `to_spin`."""
        return self.to_spin()

    @classmethod
    def from_2d(cls, alpha_deg: Float[Tensor, "*batch"]) -> Transform:
        """In the plane: EMAN2's az = alt = 0, phi = alpha. Add `.having(mirror=..., translation=...)`."""
        zero = torch.zeros_like(alpha_deg)
        return cls.from_eman(torch.stack([zero, zero, alpha_deg], -1))

    def to_2d(self) -> Float[Tensor, "..."]:
        """Alpha in [0, 360); BadInput if a rotation leaves the plane (then it has no such angle)."""
        if not bool((self.rotation[..., 2, 2] > 1 - _PRINTED**2).all()):
            raise BadInput("Transform.to_2d: a rotation tilts the z axis. Use to_eman for its three angles.")
        return _turns(torch.rad2deg(torch.atan2(self.rotation[..., 0, 1], self.rotation[..., 0, 0])))


def _flip(matrix: Tensor, mirror: Tensor) -> Tensor:
    """The first row negated where `mirror` is set: F M."""
    first = torch.where(mirror[..., None, None], -matrix[..., :1, :], matrix[..., :1, :])
    return torch.cat([first, matrix[..., 1:, :]], -2)


def _turns(angles_deg: Tensor) -> Tensor:
    """Into [0, 360): a remainder that rounds up to 360 is 0, and so is -0."""
    turned = torch.remainder(angles_deg, 360.0)
    return torch.where(turned >= 360.0, torch.zeros_like(turned), turned)
