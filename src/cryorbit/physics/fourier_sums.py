"""Sums of plane waves at any frequencies, read at whole voxels: the adjoint of exact slicing, for many images at once.

    f(r) = Re sum_j c_j exp(2 pi i k_j . r / box),   r whole, |r| within a cube

`WaveSums` gathers c_j piece by piece: each is spread over `width` points per axis of a grid of twice the density that the
cube asks for, by a Kaiser-Bessel kernel; one transform and a division by the kernel's own transform give f (a non-uniform
Fourier transform of type 1; the kernel's shape from Beatty, Nishimura & Pauly 2005). The error falls about tenfold per
point of width: 4 gives 1e-3 or better, 6 gives 1e-5, 8 gives 1e-7, 10 gives 1e-9 (tests/physics/test_fourier_sums.py).
`wave_sums` and `transform_at` do the same sums one by one; they are what the fast ones are tested against.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float, Shaped
from torch import Tensor

from cryorbit.errors import BadInput

_TERMS = 1 << 18
"""Corners touched at a time on a CPU: what the cache of one core about holds."""


class WaveSums:
    """Running sum over plane waves, in float64.

    Parameters
    ----------
    box
        Edge that frequencies are counted in: k is in cycles per `box` voxels, each component within box / 2.
    edge
        Of the cube that f is wanted on: r from -edge // 2 upwards.
    oriented
        Whether c_j are complex. Real ones make f even, and take half of the memory.
    width
        Points per axis that each wave is spread over, 2 to 14.
    """

    def __init__(
        self, box: int, edge: int, *, oriented: bool, width: int = 6, device: torch.device | None = None
    ) -> None:
        if not 2 <= width <= min(14, 2 * edge):
            raise BadInput(
                f"WaveSums: a kernel of {width} points; give 2 to 14, and no more than {2 * edge}."
            )
        self.box, self.edge, self.fine, self.width = box, edge, 2 * edge, width
        self.beta = math.pi * math.sqrt((0.75 * width) ** 2 - 0.8)
        shape = (2 if oriented else 1, self.fine**3)
        self.grid = torch.zeros(shape, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, frequency: Float[Tensor, "m 3"], value: Shaped[Tensor, "m"]) -> None:
        """Add waves: frequencies (x, y, z), and c_j; complex values need `oriented`."""
        if value.is_complex() != (len(self.grid) == 2):
            raise BadInput(
                f"WaveSums: {value.dtype} values for a sum made with oriented={len(self.grid) == 2}."
            )
        rows = torch.view_as_real(value.resolve_conj()).T if value.is_complex() else value[None]
        step = max(1, (_TERMS if value.device.type == "cpu" else 64 * _TERMS) // self.width**3)
        for points, some in zip(frequency.split(step), rows.double().split(step, dim=1), strict=True):
            index, weight = self._corners(points.double())
            for channel, row in zip(self.grid, some, strict=True):
                channel.scatter_add_(0, index, (weight * row[:, None]).view(-1))

    def _corners(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Flat index (m w^3,) and weight (m, w^3) of each corner of each point."""
        w = self.width
        place = points * (self.fine / self.box)
        first = torch.ceil(place - w / 2)
        tap = first[..., None] + torch.arange(w, device=points.device)
        inside = (1 - ((tap - place[..., None]) * (2 / w)).square()).clamp_min(0).sqrt()
        kernel = torch.special.i0e(self.beta * inside) * torch.exp(self.beta * (inside - 1))
        x, y, z = (tap.long() % self.fine).unbind(1)
        kx, ky, kz = kernel.unbind(1)
        plane = ((z * self.fine)[:, :, None] + y[:, None, :]) * self.fine
        index = plane[..., None] + x[:, None, None, :]
        weight = (kz[:, :, None] * ky[:, None, :]).flatten(1)[:, :, None] * kx[:, None, :]
        return index.view(-1), weight.flatten(1)

    def __iadd__(self, other: WaveSums) -> WaveSums:
        if (self.box, self.edge, self.width, len(self.grid)) != (
            other.box,
            other.edge,
            other.width,
            len(other.grid),
        ):
            raise BadInput("WaveSums: sums of different boxes or kernels cannot be added.")
        self.grid += other.grid
        return self

    @torch.no_grad()
    def values(self) -> Float[Tensor, "edge edge edge"]:
        """The sum on the cube, axes z, y, x, r = 0 at index edge // 2; more may be added afterwards."""
        r = torch.arange(self.edge, device=self.grid.device) - self.edge // 2
        cube = self.grid.view(-1, self.fine, self.fine, self.fine)
        wave = torch.complex(cube[0], cube[1]) if len(cube) == 2 else cube[0]
        for dim in (2, 1, 0):  # cut at once to what is wanted, so that little is transformed
            wave = torch.fft.ifft(wave, dim=dim, norm="forward").index_select(dim, r % self.fine)
        root = torch.sqrt(self.beta**2 - (math.pi * self.width * r.double() / self.fine) ** 2)
        # The kernel's transform, width sinh(s) / s, times exp(-beta) as the kernel is.
        shape = self.width * torch.exp(root - self.beta) * (1 - torch.exp(-2 * root)) / (2 * root)
        return wave.real / (shape[:, None, None] * shape[:, None] * shape)


def wave_sums(
    frequency: Float[Tensor, "m 3"], value: Shaped[Tensor, "m"], *, box: int, edge: int
) -> Float[Tensor, "edge edge edge"]:
    """`WaveSums` by direct summation: m edge^3 terms."""
    r = torch.arange(edge, device=frequency.device, dtype=frequency.dtype) - edge // 2
    x, y, z = (_waves(frequency[:, j], r, box, sign=1) for j in range(3))
    return torch.einsum("mz,my,mx->zyx", value.to(z)[:, None] * z, y, x).real


def transform_at(values: Float[Tensor, "n n n"], frequency: Float[Tensor, "m 3"]) -> Complex[Tensor, "m"]:
    """V^(k) = sum over voxels r of V(r) exp(-2 pi i k . r / n), term by term, at any k (x, y, z) in cycles per box.

    This is what "exact" means for slices here: the map is its voxels, and nothing is interpolated. r = 0 at index n // 2.

    >>> transform_at(torch.ones(3, 3, 3), torch.zeros(1, 3)).real.tolist()
    [27.0]
    """
    n = values.shape[0]
    r = torch.arange(n, device=values.device, dtype=values.dtype) - n // 2
    x, y, z = (_waves(frequency[:, j].to(values), r, n, sign=-1) for j in range(3))
    rows = torch.einsum("zyx,mx->mzy", values.to(x), x)
    return torch.einsum("mzy,my,mz->m", rows, y, z)


def _waves(k: Tensor, r: Tensor, n: int, *, sign: int) -> Tensor:
    angle = k[:, None] * r * (sign * 2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle)
