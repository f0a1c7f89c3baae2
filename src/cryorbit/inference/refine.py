"""Continuous refinement of pose and shift: Levenberg-Marquardt on so(3) x R^2 with analytic slice gradients.

For an image X (transform, half disk), CTF C, noise power s^2 and map V, the misfit is

    f(R, t) = sum_k |X_k - C_k exp(-2 pi i k.t) V(R^T k)|^2 / s_k^2.

A small turn w in the laboratory frame moves the slice by -w . (k x R grad V), a small shift d multiplies it by
1 - 2 pi i k.d, so the Jacobian comes from the same eight lattice reads as the value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.inference.effort import count_evaluations
from cryorbit.physics.interpolation import gather_with_gradient


@dataclass(frozen=True, eq=False)
class DiskData:
    """Transforms of images on the half disk of Fourier pixels, with what is known of each coefficient."""

    transform: Complex[Tensor, "n k"]
    ctf: Float[Tensor, "n k"]
    """CTF / s, the whitened transfer function; `transform` is divided by s as well."""
    points: Float[Tensor, "k 2"]
    """(kx, ky) in Fourier pixels, kx >= 0."""
    box: int

    def within(self, radius: float) -> DiskData:
        """The part of the disk inside `radius` Fourier pixels."""
        keep = self.points.square().sum(1) <= radius**2
        return DiskData(self.transform[:, keep], self.ctf[:, keep], self.points[keep], self.box)


@dataclass(frozen=True, eq=False)
class RefinedPoses:
    """Poses after refinement, shifts in pixels of the box."""

    rotation: Float[Tensor, "n 3 3"]
    shift_px: Float[Tensor, "n 2"]
    log_likelihood: Float[Tensor, "n"]
    """Over that of an image of nothing but noise, so that runs with other radii compare; with the prior of the shift."""
    explained: Float[Tensor, "n"]
    """Drop of the misfit against an empty map, over the model's own power: 1 on average where the pose is right."""
    deviation: Float[Tensor, "n"]
    """(explained - 1) over what noise alone makes of it, sqrt(2 / model power): spread 1 where map and pose are right."""
    angle_sd_deg: Float[Tensor, "n"]
    """Root mean variance of the three angles by the curvature (Cramer-Rao), degrees."""


def half_disk(radius: float, *, inner: float = 0.5) -> Float[Tensor, "k 2"]:
    """Whole Fourier pixels (kx, ky) with inner <= |k| <= radius, one of each Friedel pair."""
    r = math.floor(radius)
    ky, kx = torch.meshgrid(torch.arange(-r, r + 1), torch.arange(0, r + 1), indexing="ij")
    size = (kx.square() + ky.square()).sqrt()
    keep = (size <= radius) & (size >= inner) & ((kx > 0) | (ky > 0))
    return torch.stack((kx[keep], ky[keep]), -1).float()


def refine_poses(
    data: DiskData,
    half: Complex[Tensor, "p p h"],
    rotation: Float[Tensor, "n 3 3"],
    shift_px: Float[Tensor, "n 2"],
    *,
    iterations: int,
    shift_sd_px: float,
    lattice: float = 2.0,
) -> RefinedPoses:
    """Improve poses by `iterations` damped Gauss-Newton steps each; a step that does not help is not taken.

    Parameters
    ----------
    half
        Stored half of the map's transform on a lattice `lattice` times finer than a Fourier pixel.
    shift_sd_px
        Standard deviation of the shifts, as a weak prior, pixels.
    """
    n = rotation.shape[0]
    damping = torch.full((n,), 1e-3)
    trial = (rotation, shift_px)
    best = _evaluate(data, half, *trial, shift_sd_px, lattice)
    for _ in range(iterations):
        step = _solve(best, damping)
        trial = (rotvec_to_matrix(step[:, :3]) @ rotation, shift_px + step[:, 3:])
        new = _evaluate(data, half, *trial, shift_sd_px, lattice)
        better = new.misfit < best.misfit
        rotation = torch.where(better[:, None, None], trial[0], rotation)
        shift_px = torch.where(better[:, None], trial[1], shift_px)
        best = best.replaced_where(better, new)
        damping = torch.where(better, damping * 0.2, damping * 10).clamp(1e-5, 1e4)
    curvature = best.normal.double() + 1e-12 * torch.eye(5, dtype=torch.float64)
    variance = torch.linalg.inv_ex(curvature)[0][:, :3, :3].diagonal(dim1=1, dim2=2).mean(1)
    variance = variance.nan_to_num(math.pi**2).clamp(0, math.pi**2)
    return RefinedPoses(
        rotation,
        shift_px,
        torch.view_as_real(data.transform).square().sum((1, 2)) - best.misfit,
        best.explained,
        (best.explained - 1) * (best.power / 2).sqrt(),
        (variance.sqrt() * (180 / math.pi)).float(),
    )


@dataclass(frozen=True, eq=False)
class _Normal:
    misfit: Tensor
    normal: Tensor
    gradient: Tensor
    explained: Tensor
    power: Tensor

    def replaced_where(self, better: Tensor, new: _Normal) -> _Normal:
        return _Normal(
            torch.where(better, new.misfit, self.misfit),
            torch.where(better[:, None, None], new.normal, self.normal),
            torch.where(better[:, None], new.gradient, self.gradient),
            torch.where(better, new.explained, self.explained),
            torch.where(better, new.power, self.power),
        )


def _solve(state: _Normal, damping: Tensor) -> Tensor:
    diagonal = state.normal.diagonal(dim1=1, dim2=2)
    damped = state.normal + torch.diag_embed(diagonal * damping[:, None] + 1e-6)
    step = torch.linalg.solve_ex(damped, state.gradient[..., None])[0][..., 0]
    turn = step[:, :3].norm(dim=1, keepdim=True)
    # No step beyond 0.2 rad: the slice is not linear that far out.
    return torch.nan_to_num(step) * (0.2 / turn.clamp_min(0.2))


def _evaluate(
    data: DiskData, half: Tensor, rotation: Tensor, shift_px: Tensor, shift_sd_px: float, lattice: float
) -> _Normal:
    b = rotation.shape[0]
    count_evaluations(b, frequencies=len(data.points))
    kx, ky = data.points.unbind(1)
    at = (kx[:, None] * rotation[:, None, 0] + ky[:, None] * rotation[:, None, 1]) * lattice
    value, gradient = gather_with_gradient(half, at)
    phase = (shift_px @ data.points.T) * (2 * math.pi / data.box)
    model = value * data.ctf
    residual = data.transform * torch.polar(torch.ones_like(phase), phase) - model
    # Gradient in the laboratory frame, whitened; then the five columns of the Jacobian.
    lab = torch.view_as_real(gradient.movedim(-1, 1)).reshape(b, 3, -1)
    lab = torch.bmm(rotation * lattice, lab).view(b, 3, -1, 2)
    c = data.ctf[..., None]
    x, y = kx[:, None], ky[:, None]
    jacobian = torch.empty(b, 5, kx.shape[0], 2)
    torch.mul(lab[:, 2], -y * c, out=jacobian[:, 0])
    torch.mul(lab[:, 2], x * c, out=jacobian[:, 1])
    torch.mul(y * lab[:, 0] - x * lab[:, 1], c, out=jacobian[:, 2])
    turned = torch.view_as_real(model * (-2j * math.pi / data.box))
    torch.mul(turned, x, out=jacobian[:, 3])
    torch.mul(turned, y, out=jacobian[:, 4])
    flat = jacobian.view(b, 5, -1)
    r = torch.view_as_real(residual).reshape(b, -1)
    # The half disk counts twice; with |.|^2 / s^2 the log-likelihood is minus this sum over half the plane.
    normal = 2 * torch.bmm(flat, flat.transpose(1, 2))
    slope = 2 * torch.bmm(flat, r[..., None])[..., 0]
    misfit = r.square().sum(1)
    power = torch.view_as_real(model).square().sum((1, 2))
    gain = torch.view_as_real(data.transform).square().sum((1, 2)) - misfit
    prior = 1 / shift_sd_px**2
    misfit = misfit + 0.5 * prior * shift_px.square().sum(1)
    slope[:, 3:] -= prior * shift_px
    normal[:, 3, 3] += prior
    normal[:, 4, 4] += prior
    return _Normal(misfit, normal, slope, gain / power.clamp_min(1e-20), power)
