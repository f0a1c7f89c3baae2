"""Densities on the rotations: matrix Fisher (which is Bingham's on quaternions), and the wrapped normal.

Densities are with respect to the Haar measure of total volume 8 pi^2, so the uniform one is 1 / (8 pi^2).
Downs 1972, Biometrika 59, 665; Lee 2018, IEEE Trans. Autom. Control 63, 3377; Falorsi et al. 2019, AISTATS.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import nearest_rotation
from cryorbit.geometry.rotations import matrix_to_rotvec, random_rotations, rotvec_to_matrix

LOG_VOLUME = math.log(8 * math.pi**2)
"""Log of the group's volume."""

_NODES = 200
"""Gauss-Legendre nodes of the normaliser: round-off up to concentrations of some thousands."""
_MAX_ROUNDS = 10_000


def exp_log_volume(rotvec: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """Log of 2 (1 - cos t) / t^2, t = |rotvec|: Haar volume at exp(v) of a unit volume of v.

    >>> exp_log_volume(torch.zeros(3)).item() == 0
    True
    """
    half2 = 0.25 * (rotvec * rotvec).sum(-1)
    small = half2 < 1e-6
    half = torch.where(small, torch.ones_like(half2), half2).sqrt()
    series = -half2 / 3 - half2**2 / 90  # 2 log(sin h / h)
    return torch.where(small, series, 2 * torch.log((torch.sin(half) / half).abs()))


def wrapped_normal_log_prob(
    rotation: Float[Tensor, "*batch 3 3"], mean: Float[Tensor, "3 3"], *, sigma_rad: float, wraps: int = 3
) -> Float[Tensor, "*batch"]:
    """Log density of mean exp(v), v from N(0, sigma^2 I): every v that gives the rotation adds its share.

    Those are (t + 2 pi k) n with axis n and angle t; k from -wraps to wraps, enough up to sigma = pi.
    """
    rotvec = matrix_to_rotvec(mean.mT @ rotation)
    angle = rotvec.norm(dim=-1)
    k = torch.arange(-wraps, wraps + 1, device=angle.device)
    turned = angle[..., None] + 2 * math.pi * k
    # |v|^2 / (2 (1 - cos t)) over the volume at t, written so that angle 0 is no 0 / 0 for k = 0.
    own = torch.exp(-exp_log_volume(rotvec))[..., None]
    base = (2 - 2 * torch.cos(angle)).clamp_min(torch.finfo(angle.dtype).eps ** 2)[..., None]
    jacobian = torch.where(k == 0, own, turned**2 / base)
    exponent = -0.5 * (turned / sigma_rad) ** 2
    log_sum = torch.logsumexp(exponent + torch.log(jacobian), -1)
    return log_sum - 1.5 * math.log(2 * math.pi * sigma_rad**2)


def wrapped_normal_sample(
    n: int, mean: Float[Tensor, "3 3"], *, sigma_rad: float, generator: torch.Generator
) -> Float[Tensor, "n 3 3"]:
    """Draws mean exp(sigma N(0, I))."""
    step = torch.randn(n, 3, generator=generator, device=generator.device, dtype=mean.dtype)
    return mean @ rotvec_to_matrix(sigma_rad * step.to(mean))


def matrix_fisher_log_prob(
    rotation: Float[Tensor, "*batch 3 3"], parameter: Float[Tensor, "3 3"]
) -> Float[Tensor, "*batch"]:
    """Log density proportional to exp(tr(F^T R)); its mode is the rotation nearest to F.

    With q the quaternion of R it is Bingham's exp(q^T N q), N = `superpose.profile_matrix` of F.
    """
    return (parameter * rotation).sum((-2, -1)) - matrix_fisher_log_normaliser(parameter)


def matrix_fisher_log_normaliser(parameter: Float[Tensor, "3 3"]) -> Float[Tensor, ""]:
    """Log of the integral of exp(tr(F^T R)) over the rotations; log 8 pi^2 for F = 0.

    8 pi^2 times the integral over u in (-1, 1) of I0((si - sj)(1 - u) / 2) I0((si + sj)(1 + u) / 2) exp(sk u) / 2,
    s the proper singular values (the last with the sign of det F): one integral, by Gauss-Legendre.
    """
    s = torch.linalg.svdvals(parameter)
    s = torch.cat([s[:2], s[2:] * torch.linalg.det(parameter).sign()])
    u, w = _gauss_legendre(parameter)
    # i is the largest: k the second keeps exponents small. i0e is I0 without its exponential growth.
    first, second = 0.5 * (s[0] - s[2]) * (1 - u), 0.5 * (s[0] + s[2]) * (1 + u)
    log_terms = (
        torch.log(torch.special.i0e(first) * torch.special.i0e(second))
        + first.abs()
        + second.abs()
        + s[1] * u
    )
    return LOG_VOLUME + torch.logsumexp(log_terms + torch.log(0.5 * w), 0)


def matrix_fisher_mean(parameter: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """E[R], the derivative of the log normaliser: shorter than a rotation, the more so the wider the density."""
    u, s, vh = torch.linalg.svd(parameter)
    with torch.enable_grad():
        sign = torch.linalg.det(u @ vh).sign()
        proper = torch.cat([s[:2], s[2:] * sign]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(matrix_fisher_log_normaliser(torch.diag(proper)), proper)
    return (u * torch.cat([slope[:2], slope[2:] * sign])) @ vh


def matrix_fisher_entropy(parameter: Float[Tensor, "3 3"]) -> Float[Tensor, ""]:
    """Entropy in nats: log normaliser minus tr(F^T E[R]); log 8 pi^2 when nothing is known."""
    return matrix_fisher_log_normaliser(parameter) - (parameter * matrix_fisher_mean(parameter)).sum()


def matrix_fisher_sample(
    n: int, parameter: Float[Tensor, "3 3"], *, generator: torch.Generator
) -> Float[Tensor, "n 3 3"]:
    """Exact draws, by rejection from uniform rotations: fit for wide densities only.

    Raises
    ------
    BadInput
        If fewer than one in ten thousand uniform rotations would be kept.
    """
    top = (parameter * nearest_rotation(parameter)).sum()
    share = float(torch.exp(matrix_fisher_log_normaliser(parameter) - LOG_VOLUME - top))
    if share < 1.0 / _MAX_ROUNDS:
        raise BadInput(
            f"matrix_fisher_sample: only {share:.1e} of uniform rotations would be kept. Draw from the wrapped "
            "normal of the same spread instead."
        )
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        trial = random_rotations(int(n / share) + 64, generator=generator, dtype=parameter.dtype).to(
            parameter
        )
        chance = torch.rand(len(trial), generator=generator, device=generator.device, dtype=parameter.dtype)
        accept = chance.to(parameter).log() < (parameter * trial).sum((-2, -1)) - top
        kept.append(trial[accept])
    return torch.cat(kept)[:n]


def _gauss_legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (-1, 1): eigenvalues of the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, _NODES, dtype=torch.float64)
    off = k / torch.sqrt(4 * k * k - 1)
    value, vector = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return value.to(like), (2 * vector[0] ** 2).to(like)
