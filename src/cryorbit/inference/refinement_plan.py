"""Radii of a refinement: how far its maps, searches and poses reach, in Fourier pixels of the images."""

from __future__ import annotations

from dataclasses import dataclass

from cryorbit.inference.observations import Observations
from cryorbit.inference.refinement_settings import RefinementSettings

SEARCH_TURNS = 2.9
"""Waves along the particle's radius that an exhaustive search compares on its grid, for a particle without symmetry."""


@dataclass(frozen=True)
class RefinementPlan:
    """What the size of particle and images decides. Radii in Fourier pixels, 1 / (box * pixel size)."""

    field_A: float
    """Edge of the images, angstrom."""
    last_shell: int
    limit: int
    """Last shell that poses may be refined with."""
    waves_per_px: float
    """Waves along the particle's radius per Fourier pixel."""
    least: int
    """Fewest shells that tell a pose: one wave along the particle's radius."""
    start_radius: int
    """Low-pass of what both halves start from."""
    search_radius: int
    """Rings of an exhaustive search's grid, as far as the radius of its poses allows."""
    crop: int
    """Box that images are cropped to for it."""

    @classmethod
    def of(cls, observed: Observations, settings: RefinementSettings, *, group_order: int) -> RefinementPlan:
        """The plan for these images; of a symmetric particle little is seen at low radii, so it is searched farther."""
        box, field_A = observed.box, observed.box * observed.pixel_size_A
        last = (box - 1) // 2
        limit = last - 1
        if settings.max_resolution_A is not None:
            limit = min(limit, int(field_A / settings.max_resolution_A))
        waves = observed.particle_radius_px / box
        least = min(max(4, round(1.05 / waves)), limit)
        wanted = round(SEARCH_TURNS * group_order ** (1 / 3) / waves)
        crop = min(2 * (wanted + 3), box + box % 2)
        return cls(
            field_A=field_A,
            last_shell=last,
            limit=limit,
            waves_per_px=waves,
            least=least,
            start_radius=min(max(round(field_A / settings.start_resolution_A), least), limit),
            search_radius=min(wanted, crop // 2 - 3, limit),
            crop=crop,
        )
