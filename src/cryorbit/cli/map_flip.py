"""`cryorbit map flip MAP -o OUT [--particles IN --out-particles OUT]`: the other hand, of map and poses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.map_files import MapFile, MapOptions, OutMap, read_any, write_any
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.outputs import refuse_existing
from cryorbit.cli.progress import say
from cryorbit.cli.reading import ReadOptions, read
from cryorbit.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Mirror a map: z reversed about index N // 2. Given particles, their poses are turned with it: A' = F A F."""

    map: tyro.conf.Positional[MapFile]
    """Map to mirror."""
    out: OutMap
    """Map to write."""
    particles: Annotated[Path | None, tyro.conf.arg(metavar="PARTICLES")] = None
    """Particles (.star, .cs or a job folder) that the map came from."""
    out_particles: Annotated[Path | None, tyro.conf.arg(metavar="OUT.star")] = None
    """Where to write them with the poses that fit the mirrored map."""
    reading: Annotated[ReadOptions, Flat] = field(default_factory=ReadOptions)
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Mirror and write."""
    from cryorbit.analysis.transform_map import mirror_z

    if (settings.particles is None) != (settings.out_particles is None):
        raise BadInput("--particles and --out-particles go together: give both, or neither.")
    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    refuse_existing(settings.out_particles, overwrite=settings.files.overwrite)
    volume, shape = read_any(settings.map, settings.files)
    if settings.particles is not None and settings.out_particles is not None:
        flip_poses(settings.particles, settings.out_particles, settings.reading)
    else:
        say("the map alone was mirrored: poses need it too (--particles), or they no longer fit the map")
    write_any(settings.out, mirror_z(volume), shape)
    return 0


def flip_poses(source: Path, target: Path, options: ReadOptions) -> None:
    """Write the particles with A' = F A F, F = diag(1, 1, -1): the same images, explained by the mirrored map.

    Raises
    ------
    BadFile
        If they cannot be read or have no poses.
    """
    from dataclasses import replace

    from cryorbit.data import Pose
    from cryorbit.geometry.conventions import mirror_pose_rotation
    from cryorbit.io.particles import require_pose, write_particles

    stack = read(source, options, images="if found")
    pose = require_pose(stack)
    flipped = Pose(mirror_pose_rotation(pose.rotation), pose.shift_A)
    write_particles(target, replace(stack, pose=flipped))
    say(f"{target}: {len(stack)} particles")
