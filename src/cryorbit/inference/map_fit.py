"""How a known map fits a stack: some images are searched for their poses, which tell the spread of shifts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex
from torch import Tensor

from cryorbit.inference.engine import Workers
from cryorbit.inference.known_map import PoseSearch, joined
from cryorbit.inference.locate import Located
from cryorbit.inference.observations import Observations

IMAGES = 48
"""Images that are searched; their shifts tell the spread to 7 %."""
WIDE = 0.07
"""Spread of the shifts over the field of view that the search allows for at first."""
LEAST_PX = 0.25
"""Least spread, pixels of the cropped images: below, shifts are no longer told apart."""


@dataclass(frozen=True)
class MapFit:
    """Of the searched images."""

    images: int
    shift_sd_px: float
    """Root mean square shift per axis of images with one likely pose, pixels of the stack."""
    explained: float
    """Median of the drop of misfit over the map's own power: 1 where map, scale and pose are right."""
    confidence: float
    """Mean probability of the best mode."""


def fit_to_images(
    observed: Observations,
    half: Complex[Tensor, "p p h"],
    *,
    box_px: int,
    generator: torch.Generator,
    team: Workers,
) -> MapFit:
    """Search some images drawn at random.

    Parameters
    ----------
    half
        Transform of the map on the images' scale, on a lattice twice as fine as a Fourier pixel.
    box_px
        Images are cropped to this box.
    """
    n = min(IMAGES, len(observed.stack))
    rows = torch.randperm(len(observed.stack), generator=generator)[:n].sort().values
    radius = box_px // 2 - 2
    wide = WIDE * observed.box
    search = PoseSearch(observed, half, wide, box=box_px, grid_radius=round(0.75 * radius), radius=radius)
    found = joined(team.map(search, rows.tensor_split(min(team.count, n))))
    spread = shift_spread_px(found)
    return MapFit(
        n,
        min(max(spread, LEAST_PX * observed.box / box_px), wide),
        float(found.explained.median()),
        float(found.confidence.mean()),
    )


def shift_spread_px(found: Located) -> float:
    """Root mean square shift per axis of the images with one likely pose; of all where those are less than a third.

    Images in doubt would bring in the spread that was assumed.
    """
    sure = found.confidence > 0.5
    enough = int(sure.sum()) >= max(len(sure) // 3, 1)
    return float((found.shift_px[sure] if enough else found.shift_px).square().mean().sqrt())
