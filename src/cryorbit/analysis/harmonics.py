"""Spherical harmonics on a Gauss-Legendre grid, and correlation over all rotations by one FFT."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SphereGrid:
    """Directions and weights that integrate products of harmonics of degree < `degrees` exactly."""

    degrees: int
    direction: Float[Tensor, "t p 3"]
    legendre: Float[Tensor, "l m t"]
    """Normalised associated Legendre functions, m >= 0, times the quadrature weight."""

    @classmethod
    def of_degree(cls, degrees: int) -> SphereGrid:
        """Grid for degrees 0 to `degrees` - 1: `degrees` rings of 2 `degrees` points."""
        cosine, weight = np.polynomial.legendre.leggauss(degrees)
        theta = np.arccos(cosine)
        phi = 2.0 * np.pi * np.arange(2 * degrees) / (2 * degrees)
        sine = np.sin(theta)
        direction = np.stack(
            [
                sine[:, None] * np.cos(phi),
                sine[:, None] * np.sin(phi),
                np.broadcast_to(cosine[:, None], (degrees, 2 * degrees)),
            ],
            -1,
        )
        table = _legendre(degrees, cosine, sine) * weight
        return cls(degrees, torch.from_numpy(direction), torch.from_numpy(table))

    def analyse(self, values: Complex[Tensor, "*batch t p"]) -> Complex[Tensor, "*batch l m"]:
        """Coefficients f_lm of f = sum f_lm Y_lm, m from -degrees + 1 to degrees - 1 along the last axis."""
        n = self.degrees
        fourier = torch.fft.fft(values, dim=-1) * (2.0 * math.pi / (2 * n))
        orders = torch.arange(-n + 1, n)
        picked = fourier[..., orders % (2 * n)]
        sign = torch.where(orders < 0, (-1.0) ** orders.abs().double(), 1.0).double()
        table = self.legendre[:, orders.abs()] * sign[:, None]
        return torch.einsum("lmt,...tm->...lm", table.to(values.dtype), picked)


def _legendre(degrees: int, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """P_lm(cos theta), Condon-Shortley sign: Y_lm = P_lm exp(i m phi) is orthonormal; axes l, m, t."""
    table = np.zeros((degrees, degrees, len(cosine)))
    table[0, 0] = math.sqrt(1.0 / (4.0 * math.pi))
    for m in range(1, degrees):
        table[m, m] = -math.sqrt((2 * m + 1) / (2 * m)) * sine * table[m - 1, m - 1]
    for m in range(degrees - 1):
        table[m + 1, m] = math.sqrt(2 * m + 3) * cosine * table[m, m]
        for n in range(m + 2, degrees):
            a = math.sqrt((4 * n * n - 1) / (n * n - m * m))
            b = math.sqrt(((n - 1) ** 2 - m * m) / (4 * (n - 1) ** 2 - 1))
            table[n, m] = a * (cosine * table[n - 1, m] - b * table[n - 2, m])
    return table


@functools.cache
def quarter_turn(degree: int) -> Float[Tensor, "d d"]:
    """Wigner's d^l(pi / 2): how harmonics of one degree mix when turned about y by a quarter turn."""
    m = np.arange(-degree, degree)
    rising = np.diag(np.sqrt(degree * (degree + 1) - m * (m + 1)), -1)
    value, vector = np.linalg.eigh((rising - rising.T) / 2j)  # J_y
    turned = (vector * np.exp(-0.5j * np.pi * value)) @ vector.conj().T
    return torch.from_numpy(np.real(turned).copy())


def correlate_over_rotations(
    moving: Complex[Tensor, "s l m"], reference: Complex[Tensor, "s l m"]
) -> Float[Tensor, "a b c"]:
    """C(R) = Re sum_s <reference_s, R moving_s> on the grid R = Rz(alpha) Ry(beta) Rz(gamma).

    All three angles run over 2 pi i / size along their axis; beta beyond pi repeats other rotations.
    R turns the moving function actively: (R f)(x) = f(R^-1 x). Kostelec and Rockmore, J. Fourier Anal.
    Appl. 14 (2008).
    """
    degrees = moving.shape[1]
    size = 2 * degrees
    cube = torch.zeros(size, size, size, dtype=torch.complex128)
    for degree in range(degrees):
        span = slice(degrees - 1 - degree, degrees + degree)
        f, g = moving[:, degree, span], reference[:, degree, span]
        overlap = torch.einsum("sp,sm->pm", g.conj().to(cube.dtype), f.to(cube.dtype))
        turn = quarter_turn(degree)
        order = torch.arange(-degree, degree + 1)
        # d_pm(beta) = i^(p - m) sum_k turn_kp turn_km exp(-i k beta)
        phase = torch.exp(0.5j * math.pi * (order[:, None] - order[None, :]).to(cube.dtype))
        mixed = turn.mT[:, :, None] * turn[None]
        span = slice(degrees - 1 - degree, degrees + degree)
        cube[span, span, span] += (overlap * phase)[:, None, :] * mixed
    orders = torch.arange(-degrees + 1, degrees + 1) % size
    cube = torch.zeros_like(cube).index_copy_(0, orders, cube)
    cube = torch.zeros_like(cube).index_copy_(1, orders, cube)
    cube = torch.zeros_like(cube).index_copy_(2, orders, cube)
    return torch.fft.fftn(cube).real


def rotations_at(index: Float[Tensor, "k 3"], size: int) -> Float[Tensor, "k 3 3"]:
    """The rotations of `correlate_over_rotations` at grid positions (alpha, beta, gamma)."""
    angle = index.double() * (2.0 * math.pi / size)
    c, s = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(c[:, 0]), torch.ones_like(c[:, 0])

    def about_z(i: int) -> Tensor:
        return torch.stack([c[:, i], -s[:, i], zero, s[:, i], c[:, i], zero, zero, zero, one], -1)

    about_y = torch.stack([c[:, 1], zero, s[:, 1], zero, one, zero, -s[:, 1], zero, c[:, 1]], -1)
    a, b, g = (m.reshape(-1, 3, 3) for m in (about_z(0), about_y, about_z(2)))
    return a @ b @ g
