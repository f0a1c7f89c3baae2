"""Does a map equal its own mirror image? A protein never does; a map that mixes both hands of one has a mirror plane.

CC(n, c) is the correlation of the map V, inside a ball, with its reflection V(x - 2 (n.x - c) n). In Fourier space the
reflection is F(k) -> F(k - 2 (n.k) n) exp(-4 pi i c n.k), so one product of samples per plane serves every offset c. By
itself CC says little, since any compact body correlates with its reflections: the shell correlation of V and its best
reflection tells to what resolution the two agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation
from cryorbit.analysis.masks import automatic_mask, particle_radius_A
from cryorbit.analysis.spectrum import Spectrum, at_grid, half_ball, low_band
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import soft_sphere_mask
from cryorbit.geometry.conventions import view_rotation
from cryorbit.geometry.so3_grid import healpix_directions

_SEARCH_KMAX, _REFINE_KMAX, _KMAX = 10, 16, 32
"""Shells used while all planes are tried, while the best are refined, and at most for the result."""
_ORDER = 3  # 384 planes, 7 degrees apart
_KEEP = 6
_OFFSETS = 9
_OFFSET_REACH = 0.15
"""Planes pass the origin within this share of the radius: maps are centred."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MirrorSymmetry:
    """The plane about which a map is most like its reflection: x -> x - 2 (normal.x - offset) normal."""

    correlation: float
    """Largest correlation over planes, inside the ball: 1 for a mirror-symmetric map."""
    typical: float
    """Median over planes through the origin: what compactness alone gives this map."""
    normal: Float[Tensor, "3"]
    """Unit normal (x, y, z)."""
    offset_A: float
    """Distance of the plane from index N // 2 along the normal."""
    curve: ShellCorrelation
    """Shell correlation of the map with its best reflection."""

    def agrees_to_A(self) -> float:
        """Resolution to which map and reflection agree (shell correlation 0.5)."""
        return self.curve.resolution_A(0.5)


def mirror_symmetry(
    volume: Volume, *, radius_A: float | None = None, resolution_A: float | None = None
) -> MirrorSymmetry:
    """Search all planes near the origin for the one that best maps the map onto itself.

    Parameters
    ----------
    radius_A
        Ball that counts, about index N // 2, with a soft edge; None: that of an automatic mask, 0.45 of the box if there
        is none.
    resolution_A
        Finest detail that counts; None: the map's Nyquist, at most 32 shells.

    Raises
    ------
    BadInput
        If the map is flat inside the ball or a length is not positive.
    """
    n, pixel = volume.box, volume.pixel_size_A
    for name, value in (("radius_A", radius_A), ("resolution_A", resolution_A)):
        if value is not None and not value > 0:
            raise BadInput(f"mirror_symmetry: {name} = {value} is not positive.")
    radius_px = (_radius_A(volume) if radius_A is None else radius_A) / pixel
    radius_px = min(radius_px, 0.45 * n)
    kmax = min(n // 2 - 1, _KMAX)
    if resolution_A is not None:
        kmax = max(3, min(kmax, round(n * pixel / resolution_A)))
    inside = _inside(volume, radius_px)
    coarse, fine, all_of_it = (
        _Reflections.of(inside, min(kmax, limit)) for limit in (_SEARCH_KMAX, _REFINE_KMAX, kmax)
    )
    every = healpix_directions(_ORDER)
    every = every[(every[:, 2] > 0) | ((every[:, 2] == 0) & (every[:, 1] >= 0))].to(volume.values)
    reach = _OFFSET_REACH * radius_px / n
    offset = torch.linspace(-reach, reach, _OFFSETS).to(every)
    scores = coarse.correlation(every, reach)
    best_offset = scores.max(1)
    top = best_offset.values.argsort(descending=True)[:_KEEP]
    normal, shift = _refined(coarse, every[top], offset[best_offset.indices[top]], math.radians(4), reach / 4)
    winner = coarse.pairs(normal, shift).argsort(descending=True)[:2]
    normal, shift = _refined(fine, normal[winner], shift[winner], math.radians(1), reach / 16)
    correlation = all_of_it.pairs(normal, shift)
    best = int(correlation.argmax())
    side = -1.0 if normal[best, 2] < 0 else 1.0  # of the two normals, the one that points up
    return MirrorSymmetry(
        correlation=float(correlation[best]),
        typical=float(all_of_it.pairs(every[::8], torch.zeros_like(every[::8, 0])).median()),
        normal=side * normal[best],
        offset_A=side * float(shift[best]) * n * pixel,
        curve=all_of_it.curve(normal[best], shift[best], n * pixel),
    )


def _radius_A(volume: Volume) -> float:
    try:
        return particle_radius_A(automatic_mask(volume))
    except BadInput:
        return 0.45 * volume.box * volume.pixel_size_A


def _inside(volume: Volume, radius_px: float) -> Volume:
    """The map times a soft ball, its weighted mean taken off."""
    values = volume.values
    mask = soft_sphere_mask(
        volume.box,
        radius_px=radius_px,
        edge_px=max(2.0, 0.1 * radius_px),
        device=values.device,
        dtype=values.dtype,
    )
    masked = mask * (values - (mask * values).sum() / mask.sum())
    if not float(masked.abs().max()) > 0:
        raise BadInput("mirror_symmetry: the map is flat inside the ball. Give a map with density in it.")
    return Volume(masked, volume.pixel_size_A)


@dataclass(frozen=True, eq=False)
class _Reflections:
    """Transform on the half ball |k| <= kmax, and between the points for reflected ones; lengths in box edges."""

    points: Float[Tensor, "p 3"]
    values: Complex[Tensor, "p"]
    spectrum: Spectrum

    @classmethod
    def of(cls, volume: Volume, kmax: int) -> _Reflections:
        small = low_band(volume, kmax=kmax)
        points = half_ball(kmin=1.0, kmax=kmax, device=volume.values.device)
        return cls(points.to(volume.values), at_grid(small, points), Spectrum.of(small))

    def products(self, normal: Float[Tensor, "m 3"]) -> tuple[Tensor, Tensor]:
        """F(k) conj F(M k) and n.k, both (m, points); the products' moduli are scaled to a correlation.

        The power of the reflection is that of the values as read: reads on lattice points are larger than those between.
        """
        along = normal @ self.points.T
        read = self.spectrum.sample(self.points - 2 * along[..., None] * normal[:, None])[0]
        power = read.abs().square().sum(1, keepdim=True) * self.values.abs().square().sum()
        return self.values * read.conj() / power.sqrt().clamp_min(1e-30), along

    def correlation(self, normal: Float[Tensor, "m 3"], reach: float) -> Float[Tensor, "m o"]:
        """Of every plane at each of the offsets from -reach to reach."""
        parts = []
        for some in normal.split(32):
            product, along = self.products(some)
            one = torch.ones_like(along)
            product = product * torch.polar(one, -4 * math.pi * reach * along)
            step = torch.polar(one, 4 * math.pi * reach * 2 / (_OFFSETS - 1) * along)
            sums = [product.real.sum(1)]
            for _ in range(_OFFSETS - 1):
                product = product * step
                sums.append(product.real.sum(1))
            parts.append(torch.stack(sums, 1))
        return torch.cat(parts)

    def pairs(self, normal: Float[Tensor, "m 3"], offset: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
        """Of each plane at its own offset."""
        out = []
        for some, c in zip(normal.split(8), offset.split(8), strict=True):
            product, along = self.products(some)
            angle = 4 * math.pi * along * c[:, None]
            out.append((product * torch.polar(torch.ones_like(angle), angle)).real.sum(1))
        return torch.cat(out)

    def curve(self, normal: Float[Tensor, "3"], offset: Tensor, edge_A: float) -> ShellCorrelation:
        """Shell by shell, the power of the reflection as read being that of the map."""
        along = self.points @ normal
        read = self.spectrum.sample(self.points - 2 * along[:, None] * normal)[0]
        phase = torch.polar(torch.ones_like(along), 4 * math.pi * offset * along)
        shell = (self.points.double().norm(dim=1) + 0.5).floor().long()
        cross, one, two = (
            torch.bincount(shell, weights=w.double())
            for w in (
                (self.values * read.conj() * phase).real,
                self.values.abs().square(),
                read.abs().square(),
            )
        )
        value = cross / (one * two).sqrt().clamp_min(1e-30)
        value[0] = 1.0
        return ShellCorrelation(torch.arange(len(value), dtype=torch.float64) / edge_A, value)


def _refined(
    reflections: _Reflections, normal: Tensor, offset: Tensor, angle_rad: float, step: float
) -> tuple[Tensor, Tensor]:
    """Pattern search in two tilts and the offset, the steps halved where nothing improves."""
    moves = torch.tensor(
        [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=normal.dtype
    ).to(normal.device)
    value = reflections.pairs(normal, offset)
    scale = torch.ones_like(value)
    for _ in range(12):
        frame = view_rotation(normal)  # rows 0 and 1 are perpendicular to the normal
        tilt = moves[None, :, :2] * (angle_rad * scale[:, None, None])
        tried = normal[:, None] + tilt[..., :1] * frame[:, None, 0] + tilt[..., 1:] * frame[:, None, 1]
        tried = tried / tried.norm(dim=-1, keepdim=True)
        shifted = offset[:, None] + moves[None, :, 2] * (step * scale[:, None])
        found = reflections.pairs(tried.reshape(-1, 3), shifted.reshape(-1)).reshape(len(normal), -1)
        best = found.max(1)
        better = best.values > value
        row = torch.arange(len(normal), device=normal.device)
        normal = torch.where(better[:, None], tried[row, best.indices], normal)
        offset = torch.where(better, shifted[row, best.indices], offset)
        value = torch.where(better, best.values, value)
        scale = torch.where(better, scale, scale / 2)
    return normal, offset


__all__ = ["MirrorSymmetry", "mirror_symmetry"]
