"""`cryorbit particles expand PARTICLES --symmetry D7 -o OUT`: one row per symmetric copy of each particle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.outputs import refuse_existing
from cryorbit.cli.progress import say
from cryorbit.cli.reading import ParticlesFile, ReadOptions, read
from cryorbit.errors import BadInput

OutFile = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")]
"""Type of the file to write."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Write every particle once per element of a point group, with the poses that explain the same image."""

    particles: tyro.conf.Positional[ParticlesFile]
    """Particles with poses."""
    symmetry: str
    """Point group in RELION's settings: C2, D7, T, O, I ..."""
    out: OutFile
    """Particle file to write: .star, .cs or .csg."""
    overwrite: bool = False
    """Replace OUT if it is there."""
    reading: Annotated[ReadOptions, Flat] = field(default_factory=ReadOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Read, expand, write."""
    import numpy as np

    from cryorbit.data.expansion import expand_by_symmetry, expansion_columns
    from cryorbit.io.findings import image_keys
    from cryorbit.io.particles import write_particles

    refuse_existing(settings.out, overwrite=settings.overwrite)
    stack = read(settings.particles, settings.reading, images="if found")
    if len(np.unique(image_keys(stack))) < len(stack):
        raise BadInput(
            f"{stack.source}: images are listed more than once, so it may be expanded already. Collapse it first "
            "(cryorbit particles collapse)."
        )
    wide = expand_by_symmetry(stack, settings.symmetry)
    order = len(wide) // max(len(stack), 1)
    write_particles(settings.out, wide, extra_columns=expansion_columns(stack, order))
    say(f"{settings.out}: {len(wide)} rows, {order} of each of {len(stack)} particles")
    return 0
