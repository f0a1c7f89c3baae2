"""A shaded isosurface of a map, by casting one ray per pixel through the grid: no graphics library needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from cryorbit.analysis.masks import density_level, without_dust
from cryorbit.data import Volume
from cryorbit.fourier.resample import box_crop, fourier_pad

_GRID = 200
"""Edge of the grid that is looked at: fine enough for smooth outlines at half a page's width."""

_INNER, _OUTER = np.array([0.16, 0.33, 0.55]), np.array([0.74, 0.86, 0.95])
_KEY_LIGHT = np.array([-0.45, -0.55, 0.70]) / np.linalg.norm([-0.45, -0.55, 0.70])
_AMBIENT, _DIFFUSE, _GLOSS = 0.42, 0.70, 0.14

VIEWS: dict[str, tuple[tuple[int, int, int], tuple[int, ...]]] = {
    "front": ((0, 1, 2), (1,)),
    "side": ((2, 1, 0), (1, 2)),
    "top": ((1, 0, 2), ()),
    "back": ((0, 1, 2), (0, 1, 2)),
    "left": ((2, 1, 0), (0, 1)),
    "bottom": ((1, 0, 2), (0, 1)),
}
"""Array axes (towards the viewer, down, right) and which are reversed: x right and y up as seen from +z;
then turned to look from +x and from +y, and from behind each. None of them is a mirror image."""

OF_A_REPORT = ("front", "side", "top")


@dataclass(frozen=True, eq=False)
class Surface:
    """Pictures of an isosurface.

    Parameters
    ----------
    pictures
        By view, shape (h, w, 4) RGBA, 0 to 1.
    level
        Density of the surface.
    edge_A
        What the width of a picture is in angstrom.
    """

    pictures: dict[str, np.ndarray]
    level: float
    edge_A: float


@dataclass(frozen=True, eq=False)
class Paint:
    """What a surface is coloured by, in place of the distance from its centre.

    Parameters
    ----------
    values
        On the map's grid; where it is not positive, the nearest positive value counts.
    low, high
        Values at either end of the colours.
    colours
        Shape (k, 3), RGB 0 to 1, from low to high.
    """

    values: Volume
    low: float
    high: float
    colours: np.ndarray

    def at(self, where: np.ndarray) -> np.ndarray:
        """Colours at points (3, h, w), voxels (z, y, x) from index N // 2; shape (h, w, 3)."""
        values = self.values.values.float().cpu().numpy()
        missing = values <= 0
        if missing.any() and not missing.all():
            nearest = np.zeros((3, *values.shape), np.int32)
            ndimage.distance_transform_edt(
                missing, return_distances=False, return_indices=True, indices=nearest
            )
            values = values[tuple(nearest)]
        found = ndimage.map_coordinates(values, where + self.values.box // 2, order=1, mode="nearest")
        share = np.clip((found - self.low) / max(self.high - self.low, 1e-9), 0.0, 1.0)
        place = np.linspace(0.0, 1.0, len(self.colours))
        return np.stack([np.interp(share, place, self.colours[:, i]) for i in range(3)], -1)


def render_surface(
    volume: Volume,
    *,
    level: float | None = None,
    paint: Paint | None = None,
    views: tuple[str, ...] = OF_A_REPORT,
    edge: int | None = None,
) -> Surface | None:
    """Draw the map at a density from some sides; small detached specks are left out. None if it is all flat.

    Parameters
    ----------
    level
        Density of the surface; None takes the level that best parts particle and background.
    paint
        Colours by a second map; None takes the distance from the centre.
    views
        Names of `VIEWS`.
    edge
        Voxels across a picture, so that several maps are drawn to one scale; None: what holds this one.
    """
    values = volume.values.float().cpu()
    if not bool(torch.isfinite(values).all()) or float(values.std()) == 0:
        return None
    chosen = density_level(values) if level is None else level
    solid = values > chosen
    if not bool(solid.any()):
        return None
    kept = without_dust(solid)
    near = torch.from_numpy(ndimage.binary_dilation(kept.numpy(), iterations=2))
    values = torch.where(near | ~solid, values, values.new_tensor(chosen).clamp(max=0.0))
    values = torch.where(near, values, values.clamp(max=chosen - 1e-6 * abs(chosen)))
    edge = _visible_edge(kept) if edge is None else min(edge, volume.box)
    fine = _refined(box_crop(values, edge, ndim=3))
    pictures = {}
    for name, (axes, turned) in ((view, VIEWS[view]) for view in views):
        seen = _seen(fine.permute(axes).flip(turned), chosen)
        own = None if paint is None else paint.at(_in_map(seen.points, axes, turned, fine.shape[0], edge))
        pictures[name] = _picture(seen, own)
    return Surface(pictures, chosen, edge * volume.pixel_size_A)


def common_edge(volumes: Sequence[Volume], level: float) -> int:
    """Voxels across a picture that holds each of some maps of one grid at a density."""
    edges = [
        _visible_edge(without_dust(solid)) for v in volumes if bool((solid := v.values.cpu() > level).any())
    ]
    return max(edges, default=volumes[0].box)


def _visible_edge(solid: Tensor) -> int:
    """Edge of the central cube that holds the solid with a margin, of the box's parity."""
    n = solid.shape[0]
    where = (torch.nonzero(solid) - n // 2).abs().amax()
    edge = min(n, int(2 * (int(where) * 1.08 + 3)))
    return edge - (n - edge) % 2


def _refined(values: Float[Tensor, "n n n"]) -> Float[Tensor, "m m m"]:
    """Band-limited interpolation to about `_GRID` points per edge."""
    n = values.shape[0]
    factor = max(1, round(_GRID / n))
    return fourier_pad(values, factor * n, ndim=3) if factor > 1 else values


def _height(density: np.ndarray, level: float) -> np.ndarray:
    """Height of the first crossing of the level, seen from the end of axis 0; NaN if there is none."""
    seen = density[::-1]
    inside = seen > level
    first = inside.argmax(0)
    hit = inside.any(0)
    rows, columns = np.indices(first.shape)
    here = seen[first, rows, columns]
    before = seen[np.maximum(first - 1, 0), rows, columns]
    step = np.where(first > 0, (here - level) / np.maximum(here - before, 1e-12), 0.0)
    height = density.shape[0] - 1 - (first - np.clip(step, 0.0, 1.0))
    return np.where(hit, height, np.nan)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the rays of one view meet: where, and which way the surface faces there."""

    hit: np.ndarray
    height: np.ndarray
    points: np.ndarray
    normal: np.ndarray
    shape: tuple[int, ...]


def _seen(grid: Tensor, level: float) -> _Seen:
    """Rays cast along axis 0, which points at the viewer."""
    density = grid.numpy()
    # twice as many rays as grid points: smooth outlines
    size = 2 * density.shape[1]
    at = (np.arange(size) + 0.5) / 2 - 0.5
    wide = interpolate(grid[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    height = _height(wide.numpy(), level)
    hit = np.isfinite(height)
    rows, columns = np.meshgrid(at, at, indexing="ij")
    points = np.stack([np.where(hit, height, 0.0), rows, columns])
    normal = np.stack([_slope(density, points, axis) for axis in (2, 1, 0)], -1)
    normal = -normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    return _Seen(hit, height, points, normal, density.shape)


def _in_map(
    points: np.ndarray, axes: tuple[int, int, int], turned: tuple[int, ...], fine: int, coarse: int
) -> np.ndarray:
    """Points of a view in voxels (z, y, x) of the map, from its centre."""
    straight = points.copy()
    for axis in turned:
        straight[axis] = fine - 1 - straight[axis]
    found = np.empty_like(straight)
    for axis, of_map in enumerate(axes):
        found[of_map] = (straight[axis] - fine // 2) * coarse / fine
    return found


def _picture(seen: _Seen, own: np.ndarray | None) -> np.ndarray:
    """RGBA of one view, coloured by `own` (h, w, 3) or by the distance from the centre."""
    hit, normal = seen.hit, seen.normal
    diffuse = np.clip(normal @ _KEY_LIGHT, 0.0, 1.0) * 0.8 + 0.2 * np.clip(normal[..., 2], 0.0, 1.0)
    gloss = np.clip(normal @ _half_way(), 0.0, 1.0) ** 24
    colour = _by_distance(seen) if own is None else own
    light = (_AMBIENT + _DIFFUSE * diffuse) * _openness(seen.height, hit)
    rgb = np.clip(colour * light[..., None] * 1.12 + _GLOSS * gloss[..., None], 0.0, 1.0)
    alpha = ndimage.gaussian_filter(hit.astype(float), 0.6)
    return np.concatenate([np.where(hit[..., None], rgb, rgb[hit].mean(0)), alpha[..., None]], -1)


def _by_distance(seen: _Seen) -> np.ndarray:
    """Dark near the centre of the box, bright far from it; shape (h, w, 3)."""
    centre = (np.array(seen.shape) - 1) / 2
    distance = np.sqrt(((seen.points - centre[:, None, None]) ** 2).sum(0))
    low, high = np.percentile(distance[seen.hit], [2, 98])
    share = np.clip((distance - low) / max(high - low, 1e-6), 0.0, 1.0)[..., None]
    return _INNER * (1 - share) + _OUTER * share


def _slope(density: np.ndarray, points: np.ndarray, axis: int) -> np.ndarray:
    """Central difference over three grid steps at the surface."""
    offset = np.zeros((3, 1, 1))
    offset[axis] = 1.5
    ahead, behind = (
        ndimage.map_coordinates(density, points + sign * offset, order=1, mode="nearest") for sign in (1, -1)
    )
    return ahead - behind


def _half_way() -> np.ndarray:
    """Direction between the light and the viewer."""
    middle = _KEY_LIGHT + np.array([0.0, 0.0, 1.0])
    return middle / np.linalg.norm(middle)


def _openness(height: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Share of light that reaches a point past higher neighbours: darker in clefts, at three scales."""
    floor = float(np.nanmin(height)) if hit.any() else 0.0
    filled = np.where(hit, height, floor)
    shade = np.ones_like(filled)
    for scale, strength in ((3.0, 0.05), (9.0, 0.035), (24.0, 0.018)):
        above = np.clip(ndimage.gaussian_filter(filled, scale) - filled, 0.0, None)
        shade *= np.exp(-strength * above)
    return shade
