"""Convolutions on the sphere and on the rotations, and the way from coefficients to logits on a grid of rotations.

Functions are held by real coefficients in the bases of `geometry.harmonics`: (l_max + 1)^2 on the sphere, blocks of
(2l + 1)^2 on the rotations. Turning the input turns rows, F -> D(g) F, so every linear layer here, which acts on columns
and channels, commutes with all rotations exactly; the pointwise non-linearity does so up to what its grid cannot hold.
Cohen, Geiger, Koehler, Welling, ICLR 2018; Klee, Biza, Platt, Walters, ICLR 2023.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.geometry.harmonics import (
    RotationGrid,
    n_rotations,
    n_sphere,
    real_spherical_harmonics,
    rotation_blocks,
    rotation_harmonics,
    to_real_basis,
    view_harmonics,
)
from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.geometry.so3_grid import direction_frame, healpix_directions, n_in_plane, n_pixels
from cryorbit.nn.polar import in_plane_matrix


class HalfSphereLift(nn.Module):
    """Feature maps, seen along the beam, on the near half of the sphere (Image2Sphere's lift).

    Each point of a HEALPix grid with z >= 0 takes a Gaussian-weighted mean of the features around its orthographic
    position, tapered to nothing over the last 15 degrees before the rim; the weights can be learned. A choice, not a
    law: projections are transparent.

    Parameters
    ----------
    size
        Edge of the feature map.
    order
        HEALPix order of the points.
    spread
        Standard deviation of the weights, in units of half the map's edge.
    """

    analysis: Tensor

    def __init__(
        self, size: int, *, l_max: int, order: int = 2, spread: float = 0.2, coverage: float = 0.9
    ) -> None:
        super().__init__()
        direction = healpix_directions(order)
        direction = direction[direction[:, 2] > -1e-9]
        axis = (torch.arange(size, dtype=torch.float64) - size // 2) / (size / 2)
        place = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1).reshape(-1, 2)
        distance = (direction[:, None, :2] * coverage - place).square().sum(-1)
        # Only the disc: a square map's corners would favour the diagonals. A soft rim, as pixels straddle it.
        inside = ((1 - place.norm(dim=1)) * size / 2 + 0.5).clamp(1e-6, 1)
        weight = torch.softmax(-distance / (2 * spread**2) + inside.log(), 1)
        tilt = torch.rad2deg(torch.acos(direction[:, 2].clamp(-1, 1)))
        taper = ((90 - tilt) / 15).clamp(0, 1)
        self.weight = nn.Parameter(weight.float())
        basis = real_spherical_harmonics(l_max, direction) * taper[:, None]
        self.register_buffer("analysis", (basis / math.sqrt(len(direction))).float(), persistent=False)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c coefficients"]:
        """Coefficients of the lifted features on the sphere."""
        points = nn.functional.relu(features.flatten(2) @ self.weight.mT)
        return points @ self.analysis


class SphereConv(nn.Module):
    """Correlation of a function on the sphere with learned filters of global support: a function on the rotations.

    f(R) = <s, R w>: per degree the outer product of image and filter coefficients.
    """

    def __init__(self, channels_in: int, channels_out: int, *, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        scale = 1 / math.sqrt(channels_in * (l_max + 1))
        self.weight = nn.Parameter(torch.randn(channels_in, channels_out, n_sphere(l_max)) * scale)

    def forward(self, x: Float[Tensor, "b c coefficients"]) -> Float[Tensor, "b o rotations"]:
        """Blocks of every degree."""
        parts = []
        for degree in range(self.l_max + 1):
            part = slice(degree**2, (degree + 1) ** 2)
            parts.append(torch.einsum("bcm,con->bomn", x[..., part], self.weight[..., part]).flatten(2))
        return torch.cat(parts, -1)


class RotationConv(nn.Module):
    """(f * k)(R) = mean over Q of f(Q) k(Q^T R): per degree a product of blocks, channels summed.

    Parameters
    ----------
    support
        "full": free filter coefficients; "local": values at rotations within `radius_deg` of the identity.
    """

    taps: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        l_max: int,
        support: Literal["full", "local"] = "local",
        radius_deg: float = 22.5,
    ) -> None:
        super().__init__()
        if support not in ("full", "local"):
            raise BadInput(f"RotationConv: support {support!r} is not 'full' or 'local'.")
        self.l_max = l_max
        if support == "local":
            near = _near_identity(radius_deg)
            self.register_buffer(
                "taps", rotation_harmonics(l_max, near).float() / len(near), persistent=False
            )
            free = len(near)
        else:
            self.register_buffer("taps", torch.eye(n_rotations(l_max)), persistent=False)
            free = n_rotations(l_max)
        self.weight = nn.Parameter(torch.randn(channels_in, channels_out, free) / math.sqrt(channels_in))

    def forward(self, x: Float[Tensor, "b c rotations"]) -> Float[Tensor, "b o rotations"]:
        """Blocks of every degree."""
        kernel, parts = self.weight @ self.taps, []
        for degree, part in enumerate(rotation_blocks(self.l_max)):
            size = 2 * degree + 1
            f = x[..., part].unflatten(-1, (size, size))
            k = kernel[..., part].unflatten(-1, (size, size))
            parts.append(torch.einsum("bcmk,cokn->bomn", f, k).flatten(2) / math.sqrt(size))
        return torch.cat(parts, -1)


def _near_identity(radius_deg: float) -> Float[Tensor, "taps 3 3"]:
    """The identity and two shells of 12 rotations each, about the HEALPix directions of order 0."""
    axis = healpix_directions(0)
    radius = math.radians(radius_deg)
    vectors = [torch.zeros(1, 3, dtype=torch.float64), axis * (radius / 2), axis * radius]
    return rotvec_to_matrix(torch.cat(vectors))


class RotationActivation(nn.Module):
    """ReLU of a function on the rotations: to a grid, pointwise, and back to degree `l_max`.

    The finer the grid the closer to equivariant: ReLU makes all degrees, and those above 2 resolution - l_max fold back.
    """

    to_grid: Tensor
    from_grid: Tensor

    def __init__(self, *, l_max: int, resolution: int | None = None) -> None:
        super().__init__()
        grid = RotationGrid.of_degree(l_max, resolution=resolution)
        self.register_buffer("to_grid", grid.to_grid().float(), persistent=False)
        self.register_buffer("from_grid", grid.from_grid().float(), persistent=False)

    def forward(self, x: Float[Tensor, "b c rotations"]) -> Float[Tensor, "b c rotations"]:
        """Coefficients in, coefficients out."""
        return nn.functional.relu(x @ self.to_grid) @ self.from_grid


class RotationReadout(nn.Module):
    """Values of a function on the rotations at the cells of `so3_grid(order)`, by a series over the in-plane angle.

    With R = in_plane_rotation(psi) frame_v, row m of every block gives G_m(v), and f(v, psi) the Fourier series over m:
    views x coefficients + views x angles operations, and no table of rotations by coefficients.
    """

    series: Tensor

    def __init__(self, *, l_max: int, order: int) -> None:
        super().__init__()
        self.l_max = l_max
        frames = direction_frame(torch.arange(n_pixels(order)), order=order)
        starts = [block.start for block in rotation_blocks(l_max)]
        for m, basis in enumerate(view_harmonics(l_max, frames)):
            columns, plus, minus, at = [], [], [], 0
            for degree in range(m, l_max + 1):
                size = 2 * degree + 1
                part = basis[:, at : at + size] @ to_real_basis(degree).mH  # on real column indices
                columns.append(part)
                row = torch.arange(size)
                plus.append(starts[degree] + (degree + m) * size + row)
                minus.append(starts[degree] + (degree - m) * size + row)
                at += size
            # Row m of the complex block is (-1)^m (row_m + i row_-m) / sqrt 2 of the real one.
            scale = 1.0 if m == 0 else (-1) ** m * math.sqrt(0.5)
            table = torch.view_as_real((torch.cat(columns, 1) * scale).mT.contiguous())
            self.register_buffer(f"table_{m}", table.permute(2, 0, 1).float().contiguous(), persistent=False)
            self.register_buffer(f"plus_{m}", torch.cat(plus), persistent=False)
            self.register_buffer(f"minus_{m}", torch.cat(minus), persistent=False)
        n = n_in_plane(order)
        series = in_plane_matrix(l_max + 1, n, start_rad=math.pi / n)
        self.register_buffer("series", series.float(), persistent=False)

    def forward(self, x: Float[Tensor, "b rotations"]) -> Float[Tensor, "b cells"]:
        """Values in the order of `so3_grid(order).reshape(-1, 3, 3)`."""
        parts = []
        for m in range(self.l_max + 1):
            real, imag = self.get_buffer(f"table_{m}")
            a = x[:, self.get_buffer(f"plus_{m}")]
            parts.append(a @ real)
            if m == 0:
                parts.append(a @ imag)
                continue
            b = x[:, self.get_buffer(f"minus_{m}")]
            parts[-1] = parts[-1] - b @ imag
            parts.append(a @ imag + b @ real)
        stacked = torch.stack(parts)  # 2 (l_max + 1), b, v
        values = self.series @ stacked.flatten(1)
        return values.view(-1, *stacked.shape[1:]).permute(1, 2, 0).flatten(1)
