"""Particles with poses and a prior of maps to posterior maps: of all images, and of each half by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from cryorbit.data import ParticleStack
from cryorbit.inference.engine import Progress
from cryorbit.inference.half_posteriors import (
    PosteriorTask,
    PriorReconstructionSettings,
    posterior_of_halves,
)
from cryorbit.inference.observations import contrast_of, observe
from cryorbit.inference.posterior import PosteriorSettings
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.prior_gain import fit_gain
from cryorbit.inference.prior_images import (
    Halves,
    PriorGrid,
    collapse_half,
    grid_for,
    posed_images,
    with_cutoff,
)
from cryorbit.models.volume_prior import VolumePrior


def reconstruct_with_prior(
    stack: ParticleStack,
    prior: VolumePrior,
    settings: PriorReconstructionSettings,
    sampling: PosteriorSettings,
    *,
    state: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Adds up the images of each half, then draws maps for all images and for each half; the last record has the result.

    Parameters
    ----------
    stack
        With poses.
    state
        Of an earlier record of the same run: goes on from there to the same result.

    Raises
    ------
    BadInput
        If the particle or the pixels are not what the prior knows, or the images share no density.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    observed = observe(
        stack,
        sign=contrast_of(stack, settings.contrast),
        particle_diameter_A=settings.particle_diameter_A,
        keep_scale=settings.gain is not None,
        generator=generator,
    )
    grid = grid_for(
        prior.shape,
        box=stack.box,
        pixel_size_A=stack.pixel_size_A,
        diameter_A=2 * observed.particle_radius_px * stack.pixel_size_A,
        resolution_A=settings.resolution_A,
        source=stack.source,
    )
    known = dict(state or {})
    if "first.back" not in known:
        images = posed_images(observed, grid)
        for half, name in enumerate(("first", "second")):
            known |= _packed(name, collapse_half(images, half, seed=sampling.seed))
            # Not a state to go on from: both halves are wanted.
            yield Progress("adding up images", half + 1, 2, 0.05 * (half + 1), {}, {})
    halves = with_cutoff(Halves(_unpacked("first", known, grid), _unpacked("second", known, grid)))
    radius_A = observed.particle_radius_px * observed.pixel_size_A
    unit = observed.grey_values()
    gain = settings.gain or unit * gain_of(halves, grid, radius_A)
    scaled = halves.scaled(gain / unit * prior.shape.density_scale)
    task = PosteriorTask(prior, settings, sampling, grid, scaled, gain, radius_A, len(stack))
    yield from posterior_of_halves(task, known)


def gain_of(halves: Halves, grid: PriorGrid, radius_A: float) -> float:
    """Grey value per volt of the images of both halves (`prior_gain`)."""
    maps = [
        data.prox(
            torch.zeros_like(data.back_projection), (1e-3 * float(data.weight.mean())) ** -0.5, tolerance=1e-3
        )
        for data in (halves.first, halves.second)
    ]
    return fit_gain(
        maps[0],
        maps[1],
        voxel_size_A=grid.voxel_size_A,
        resolution_A=grid.resolution_A,
        radius_A=radius_A,
    )


def _packed(name: str, data: TwoVolumes) -> dict[str, Any]:
    return {
        f"{name}.back": data.back_projection,
        f"{name}.weight": data.weight,
        f"{name}.spread": data.point_spread,
        f"{name}.energy": data.energy,
        f"{name}.count": data.count,
    }


def _unpacked(name: str, known: dict[str, Any], grid: PriorGrid) -> TwoVolumes:
    back, weight, spread, energy, count = (
        known[f"{name}.{k}"] for k in ("back", "weight", "spread", "energy", "count")
    )
    return TwoVolumes(back, weight, spread, energy, count, grid.voxel_size_A)
