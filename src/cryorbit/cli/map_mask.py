"""`cryorbit map mask MAP -o OUT`: a soft mask around the particle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.map_files import MapFile, MapOptions, OutMap, read_any, write_any
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.outputs import refuse_existing
from cryorbit.cli.progress import say


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A soft mask: low-pass, threshold, keep the large parts, grow, fade out; or a sphere."""

    map: tyro.conf.Positional[MapFile]
    """Map to make the mask from."""
    out: OutMap
    """Mask to write, on the map's grid."""
    threshold: float | None = None
    """Density of the low-passed map that is particle; the level that best parts the histogram unless given."""
    low_pass_A: float = 15.0
    """Resolution of the map that is thresholded; four voxels where that is coarser."""
    extend_A: float | None = None
    """How far the particle is grown; three voxels, at least 6 A, unless given."""
    soft_edge_A: float | None = None
    """Width of the soft edge; five voxels, at least 12 A, unless given."""
    sphere_radius_A: float | None = None
    """A sphere of this radius about the middle voxel instead."""
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Make and write the mask."""
    from cryorbit.analysis.masks import automatic_mask, spherical_mask

    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    volume, shape = read_any(settings.map, settings.files)
    if settings.sphere_radius_A is not None:
        mask = spherical_mask(volume, radius_A=settings.sphere_radius_A, edge_A=settings.soft_edge_A)
    else:
        mask = automatic_mask(
            volume,
            low_pass_A=settings.low_pass_A,
            threshold=settings.threshold,
            dilate_A=settings.extend_A,
            edge_A=settings.soft_edge_A,
        )
    write_any(settings.out, mask, shape)
    inside = float((mask.values > 0.5).sum()) * volume.pixel_size_A**3
    say(f"inside: {inside:.4g} A^3, {float(mask.values.mean()):.1%} of the box")
    return 0
