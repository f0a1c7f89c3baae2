"""Fourier shell correlation in cones: how far resolution depends on direction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from scipy.spatial import ConvexHull
from torch import Tensor

from cryorbit.analysis.fsc import MaskedCorrelation, ShellCorrelation
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import index_grid
from cryorbit.fourier.shells import sample_weight
from cryorbit.geometry.so3_grid import healpix_directions

HALF_ANGLE_DEG = 20.0
_ORDER = 2
"""HEALPix order of the axes: 96 of them, 15 degrees apart."""

_FEWEST = 20
"""Coefficients of a cone in a shell below which the whole shell speaks for it: they would be noise."""


@dataclass(frozen=True, eq=False)
class ConeCorrelation:
    """FSC of two maps within double cones about several axes.

    Parameters
    ----------
    axis
        Shape (cones, 3), unit vectors (x, y, z) of one half sphere.
    frequency_per_A
        Shape (shells,).
    correlation
        Shape (cones, shells).
    half_angle_deg
        Of each cone.
    """

    axis: Float[Tensor, "cones 3"]
    frequency_per_A: Float[Tensor, "shells"]
    correlation: Float[Tensor, "cones shells"]
    half_angle_deg: float = HALF_ANGLE_DEG

    def curve(self, cone: int) -> ShellCorrelation:
        """The curve of one cone."""
        return ShellCorrelation(self.frequency_per_A, self.correlation[cone])

    def resolution_A(self, threshold: float = 0.143) -> Float[Tensor, "cones"]:
        """Resolution per cone at the first crossing; infinity where a cone resolves nothing."""
        found = [self.curve(i).resolution_A(threshold) for i in range(len(self.axis))]
        return torch.tensor(found, dtype=torch.float64)

    def worst_axis(self, threshold: float = 0.143) -> Float[Tensor, "3"]:
        """Axis along which the map is least resolved."""
        return self.axis[int(self.resolution_A(threshold).argmax())]

    def sphericity(self, threshold: float = 0.143) -> float:
        """Sphericity of the body of resolved frequencies: 1 where all directions reach equally far.

        The body has the radius 1 / resolution along each axis and flat triangles between; sphericity is
        pi^(1/3) (6 volume)^(2/3) / area, divided by that of the same triangles on the unit sphere. Tan et al.,
        Nature Methods 14, 2017, take it of the surface of a smoothed 3D FSC: numbers are alike, not the same.
        """
        axis = self.axis.double().cpu()
        radius = torch.where(
            torch.isfinite(self.resolution_A(threshold)), 1 / self.resolution_A(threshold), 0.0
        )
        unit = torch.cat([axis, -axis])
        triangles = torch.from_numpy(ConvexHull(unit.numpy()).simplices).long()
        return _sphericity(unit * radius.repeat(2)[:, None], triangles) / _sphericity(unit, triangles)

    def area_ratio(self) -> float:
        """Least over largest area under the cones' curves, from the origin to the first value below 0."""
        positive = torch.cumprod((self.correlation > 0).to(self.correlation), -1)
        area = (self.correlation * positive).sum(-1)
        return float(area.min() / area.max()) if float(area.max()) > 0 else 0.0


def cone_axes() -> Float[Tensor, "cones 3"]:
    """Axes spread evenly over half the sphere; each stands for its opposite too."""
    all_axes = healpix_directions(_ORDER)
    x, y, z = (all_axes * 1e6).round().unbind(-1)
    upper = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
    return all_axes[upper]


def cone_correlation(
    a: Volume,
    b: Volume,
    *,
    mask: Volume | None = None,
    correction: MaskedCorrelation | None = None,
    half_angle_deg: float = HALF_ANGLE_DEG,
) -> ConeCorrelation:
    """FSC of two maps in double cones about 96 axes.

    Parameters
    ----------
    mask
        Multiplies both maps first.
    correction
        What the mask alone correlates, per shell: taken out of every cone as it is of the shell.
    half_angle_deg
        Between a cone's axis and its surface.

    Raises
    ------
    BadInput
        If the boxes differ or the angle is not between 5 and 90 degrees.
    """
    if a.box != b.box:
        raise BadInput(f"Cone FSC: boxes {a.box} and {b.box} differ. Crop or pad one of the maps.")
    if not 5.0 <= half_angle_deg <= 90.0:
        raise BadInput(f"Cone FSC: half-angle {half_angle_deg} is not between 5 and 90 degrees.")
    n = a.box
    m = 1.0 if mask is None else mask.values
    terms = _terms(torch.fft.rfftn(a.values * m), torch.fft.rfftn(b.values * m), n)
    axis = cone_axes().to(terms.unit)
    shells = n // 2 + 1
    whole = _quotient(terms.sums(torch.ones_like(terms.shell, dtype=torch.bool), shells))
    limit = math.cos(math.radians(half_angle_deg)) - 1e-6  # those on the surface belong to it, rounded or not
    rows = []
    for one in axis:
        inside = (terms.unit @ one).abs() >= limit
        sums = terms.sums(inside, shells)
        rows.append(torch.where(sums[3] >= _FEWEST, _quotient(sums), whole))
    correlation = torch.stack(rows).double().cpu()
    correlation[:, 0] = 1.0
    if correction is not None:
        correlation = _corrected(correlation, correction)
    frequency = torch.arange(shells, dtype=torch.float64) / (n * a.pixel_size_A)
    return ConeCorrelation(axis.double().cpu(), frequency, correlation, half_angle_deg)


@dataclass(frozen=True, eq=False)
class _Terms:
    """Per coefficient within the last shell: its direction, its shell, and what the sums are made of."""

    unit: Float[Tensor, "k 3"]
    shell: Tensor
    parts: Float[Tensor, "4 k"]

    def sums(self, inside: Tensor, shells: int) -> Float[Tensor, "4 shells"]:
        """Cross term, power of either map and number of coefficients per shell."""
        shell = self.shell[inside]
        return torch.stack([torch.bincount(shell, part[inside], minlength=shells) for part in self.parts])


def _terms(f1: Complex[Tensor, "n n h"], f2: Complex[Tensor, "n n h"], n: int) -> _Terms:
    k = index_grid(n, ndim=3, device=f1.device)
    radius = k.double().norm(dim=-1)
    shell = (radius + 0.5).floor().long()
    keep = (shell <= n // 2) & (shell > 0)
    weight = sample_weight(n, ndim=3, device=f1.device)[keep].double()
    g1, g2 = f1[keep], f2[keep]
    cross = (g1.real * g2.real + g1.imag * g2.imag).double()
    parts = (
        torch.stack([cross, g1.abs().double() ** 2, g2.abs().double() ** 2, torch.ones_like(cross)]) * weight
    )
    return _Terms((k[keep] / radius[keep, None]).float(), shell[keep], parts)


def _quotient(sums: Float[Tensor, "4 shells"]) -> Float[Tensor, "shells"]:
    norm = (sums[1] * sums[2]).sqrt()
    return torch.where(norm > 0, sums[0] / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)


def _corrected(correlation: Tensor, correction: MaskedCorrelation) -> Tensor:
    start = correction.randomised_from + 2
    noise = correction.randomised.correlation[start:].to(correlation).clamp(max=1.0 - 1e-6)
    out = correlation.clone()
    out[:, start:] = (out[:, start:] - noise) / (1.0 - noise)
    return out


def _sphericity(points: Tensor, triangles: Tensor) -> float:
    """Of a body that is star-shaped about the origin, from its corners."""
    p, q, r = (points[triangles[:, i]] for i in range(3))
    volume = float((p * torch.linalg.cross(q, r)).sum(-1).abs().sum()) / 6
    area = float(torch.linalg.cross(q - p, r - p).norm(dim=-1).sum()) / 2
    return math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area if area > 0 else 0.0
