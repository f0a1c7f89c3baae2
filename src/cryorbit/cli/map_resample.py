"""`cryorbit map resample MAP -o OUT --pixel-size-A 1.5`: another voxel size or box, in Fourier space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.map_files import MapFile, MapOptions, OutMap, read_any, write_any
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.outputs import refuse_existing


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Resample a map in Fourier space; densities stay where viewers show them."""

    map: tyro.conf.Positional[MapFile]
    """Map to resample."""
    out: OutMap
    """Map to write."""
    pixel_size_A: float | None = None
    """New voxel size."""
    box: int | None = None
    """New box, a cube; alone: of the same field of view, with a pixel size: cut or padded to it."""
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Resample and write."""
    from cryorbit.analysis.map_tools import resample_map

    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    volume, shape = read_any(settings.map, settings.files)
    result = resample_map(volume, box=settings.box, pixel_size_A=settings.pixel_size_A)
    if settings.box is None and len(set(shape)) > 1:
        ratio = volume.pixel_size_A / result.pixel_size_A
        z, y, x = (min(result.box, max(1, round(n * ratio))) for n in shape)
        write_any(settings.out, result, (z, y, x))
    else:
        write_any(settings.out, result)
    return 0
