"""Ring transforms: the plane of an image in polar coordinates, where an in-plane rotation is a shift of the angle.

The transform X of a real image obeys X(r, t + pi) = conj X(r, t). Hence c = Re X + Im X, a real function on the whole
circle, holds all of X, and sum_t Re(X conj Y) over the circle equals sum_t c_X c_Y: its even circular harmonics are
those of Re X, its odd ones those of Im X, so mixed terms vanish. Everything below works with c and its harmonics
m >= 0 (a Hartley transform on rings): half the numbers of a complex ring, and plain real matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True)
class RingGrid:
    """Rings of whole radii 1 .. n_radii, in Fourier pixels of the box, sampled at n_angles (even) angles each."""

    box: int
    n_radii: int
    n_angles: int

    def __post_init__(self) -> None:
        if self.n_angles % 2 or self.n_radii < 1:
            raise BadInput(f"RingGrid: wanted an even number of angles and a radius >= 1, got {self}.")
        if self.n_radii > (self.box - 1) // 2:
            raise BadInput(f"RingGrid: radius {self.n_radii} does not fit in a box of {self.box} pixels.")

    @property
    def n_half(self) -> int:
        """Angles on the stored half circle."""
        return self.n_angles // 2

    def radii(self, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "r"]:
        """1, 2, .. n_radii in Fourier pixels (1 / (box * pixel size))."""
        return torch.arange(1, self.n_radii + 1, dtype=dtype)

    def points(self, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "r a 2"]:
        """(kx, ky) of the half circle in Fourier pixels."""
        angle = torch.arange(self.n_half, dtype=torch.float64) * (2 * math.pi / self.n_angles)
        unit = torch.stack((angle.cos(), angle.sin()), -1)
        return (self.radii(dtype=torch.float64)[:, None, None] * unit).to(dtype)

    def weights(self, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "r"]:
        """Fourier pixels that one sample of the whole circle stands for: 2 pi r / n_angles."""
        return self.radii(dtype=dtype) * (2 * math.pi / self.n_angles)

    @property
    def half_plane_pixels(self) -> int:
        """Fourier pixels that the samples of the half circle stand for, rounded: about those of a half disk."""
        return round(float(self.weights(dtype=torch.float64).sum()) * self.n_half)


def ring_kernel(grid: RingGrid, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "p ra2"]:
    """Matrix that takes a (box, box) image, centred at box // 2, to its transform on the rings, exactly.

    Columns hold the real parts of all (r, a), then the imaginary parts.
    """
    axis = torch.arange(grid.box, dtype=torch.float64) - grid.box // 2
    position = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1).reshape(-1, 2)
    phase = position @ grid.points(dtype=torch.float64).reshape(-1, 2).T * (2 * math.pi / grid.box)
    return torch.cat((phase.cos(), -phase.sin()), 1).to(dtype)


def image_to_rings(
    images: Float[Tensor, "n box box"], grid: RingGrid, kernel: Float[Tensor, "p ra2"]
) -> Complex[Tensor, "n r a"]:
    """The transform of each image on the half rings; `kernel` comes from `ring_kernel(grid)`."""
    flat = images.reshape(images.shape[0], -1) @ kernel
    half = flat.reshape(-1, 2, grid.n_radii, grid.n_half)
    return torch.complex(half[:, 0], half[:, 1])


def to_circle(rings: Complex[Tensor, "*batch a"]) -> Float[Tensor, "*batch t"]:
    """C = Re X + Im X on the whole circle, from X on half of it."""
    real, imag = rings.real, rings.imag
    return torch.cat((real + imag, real - imag), -1)


def from_circle(circle: Float[Tensor, "*batch t"]) -> Complex[Tensor, "*batch a"]:
    """X on the half circle, from c on the whole one; the inverse of `to_circle`."""
    first, second = circle.chunk(2, -1)
    return torch.complex((first + second) / 2, (first - second) / 2)


def circle_to_harmonics(circle: Float[Tensor, "*batch t"], m_max: int) -> Complex[Tensor, "*batch m"]:
    """Circular harmonics c_m = sum_t c(t) exp(-i m t), m = 0 .. m_max."""
    return torch.fft.rfft(circle, dim=-1)[..., : m_max + 1]


def harmonics_to_circle(harmonics: Complex[Tensor, "*batch m"], n_angles: int) -> Float[Tensor, "*batch t"]:
    """c(t) from its harmonics 0 .. m_max; higher ones are zero. The inverse of `circle_to_harmonics`."""
    return torch.fft.irfft(harmonics, n=n_angles, dim=-1)


def shift_phases(grid: RingGrid, shifts_px: Float[Tensor, "s 2"]) -> Complex[Tensor, "s r a"]:
    """Factors that move image content by -shift, i.e. bring a particle that sits at `shift` to the centre.

    Shifts in pixels of the box, (x, y).
    """
    angle = torch.einsum("sc,rac->sra", shifts_px.double(), grid.points(dtype=torch.float64))
    angle = angle * (2 * math.pi / grid.box)
    return torch.complex(angle.cos(), angle.sin()).to(torch.complex64)
