"""Soft masks for maps: from the map's own density, or a sphere."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import cosine_edge, low_pass, soft_sphere_mask
from cryorbit.fourier.grid import pixel_grid

_OUTER_FRACTION = 0.98  # of half the box: outside lies no particle, so it says what background is
_KEEP_SHARE = 0.1  # parts of the solid smaller than this share of the largest part are dust
_MAD_TO_SD = 1.4826


def spherical_mask(like: Volume, *, radius_A: float, edge_A: float | None = None) -> Volume:
    """1 within `radius_A` of index N // 2, falling to 0 over the next `edge_A` (or 5 voxels)."""
    if not radius_A > 0:
        raise BadInput(f"spherical_mask: radius {radius_A} A is not positive.")
    edge_px = 5.0 if edge_A is None else edge_A / like.pixel_size_A
    values = soft_sphere_mask(
        like.box,
        radius_px=radius_A / like.pixel_size_A,
        edge_px=edge_px,
        device=like.values.device,
        dtype=like.values.dtype,
    )
    return Volume(values, like.pixel_size_A, like.origin_A, like.nstart)


def automatic_mask(
    volume: Volume,
    *,
    low_pass_A: float = 15.0,
    threshold: float | None = None,
    dilate_A: float | None = None,
    edge_A: float | None = None,
) -> Volume:
    """Mask around the particle: low-pass, threshold, keep the large parts, grow, soft cosine edge.

    Parameters
    ----------
    low_pass_A
        Resolution of the map that is thresholded; at least four voxels are used.
    threshold
        Density (after the low-pass) that is particle. None takes the level that best parts the histogram in
        two (Otsu), but at least five noise standard deviations above the background.
    dilate_A, edge_A
        How far the solid is grown and then faded out; None: three and five voxels, at least 6 A and 12 A.

    Raises
    ------
    BadInput
        If nothing is above the threshold, or a length is negative.
    """
    if not low_pass_A > 0:
        raise BadInput(
            f"automatic_mask: a low-pass at {low_pass_A:g} A makes no sense. Give a positive resolution."
        )
    for name, length in (("growth", dilate_A), ("soft edge", edge_A)):
        if length is not None and not length >= 0:
            raise BadInput(f"automatic_mask: a {name} of {length:g} A makes no sense. Give 0 or more.")
    pixel = volume.pixel_size_A
    smooth = low_pass(volume.values, resolution_A=max(low_pass_A, 4.0 * pixel), pixel_size_A=pixel, ndim=3)
    level = density_level(smooth) if threshold is None else threshold
    radius = pixel_grid(volume.box, ndim=3, device=smooth.device).to(smooth).norm(dim=-1)
    solid = (smooth > level) & (radius < _OUTER_FRACTION * volume.box / 2)
    if not bool(solid.any()):
        raise BadInput(
            f"automatic_mask: no density above {level:.4g} (maximum {float(smooth.max()):.4g}). "
            "Give a lower threshold."
        )
    solid = without_dust(solid)
    grow = max(6.0, 3.0 * pixel) if dilate_A is None else dilate_A
    edge = max(12.0, 5.0 * pixel) if edge_A is None else edge_A
    far = ndimage.distance_transform_edt((~solid).cpu().numpy(), sampling=pixel)
    distance = torch.as_tensor(far, device=smooth.device).to(smooth)
    values = cosine_edge(distance, inner=grow, outer=grow + edge)
    # nothing may reach over the box's edge, where the other side begins
    values = values * cosine_edge(radius, inner=volume.box / 2 - 4.0, outer=volume.box / 2 - 1.0)
    return Volume(values, pixel, volume.origin_A, volume.nstart)


def particle_radius_A(mask: Volume) -> float:
    """Radius of the smallest sphere about index N // 2 that holds the mask above one half."""
    radius = pixel_grid(mask.box, ndim=3, device=mask.values.device).to(mask.values).norm(dim=-1)
    inside = mask.values > 0.5
    return float(radius[inside].max()) * mask.pixel_size_A if bool(inside.any()) else 0.0


def density_level(smooth: Float[Tensor, "n n n"]) -> float:
    """Otsu's threshold, at least five robust standard deviations above the median."""
    values = smooth.flatten().double()
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high) or low == high:
        raise BadInput("automatic_mask: the map is constant or not finite. Give a map with density in it.")
    counts = torch.histc(values, bins=256, min=low, max=high).double()
    centres = low + (torch.arange(256, dtype=torch.float64, device=values.device) + 0.5) * (high - low) / 256
    weight = counts.cumsum(0)
    mass = (counts * centres).cumsum(0)
    rest = weight[-1] - weight
    between = (mass / weight.clamp_min(1) - (mass[-1] - mass) / rest.clamp_min(1)) ** 2 * weight * rest
    otsu = float(centres[int(between[:-1].argmax())])
    median = values.median()
    noise = float((values - median).abs().median()) * _MAD_TO_SD
    return min(max(otsu, float(median) + 5.0 * noise), 0.5 * (otsu + high))


def without_dust(solid: Bool[Tensor, "n n n"]) -> Bool[Tensor, "n n n"]:
    """The connected parts that are at least a tenth of the largest."""
    labels, count = ndimage.label(solid.cpu().numpy())  # pyright: ignore[reportGeneralTypeIssues]
    sizes = torch.bincount(torch.from_numpy(labels).flatten().long(), minlength=count + 1)
    sizes[0] = 0
    keep = sizes >= _KEEP_SHARE * sizes.max()
    keep[0] = False
    return keep[torch.from_numpy(labels).long()].to(solid.device)
