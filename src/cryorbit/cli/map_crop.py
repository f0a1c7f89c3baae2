"""`cryorbit map crop MAP -o OUT --box 128`: cut a map, or pad it with zeros, about its middle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.map_files import MapFile, MapOptions, OutMap, read_any, write_any
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.outputs import refuse_existing
from cryorbit.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Cut a map about index N // 2, or pad it with zeros; the header's place moves along."""

    map: tyro.conf.Positional[MapFile]
    """Map to cut or pad."""
    out: OutMap
    """Map to write."""
    box: tuple[int, ...]
    """New voxels per edge: one number for a cube, or three for x, y and z."""
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Cut or pad, and write."""
    from cryorbit.analysis.map_tools import crop_map

    if len(settings.box) not in (1, 3) or min(settings.box) < 1:
        given = " ".join(str(n) for n in settings.box)
        raise BadInput(f"--box {given}: wanted one positive number, or three (x y z).")
    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    volume, _ = read_any(settings.map, settings.files)
    x, y, z = settings.box if len(settings.box) == 3 else settings.box * 3
    write_any(settings.out, crop_map(volume, box=max(x, y, z)), (z, y, x))
    return 0
