"""Six parameters of a rigid motion, refined on the correlation of two transforms by Gauss-Newton steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.analysis.align_search import shell_rms
from cryorbit.analysis.spectrum import Spectrum, at_grid, half_ball
from cryorbit.data import Volume
from cryorbit.geometry.rotations import rotvec_to_matrix


@dataclass(frozen=True, eq=False)
class Motion:
    """x_moving = rotation @ x_reference + shift of k starts; shifts are fractions of the box."""

    rotation: Float[Tensor, "k 3 3"]
    shift: Float[Tensor, "k 3"]
    score: Float[Tensor, "k"]

    def take(self, index: Tensor) -> Motion:
        """The chosen starts."""
        return Motion(self.rotation[index], self.shift[index], self.score[index])


@dataclass(frozen=True, eq=False)
class Target:
    """The reference's whitened coefficients and, per point, what multiplies the moving map's.

    C = sum weight Re(conj(values) F), at most 1; `curvature` = weight / rms(F) makes the Gauss-Newton matrix.
    """

    points: Float[Tensor, "p 3"]
    values: Complex[Tensor, "p"]
    weight: Float[Tensor, "p"]
    curvature: Float[Tensor, "p"]

    @classmethod
    def of(
        cls,
        reference: Volume,
        moving: Spectrum,
        *,
        kmax: int,
        shell_weight: Float[Tensor, "shells"] | None = None,
    ) -> Target:
        """Coefficients 1 <= |k| <= kmax, shells at unit power times `shell_weight` (or 1 / k)."""
        points = half_ball(kmin=1.0, kmax=kmax, device=reference.values.device)
        radius = points.double().norm(dim=-1)
        shell = (radius + 0.5).floor().long()
        q = points.to(moving.channels)
        values = at_grid(reference, points)
        rms_reference = shell_rms(values, shell, shells=kmax + 2)[shell]
        rms_moving = shell_rms(moving.value(q), shell, shells=kmax + 2)[shell]
        weight = 1.0 / radius if shell_weight is None else shell_weight.to(radius)[shell]
        weight = weight / weight.sum()
        return cls(
            q,
            values / rms_reference.to(values.real.dtype),
            (weight / rms_moving).to(q.dtype),
            (weight / rms_moving**2).to(q.dtype),
        )


def _phase(q: Tensor, shift: Tensor) -> Complex[Tensor, "k p"]:
    angle = 2.0 * math.pi * (q @ shift[..., None])[..., 0]
    return torch.polar(torch.ones_like(angle), angle)


def correlation(moving: Spectrum, target: Target, motion: Motion) -> Float[Tensor, "k"]:
    """C of each motion, 1 for equal maps."""
    q = target.points @ motion.rotation.mT
    product = target.values.conj() * moving.value(q) * _phase(q, motion.shift)
    return (product.real * target.weight).sum(-1)


def _slopes(moving: Spectrum, target: Target, motion: Motion) -> tuple[Tensor, Tensor]:
    """Gradient of C (k, 6) and Gauss-Newton matrix (k, 6, 6), for a turn on the left and then the shift."""
    q = target.points @ motion.rotation.mT
    sampled = moving.sample(q)
    phase = _phase(q, motion.shift)
    value = sampled[0] * phase
    slope = sampled[1:].movedim(0, -1) * phase[..., None]
    slope = slope + 2j * math.pi * motion.shift[:, None, :] * value[..., None]
    turn = torch.linalg.cross(q.to(slope.dtype), slope)
    jacobian = torch.cat([turn, 2j * math.pi * q * value[..., None]], -1)
    weighted = target.weight * target.values.conj()
    gradient = (weighted[..., None] * jacobian).real.sum(-2)
    parts = torch.cat([jacobian.real, jacobian.imag], -2)
    curvature = torch.cat([target.curvature, target.curvature])[:, None]
    return gradient.double(), (parts.mT @ (curvature * parts)).double()


_SETTLED = 3e-6
"""Gain of the correlation below which a start has arrived: little above the round-off of its sum."""


def refine(moving: Spectrum, target: Target, start: Motion, *, steps: int) -> Motion:
    """Levenberg-Marquardt steps from every start, until all have settled; a step is kept where it raises C."""
    motion = Motion(start.rotation, start.shift, correlation(moving, target, start))
    damping = torch.full_like(motion.score, 1e-2, dtype=torch.float64)
    for _ in range(steps):
        gradient, matrix = _slopes(moving, target, motion)
        diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1) * damping[:, None] + 1e-12)
        # the model explains only the part C of the whitened reference, so the plain step would be C too short
        scale = motion.score.double().clamp(0.1, 1.0)[:, None, None]
        change = torch.linalg.solve(scale * (matrix + diagonal), gradient).to(motion.shift)
        trial = Motion(
            rotvec_to_matrix(change[:, :3]) @ motion.rotation, motion.shift + change[:, 3:], motion.score
        )
        score = correlation(moving, target, trial)
        better = score > motion.score
        settled = bool(((score - motion.score).abs() < _SETTLED).all())
        motion = Motion(
            torch.where(better[:, None, None], trial.rotation, motion.rotation),
            torch.where(better[:, None], trial.shift, motion.shift),
            torch.where(better, score, motion.score),
        )
        if settled:
            break
        damping = torch.where(better, damping / 4.0, damping * 8.0).clamp(1e-6, 1e6)
    return motion
