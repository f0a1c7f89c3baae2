"""`cryorbit map symmetrise MAP -o OUT --symmetry D7`: the mean over a point group."""

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
    """Average a map over a point group in RELION's setting, about index N // 2."""

    map: tyro.conf.Positional[MapFile]
    """Map whose symmetry axes lie on the coordinate axes (`cryorbit map align` can bring them there)."""
    out: OutMap
    """Map to write."""
    symmetry: str
    """C1, C2, ..., D1, D2, ..., T, O, I (= I2), I1, I3 or I4."""
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Average, write, and say how much of the map had the symmetry."""
    from cryorbit.analysis.fsc import fourier_shell_correlation
    from cryorbit.analysis.map_tools import symmetrise_map

    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    volume, shape = read_any(settings.map, settings.files)
    result = symmetrise_map(volume, symmetry=settings.symmetry)
    write_any(settings.out, result, shape)
    if float(volume.values.std()) > 0 and float(result.values.std()) > 0:
        agrees = fourier_shell_correlation(volume, result).resolution_A(0.5)
        say(f"the map and its symmetrised copy agree to {agrees:.1f} A (shell correlation 0.5)")
    return 0
