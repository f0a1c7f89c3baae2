"""`cryorbit map diff A B -o OUT`: A minus B, B scaled to A shell by shell."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.map_files import (
    MapFile,
    MapOptions,
    OutMap,
    on_grid_of,
    read_any,
    write_any,
)
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.outputs import refuse_existing
from cryorbit.cli.progress import say


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Difference map of two aligned maps on one grid, B at A's amplitude in every Fourier shell."""

    map_a: tyro.conf.Positional[MapFile]
    """Map from which the other is taken away; its header is kept."""
    map_b: tyro.conf.Positional[MapFile]
    """Map that is scaled and taken away."""
    out: OutMap
    """Difference to write: positive where A has more."""
    mask: Annotated[Path | None, tyro.conf.arg(metavar="MASK")] = None
    """Soft mask: amplitudes are measured in it, and outside it the difference is zero."""
    low_pass_A: float | None = None
    """Cut the difference here: the resolution that both maps reach."""
    align: bool = False
    """Bring B onto A first (`cryorbit map align` tells more)."""
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Subtract and write."""
    from cryorbit.analysis.align import align_map
    from cryorbit.analysis.map_tools import difference_map

    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    a, shape = read_any(settings.map_a, settings.files)
    b, _ = read_any(settings.map_b, settings.files)
    if settings.align:
        b = align_map(b, a).aligned
    mask = None if settings.mask is None else on_grid_of(settings.mask, a, name="mask")
    change = difference_map(a, b, low_pass_A=settings.low_pass_A, mask=mask)
    write_any(settings.out, change, shape)
    say(f"standard deviation of the difference: {float(change.values.std() / a.values.std()):.3g} of A's")
    return 0
