"""The sums of `physics.splat` frequency by frequency: exact, slow, the measure of the fast ones."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex
from torch import Tensor

from cryorbit.data import CTF, Gaussians, Pose
from cryorbit.fourier.grid import frequency_grid
from cryorbit.physics.formation import plane_matrix, transfer_of

_CHUNK = 1 << 22
"""Complex numbers in work at a time."""


def exact_transforms(
    gaussians: Gaussians, pose: Pose, ctf: CTF | None = None, *, box: int, pixel_size_A: float
) -> Complex[Tensor, "b box half"]:
    """`splat_transforms` by its formula, differentiable; the Nyquist samples of an even box are zero."""
    matrix = plane_matrix(pose.rotation, ctf).to(gaussians.position_A)[:, :2]
    frequency = frequency_grid(
        box, pixel_size_A=pixel_size_A, device=matrix.device, dtype=gaussians.position_A.dtype
    )
    n, batch = len(gaussians), len(pose)
    centre = gaussians.position_A @ matrix.mT + pose.shift_A.to(matrix)[:, None]
    turned = matrix[:, None] @ gaussians.factor_A()
    covariance = turned @ turned.mT
    amplitude = gaussians.amplitude.expand(batch, n)
    images = [
        _sum(centre[i], amplitude[i], covariance[i], frequency.reshape(-1, 2)).view(frequency.shape[:2])
        for i in range(batch)
    ]
    inside = ((frequency.abs() * (2 * pixel_size_A)) < 1 - 1e-6).all(-1)
    total = torch.stack(images) * inside / pixel_size_A**3
    transfer = transfer_of(torch.zeros_like(pose.shift_A), ctf, box, pixel_size_A=pixel_size_A)
    return total if transfer is None else total * transfer


def exact_map_transform(
    gaussians: Gaussians, *, box: int, pixel_size_A: float
) -> Complex[Tensor, "box box half"]:
    """`map_transform` of one conformation by its formula."""
    frequency = frequency_grid(box, pixel_size_A=pixel_size_A, ndim=3, dtype=gaussians.position_A.dtype)
    total = _sum(
        gaussians.position_A, gaussians.amplitude, gaussians.covariance_A2(), frequency.reshape(-1, 3)
    )
    inside = ((frequency.abs() * (2 * pixel_size_A)) < 1 - 1e-6).all(-1)
    return total.view(frequency.shape[:3]) * inside / pixel_size_A**3


def _sum(centre: Tensor, amplitude: Tensor, covariance: Tensor, k: Tensor) -> Tensor:
    """sum_j a_j exp(-2 pi^2 k^T C_j k - 2 pi i k c_j) for each k, shape (frequencies,)."""
    step = max(1, _CHUNK // max(1, k.shape[0]))
    total = torch.zeros(k.shape[0], dtype=torch.complex128 if k.dtype == torch.float64 else torch.complex64)
    total = total.to(k.device)
    for begin in range(0, centre.shape[0], step):
        rows = slice(begin, begin + step)
        form = torch.einsum("fa,nab,fb->nf", k, covariance[rows], k)
        size = amplitude[rows, None] * torch.exp(-2 * math.pi**2 * form)
        total = total + torch.polar(torch.ones_like(size), -2 * math.pi * (centre[rows] @ k.mT)).mul(
            size
        ).sum(0)
    return total
