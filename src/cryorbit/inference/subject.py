"""A known map and a stack brought together: the map on the images' scale, and what its images look like."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryorbit.data import ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.amortised_data import Dreamer
from cryorbit.inference.engine import generator_from, workers
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.map_fit import MapFit, fit_to_images
from cryorbit.inference.map_scale import MapScale, fit_scale, map_for_images
from cryorbit.inference.observations import Observations, contrast_of, observe
from cryorbit.inference.supervised_settings import SupervisedSettings


@dataclass(frozen=True, eq=False)
class Subject:
    """What is trained on: a map on the images' scale, and how images of it look in the stack."""

    observed: Observations
    map: Volume
    scale: MapScale
    shift_sd_A: float
    fit: MapFit | None
    """None where the spread of the shifts was given."""
    dreamer: Dreamer


def prepare_subject(stack: ParticleStack, volume: Volume, settings: SupervisedSettings) -> Subject:
    """Measure the stack and bring the map to its images.

    Raises
    ------
    BadInput
        If the images are too small or unusable, or map and images do not go together.
    """
    s = settings
    if stack.box < s.box_px:
        raise BadInput(
            f"{stack.source}: images of {stack.box} px are smaller than --box-px {s.box_px}. Give a smaller --box-px."
        )
    observed = observe(
        stack,
        sign=contrast_of(stack, s.contrast),
        particle_diameter_A=s.particle_diameter_A,
        generator=generator_from(None, seed=s.seed),
    )
    field_A = stack.box * stack.pixel_size_A
    map_px = min(s.map_px, stack.box - stack.box % 2)
    unit = map_for_images(volume, box_px=map_px, field_of_view_A=field_A)
    half = Lattice(map_px).to_half(unit.values)
    found = fit_scale(observed, half, radius=s.box_px // 2 - 2)
    scaled = Volume(unit.values * found.scale, unit.pixel_size_A)
    dreamer = Dreamer(observed, torch.arange(len(stack)), s.box_px, s.prefilter)
    if s.shift_sd_A is not None:
        return Subject(observed, scaled, found, s.shift_sd_A, None, dreamer)
    with workers(torch.get_num_threads()) as team:
        fit = fit_to_images(
            observed,
            half * found.scale,
            box_px=s.box_px,
            generator=generator_from(None, seed=s.seed),
            team=team,
        )
    return Subject(observed, scaled, found, fit.shift_sd_px * stack.pixel_size_A, fit, dreamer)
