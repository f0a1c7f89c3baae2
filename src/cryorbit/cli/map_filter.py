"""`cryorbit map filter MAP -o OUT --low-pass-A 8 --b-factor-A2 -100`: radial filters."""

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
    """Low-pass, high-pass and B-factor of a map."""

    map: tyro.conf.Positional[MapFile]
    """Map to filter."""
    out: OutMap
    """Map to write."""
    low_pass_A: float | None = None
    """Remove what is finer than this resolution (soft edge of two shells)."""
    high_pass_A: float | None = None
    """Remove what is coarser than this resolution."""
    b_factor_A2: float = 0.0
    """Multiply the transform by exp(-B s^2 / 4): negative sharpens."""
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Filter and write."""
    from cryorbit.analysis.map_tools import filter_map

    low, high, b = settings.low_pass_A, settings.high_pass_A, settings.b_factor_A2
    if low is None and high is None and b == 0:
        raise BadInput("map filter: nothing to do. Give --low-pass-A, --high-pass-A or --b-factor-A2.")
    if low is not None and high is not None and high <= low:
        raise BadInput(
            f"map filter: --high-pass-A {high} is finer than --low-pass-A {low}: nothing would remain."
        )
    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    volume, shape = read_any(settings.map, settings.files)
    result = filter_map(volume, low_pass_A=low, high_pass_A=high, b_factor_A2=b)
    write_any(settings.out, result, shape)
    return 0
