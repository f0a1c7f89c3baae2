"""Harmonics of the sphere and of the rotations: Y, Wigner's d and D, and the grids that integrate them exactly.

A rotation acts on functions by (R f)(x) = f(R^T x), and on coefficients by f -> D(R) f, D(R1 R2) = D(R1) D(R2). With
R = Rz(alpha) Ry(beta) Rz(gamma), in the basis of complex harmonics with the Condon-Shortley sign,

    D^l_mn(R) = exp(-i m alpha) d^l_mn(beta) exp(-i n gamma).

A house rotation A(rot, tilt, psi) has alpha = -psi, beta = -tilt, gamma = -rot, so an in-plane turn of the image is a
phase exp(i m psi) on the left index. Real harmonics go from sin(l phi) to cos(l phi), without that sign: degree 1 is
(y, z, x). Degrees are stacked: (l + 1)^2 numbers for the sphere; for the rotations the blocks (2l + 1)^2 of
sqrt(2l + 1) D^l, orthonormal under the mean over all rotations, row m by column n.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import axis_rotation


def n_sphere(l_max: int) -> int:
    """Harmonics of the sphere up to degree `l_max`: (l_max + 1)^2.

    >>> n_sphere(6)
    49
    """
    return (l_max + 1) ** 2


def n_rotations(l_max: int) -> int:
    """Harmonics of the rotations up to degree `l_max`: (L + 1) (2L + 1) (2L + 3) / 3.

    >>> [n_rotations(l) for l in (4, 6, 8)]
    [165, 455, 969]
    """
    return (l_max + 1) * (2 * l_max + 1) * (2 * l_max + 3) // 3


def rotation_blocks(l_max: int) -> list[slice]:
    """Where each degree's block of (2l + 1)^2 numbers lies."""
    starts = [0, *(n_rotations(degree) for degree in range(l_max + 1))]
    return [slice(a, b) for a, b in itertools.pairwise(starts)]


def wigner_d(l_max: int, beta_rad: Float[Tensor, "*batch"]) -> list[Float[Tensor, "*batch d d"]]:
    """d^l(beta) for l = 0 .. l_max, float64, rows and columns from -l to l.

    Upwards recursion in l at fixed (m, n), which is stable, from the closed forms at |m| = l or |n| = l (Kostelec and
    Rockmore, J. Fourier Anal. Appl. 14, 2008, 145).
    """
    if l_max < 0:
        raise BadInput(f"wigner_d: degree {l_max} is negative.")
    beta = beta_rad.double()
    cosine = torch.cos(beta)[..., None, None]
    out = [torch.ones_like(cosine)]
    for degree in range(1, l_max + 1):
        block = _edges(degree, beta)
        inner = degree - 1
        m = torch.arange(-inner, inner + 1, dtype=torch.float64, device=beta.device)
        row, column = m[:, None], m[None, :]
        scale = degree * (2 * degree - 1) / ((degree**2 - row**2) * (degree**2 - column**2)).sqrt()
        twist = row * column / (inner * degree) if inner else torch.zeros_like(row * column)
        value = (cosine - twist) * out[degree - 1]
        if inner:
            before = torch.nn.functional.pad(out[degree - 2], (1, 1, 1, 1))
            weight = ((inner**2 - row**2) * (inner**2 - column**2)).clamp_min(0).sqrt()
            value = value - before * (weight / (inner * (2 * inner + 1)))
        block[..., 1:-1, 1:-1] = scale * value
        out.append(block)
    return out


def _edges(degree: int, beta: Tensor) -> Tensor:
    """d^l with the outermost rows and columns filled in: binomials of half angles."""
    m = torch.arange(-degree, degree + 1, device=beta.device)
    size = 2 * degree
    log_binomial = (
        math.lgamma(size + 1)
        - torch.lgamma((degree + m + 1).double())
        - torch.lgamma((degree - m + 1).double())
    )
    cosine, sine = torch.cos(beta / 2)[..., None], torch.sin(beta / 2)[..., None]
    root = torch.exp(0.5 * log_binomial)
    last = root * cosine ** (degree + m) * sine ** (degree - m)  # d_{m, l}
    sign = (1 - 2 * ((degree - m) % 2)).double()
    block = beta.new_zeros(*beta.shape, size + 1, size + 1)
    block[..., :, -1] = last
    block[..., -1, :] = sign * last
    block[..., 0, :] = last.flip(-1)
    block[..., :, 0] = (sign * last).flip(-1)
    return block


def zyz_angles(
    rotation: Float[Tensor, "*batch 3 3"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """(alpha, beta, gamma) with R = Rz(alpha) Ry(beta) Rz(gamma), beta in [0, pi], radians, float64."""
    r = rotation.double()
    sine = torch.hypot(r[..., 2, 0], r[..., 2, 1])
    pole = sine < 1e-14
    beta = torch.atan2(sine, r[..., 2, 2])
    alpha = torch.atan2(r[..., 1, 2], r[..., 0, 2])
    # Near a pole alpha and gamma lose digits one by one, but alpha + gamma (there beta = 0) or alpha - gamma (beta = pi)
    # does not: gamma makes up for alpha's error.
    together = torch.atan2(r[..., 1, 0] - r[..., 0, 1], r[..., 0, 0] + r[..., 1, 1])
    apart = torch.atan2(-(r[..., 1, 0] + r[..., 0, 1]), r[..., 1, 1] - r[..., 0, 0])
    gamma = torch.where(r[..., 2, 2] > 0, together - alpha, alpha - apart).masked_fill(pole, 0.0)
    # At a pole only a sum or a difference is defined: it all goes to alpha.
    at_pole = torch.atan2(r[..., 1, 0], r[..., 1, 1])
    return torch.where(pole, at_pole, alpha), beta, gamma


def wigner_matrices(l_max: int, rotation: Float[Tensor, "*batch 3 3"]) -> list[Complex[Tensor, "*batch d d"]]:
    """D^l(R) for l = 0 .. l_max in the complex basis, complex128: unitary, D(R1 R2) = D(R1) D(R2)."""
    alpha, beta, gamma = zyz_angles(rotation)
    out = []
    for degree, small in enumerate(wigner_d(l_max, beta)):
        m = torch.arange(-degree, degree + 1, dtype=torch.float64, device=rotation.device)
        left, right = alpha[..., None] * m, gamma[..., None] * m
        angle = left[..., :, None] + right[..., None, :]
        out.append(torch.polar(torch.ones_like(angle), -angle) * small)
    return out


def real_wigner_matrices(
    l_max: int, rotation: Float[Tensor, "*batch 3 3"]
) -> list[Float[Tensor, "*batch d d"]]:
    """D^l(R) for l = 0 .. l_max in the basis of real harmonics, float64: orthogonal; degree 1 is R on (y, z, x)."""
    return [
        (to_real_basis(degree).to(d.device) @ d @ to_real_basis(degree).mH.to(d.device)).real
        for degree, d in enumerate(wigner_matrices(l_max, rotation))
    ]


@functools.cache
def to_real_basis(degree: int) -> Complex[Tensor, "d d"]:
    """Unitary C of one degree: real-harmonic coefficients are C times complex ones; D_real = C D C^H."""
    real = torch.zeros(2 * degree + 1, 2 * degree + 1, dtype=torch.float64)
    imag = torch.zeros_like(real)
    real[degree, degree] = 1
    half = math.sqrt(0.5)
    for m in range(1, degree + 1):
        sign = (-1) ** m
        # Y^real_m = (Y_-m + (-1)^m Y_m) / sqrt 2, Y^real_-m = i (Y_-m - (-1)^m Y_m) / sqrt 2; coefficients conjugate.
        real[degree + m, degree - m], real[degree + m, degree + m] = half, sign * half
        imag[degree - m, degree - m], imag[degree - m, degree + m] = -half, sign * half
    return torch.complex(real, imag)


def rotation_harmonics(
    l_max: int, rotation: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch coefficients"]:
    """All sqrt(2l + 1) D^l_mn(R) in the real basis: f(R) = sum of coefficients times these."""
    parts = [
        math.sqrt(2 * degree + 1) * d.flatten(-2)
        for degree, d in enumerate(real_wigner_matrices(l_max, rotation))
    ]
    return torch.cat(parts, -1)


def spherical_harmonics(
    l_max: int, direction: Float[Tensor, "*batch 3"]
) -> Complex[Tensor, "*batch coefficients"]:
    """Y_lm of unit vectors, orthonormal on the sphere, complex128: l = 0, then l = 1 with m = -1, 0, 1, and so on."""
    x, y, z = direction.double().unbind(-1)
    theta, phi = torch.atan2(torch.hypot(x, y), z), torch.atan2(y, x)
    parts = []
    for degree, small in enumerate(wigner_d(l_max, theta)):
        m = torch.arange(-degree, degree + 1, dtype=torch.float64, device=direction.device)
        angle = phi[..., None] * m
        scale = math.sqrt((2 * degree + 1) / (4 * math.pi))
        parts.append(torch.polar(torch.ones_like(angle), angle) * small[..., degree] * scale)
    return torch.cat(parts, -1)


def real_spherical_harmonics(
    l_max: int, direction: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch coefficients"]:
    """Real harmonics of unit vectors, orthonormal on the sphere, float64; degree 1 is sqrt(3 / 4 pi) (y, z, x)."""
    values = spherical_harmonics(l_max, direction)
    parts = [
        (values[..., degree**2 : (degree + 1) ** 2] @ to_real_basis(degree).mH.to(values.device)).real
        for degree in range(l_max + 1)
    ]
    return torch.cat(parts, -1)


@dataclass(frozen=True, eq=False)
class SphereGrid:
    """Gauss-Legendre rings: synthesis and analysis are exact inverses for degrees <= `l_max`."""

    l_max: int
    direction: Float[Tensor, "points 3"]
    weight: Float[Tensor, "points"]
    """Of each point; they sum to 4 pi."""

    @classmethod
    def of_degree(cls, l_max: int, *, resolution: int | None = None) -> SphereGrid:
        """`resolution` rings (l_max + 1 unless given, the fewest that will do) of twice as many points."""
        cosine, ring = _legendre_nodes(l_max, resolution)
        n = len(cosine)
        phi = torch.arange(2 * n, dtype=torch.float64) * (math.pi / n)
        sine = (1 - cosine**2).sqrt()[:, None]
        point = (sine * phi.cos(), sine * phi.sin(), cosine[:, None].expand(n, 2 * n))
        direction = torch.stack(point, -1).reshape(-1, 3)
        return cls(l_max, direction, (ring[:, None] * (math.pi / n)).expand(n, 2 * n).reshape(-1))

    def to_grid(self) -> Float[Tensor, "coefficients points"]:
        """Matrix from real coefficients to values."""
        return real_spherical_harmonics(self.l_max, self.direction).mT.contiguous()

    def from_grid(self) -> Float[Tensor, "points coefficients"]:
        """Matrix from values to real coefficients."""
        return self.weight[:, None] * real_spherical_harmonics(self.l_max, self.direction)


@dataclass(frozen=True, eq=False)
class RotationGrid:
    """Euler angles on a regular grid: synthesis and analysis on the rotations, exact inverses for degrees <= `l_max`."""

    l_max: int
    rotation: Float[Tensor, "points 3 3"]
    weight: Float[Tensor, "points"]
    """Of each point; they sum to 1."""

    @classmethod
    def of_degree(cls, l_max: int, *, resolution: int | None = None) -> RotationGrid:
        """`resolution` values of beta (l_max + 1 unless given) and twice as many of alpha and of gamma."""
        cosine, ring = _legendre_nodes(l_max, resolution)
        n = len(cosine)
        turn = torch.arange(2 * n, dtype=torch.float64) * (math.pi / n)
        about_z, about_y = axis_rotation("z", turn), axis_rotation("y", torch.acos(cosine))
        rotation = about_z[:, None, None] @ about_y[:, None] @ about_z
        weight = (ring[:, None] / (8 * n * n)).expand(2 * n, n, 2 * n)
        return cls(l_max, rotation.reshape(-1, 3, 3), weight.reshape(-1))

    def to_grid(self) -> Float[Tensor, "coefficients points"]:
        """Matrix from real coefficients to values."""
        return rotation_harmonics(self.l_max, self.rotation).mT.contiguous()

    def from_grid(self) -> Float[Tensor, "points coefficients"]:
        """Matrix from values to real coefficients."""
        return self.weight[:, None] * rotation_harmonics(self.l_max, self.rotation)


def _legendre_nodes(l_max: int, resolution: int | None) -> tuple[Tensor, Tensor]:
    n = l_max + 1 if resolution is None else resolution
    if n <= l_max:
        raise BadInput(f"A grid of resolution {n} cannot hold degree {l_max}. Give at least {l_max + 1}.")
    cosine, weight = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(cosine), torch.from_numpy(weight)


def view_harmonics(
    l_max: int, frame: Float[Tensor, "views 3 3"], *, m_max: int | None = None
) -> list[Complex[Tensor, "views coefficients"]]:
    """For m = 0 .. m_max, all sqrt(2l + 1) D^l_mn(frame), l >= m: (l, n) along the last axis, complex basis.

    A function of R = in_plane_rotation(psi) frame_v is then sum over m of exp(i m psi) G_m(v), with
    G_m(v) = sum over (l, n) of F^l_mn times these: the read-out without a matrix over all rotations.
    """
    blocks = wigner_matrices(l_max, frame)
    orders = range((l_max if m_max is None else min(m_max, l_max)) + 1)
    return [
        torch.cat([math.sqrt(2 * d + 1) * blocks[d][..., d + m, :] for d in range(m, l_max + 1)], -1)
        for m in orders
    ]


def in_plane_series(
    harmonics: Complex[Tensor, "*batch m"], n_psi: int, *, start_rad: float = 0.0
) -> Float[Tensor, "*batch n_psi"]:
    """Re [G_0 + 2 sum_{m > 0} G_m exp(i m psi_j)], psi_j = start + 2 pi j / n_psi, by one FFT.

    Orders up to any m are summed exactly: they are folded into n_psi samples, not cut.
    """
    n_orders = harmonics.shape[-1]
    order = torch.arange(n_orders, device=harmonics.device, dtype=harmonics.real.dtype)
    phase = order * start_rad
    turned = harmonics * torch.polar(torch.ones_like(phase), phase)
    times = -(-(2 * n_orders) // n_psi)
    return torch.fft.irfft(turned, n=times * n_psi, dim=-1, norm="forward")[..., ::times]
