"""One set of points, or of frames, onto another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import chordal_mean, nearest_rotation
from cryorbit.geometry.rotations import quaternion_to_matrix

Method = Literal["svd", "quaternion"]


@dataclass(frozen=True, eq=False)
class Superposition:
    """fixed = scale * rotation @ moving + translation, as nearly as may be.

    Parameters
    ----------
    rotation
        Shape (..., 3, 3); proper, unless reflections were allowed.
    translation
        Shape (..., 3), unit of the points.
    rmsd
        Root of the (weighted) mean squared distance that is left, shape (...).
    scale
        Shape (...), 1 unless one was asked for.
    """

    rotation: Float[Tensor, "... 3 3"]
    translation: Float[Tensor, "... 3"]
    rmsd: Float[Tensor, "..."]
    scale: Float[Tensor, "..."]

    def apply(self, points: Float[Tensor, "... n 3"]) -> Float[Tensor, "... n 3"]:
        """Move `points` as the moving set was moved."""
        return self.scale[..., None, None] * (points @ self.rotation.mT) + self.translation[..., None, :]


def kabsch(
    moving: Float[Tensor, "*batch n 3"],
    fixed: Float[Tensor, "*batch n 3"],
    *,
    weight: Float[Tensor, "*batch n"] | None = None,
) -> Superposition:
    """The rotation and translation of `moving` that bring it nearest to `fixed`, point i to point i.

    Least weighted squares; never a reflection. Kabsch 1976, Acta Cryst. A32, 922. `superpose` has options.

    Raises
    ------
    BadInput
        If there is no point, or the weights are negative or all 0.
    """
    return superpose(moving, fixed, weight=weight)


def superpose(
    moving: Float[Tensor, "*batch n 3"],
    fixed: Float[Tensor, "*batch n 3"],
    *,
    weight: Float[Tensor, "*batch n"] | None = None,
    method: Method = "svd",
    scale: bool = False,
    reflection: bool = False,
) -> Superposition:
    """As `kabsch`, by either method, with a scale and with reflections if asked for.

    Parameters
    ----------
    method
        "svd" (Kabsch) or "quaternion": the leading eigenvector of the 4 x 4 profile matrix of the covariance (Horn
        1987, J. Opt. Soc. Am. A 4, 629; Hanson 2020, Acta Cryst. A76, 432). They agree to round-off.
    scale
        Also fit a scale, sum w a.(R^T b) / sum w |a|^2 (Umeyama 1991).
    reflection
        Allow det R = -1 where that is nearer.

    Raises
    ------
    BadInput
        If there is no point, the weights are negative or all 0, or the method is not known.
    """
    w = _point_weights(moving, weight)
    centre_moving, centre_fixed = (w * moving).sum(-2), (w * fixed).sum(-2)
    a, b = moving - centre_moving[..., None, :], fixed - centre_fixed[..., None, :]
    covariance = (w * b).mT @ a
    rotation = _best_rotation(covariance, method)
    if reflection:
        mirrored = -_best_rotation(-covariance, method)  # every improper matrix is minus a proper one
        gain = ((mirrored - rotation) * covariance).sum((-2, -1), keepdim=True)
        rotation = torch.where(gain > 0, mirrored, rotation)
    if scale:
        overlap, size = (rotation * covariance).sum((-2, -1)), (w * a * a).sum((-2, -1))
        s = overlap / size.clamp_min(torch.finfo(size.dtype).tiny)
    else:
        s = torch.ones_like(rotation[..., 0, 0])
    moved = s[..., None, None] * (a @ rotation.mT)
    translation = centre_fixed - s[..., None] * (rotation @ centre_moving[..., None]).squeeze(-1)
    left = (w * (moved - b) ** 2).sum((-2, -1))
    return Superposition(rotation, translation, torch.sqrt(left), s)


def profile_matrix(covariance: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4 4"]:
    """The symmetric matrix N with q^T N q = trace(R(q)^T C) for unit quaternions q (w, x, y, z).

    With C = sum b a^T of centred points, min sum |R a - b|^2 = sum |a|^2 + sum |b|^2 - 2 (largest eigenvalue).
    """
    c = covariance
    trace = c.diagonal(dim1=-2, dim2=-1).sum(-1)
    axial = torch.stack(
        [c[..., 2, 1] - c[..., 1, 2], c[..., 0, 2] - c[..., 2, 0], c[..., 1, 0] - c[..., 0, 1]], -1
    )
    lower = c + c.mT - trace[..., None, None] * torch.eye(3).to(c)
    top = torch.cat([trace[..., None], axial], -1)[..., None, :]
    return torch.cat([top, torch.cat([axial[..., None], lower], -1)], -2)


def align_frames(
    moving: Float[Tensor, "*batch n 3 3"],
    fixed: Float[Tensor, "*batch n 3 3"],
    *,
    weight: Float[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch 3 3"]:
    """The rotation R that brings frames (rotations, axes in columns) nearest: R moving_i = fixed_i, chordal L2.

    The leading eigenvector of sum w q q^T over q of fixed_i moving_i^T.
    """
    return chordal_mean(fixed @ moving.mT, weight=weight)


def _best_rotation(covariance: Tensor, method: Method) -> Tensor:
    """The rotation with the largest trace(R^T C)."""
    if method == "svd":
        return nearest_rotation(covariance)
    if method == "quaternion":
        return quaternion_to_matrix(torch.linalg.eigh(profile_matrix(covariance)).eigenvectors[..., -1])
    raise BadInput(f"superpose: method {method!r} is not one of 'svd', 'quaternion'.")


def _point_weights(moving: Tensor, weight: Tensor | None) -> Tensor:
    """Weights that add up to 1, shape (..., n, 1)."""
    n = moving.shape[-2]
    if n == 0:
        raise BadInput("superpose: there are no points. Give at least one pair (three for a unique answer).")
    if weight is None:
        return moving.new_full((*moving.shape[:-1], 1), 1.0 / n)
    if bool((weight < 0).any()) or not bool((weight.sum(-1) > 0).all()):
        raise BadInput("superpose: weights must be at least 0, and not all 0.")
    return (weight / weight.sum(-1, keepdim=True))[..., None]
