"""How a known map fits a stack: some images are searched for their poses, which tell the spread of shifts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex
from torch import Tensor

from cryorbit.inference.amortised_data import TrainingImages
from cryorbit.inference.engine import Workers
from cryorbit.inference.known_map import KnownMap, joined
from cryorbit.inference.observations import Observations
from cryorbit.inference.ring_em import crop_small

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
    small = crop_small(observed, rows, box_px, team)
    radius = box_px // 2 - 2
    wide = WIDE * observed.box
    known = KnownMap(
        TrainingImages(small, small.images), half, wide, grid_radius=round(0.75 * radius), radius=radius
    )
    found = joined(team.map(known.search, torch.arange(n).tensor_split(min(team.count, n))))
    sure = found.confidence > 0.5
    # Those in doubt would bring in the spread that was assumed.
    shifts = found.shift_px[sure] if int(sure.sum()) >= n // 3 else found.shift_px
    spread = float(shifts.square().mean().sqrt())
    return MapFit(
        n,
        min(max(spread, LEAST_PX * observed.box / box_px), wide),
        float(found.explained.median()),
        float(found.confidence.mean()),
    )
