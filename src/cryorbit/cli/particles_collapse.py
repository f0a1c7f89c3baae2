"""`cryorbit particles collapse PARTICLES -o OUT`: an expanded file back to one row per particle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.outputs import refuse_existing
from cryorbit.cli.particles_expand import OutFile
from cryorbit.cli.progress import say
from cryorbit.cli.reading import ParticlesFile, ReadOptions, read


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Undo a symmetry expansion, by Cryorbit, RELION or cryoSPARC: one row per particle."""

    particles: tyro.conf.Positional[ParticlesFile]
    """An expanded particle file."""
    out: OutFile
    """Particle file to write: .star, .cs or .csg."""
    best_by: Annotated[str | None, tyro.conf.arg(metavar="COLUMN")] = None
    """Keep the copy with the largest value of this column; else the copy as it was before the expansion."""
    overwrite: bool = False
    """Replace OUT if it is there."""
    reading: Annotated[ReadOptions, Flat] = field(default_factory=ReadOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Read, collapse, write."""
    from cryorbit.data.expansion import collapse_expansion
    from cryorbit.io.findings import image_keys
    from cryorbit.io.particles import write_particles

    refuse_existing(settings.out, overwrite=settings.overwrite)
    stack = read(settings.particles, settings.reading, images="if found")
    few = collapse_expansion(stack, image_keys(stack), best_by=settings.best_by)
    write_particles(settings.out, few)
    say(f"{settings.out}: {len(few)} particles of {len(stack)} rows")
    return 0
