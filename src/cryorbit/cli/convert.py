"""`cryorbit convert IN OUT`: particles or a map in another program's form, told by the names' endings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.progress import say
from cryorbit.cli.reading import ReadOptions, read
from cryorbit.errors import BadInput

MAP_ENDINGS = (".mrc", ".map", ".ccp4")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Convert particles (.star .cs .txt .mrcs, job folders; cryoDRGN pickles) or maps (.mrc .map .ccp4)."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="IN")]]
    """File or job folder to read."""
    target: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """File to write: .star, .cs, .mrcs (images), .pkl (pose or ctf, by its name) or a map."""
    overwrite: bool = False
    """Replace OUT if it is there."""
    reading: Annotated[ReadOptions, Flat] = field(default_factory=ReadOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Convert one file."""
    source, target = settings.source, settings.target
    if target.exists() and not settings.overwrite:
        raise BadInput(f"{target}: is there already. Choose another name, or give --overwrite.")
    if is_map(source) and is_map(target):
        from cryorbit.io.mrc import read_map, write_map

        write_map(target, read_map(source))
        say(f"{target}: written")
        return 0
    convert_particles(source, target, settings.reading)
    return 0


def is_map(path: Path) -> bool:
    """Whether the name is that of a map (compression looked through).

    >>> is_map(Path("a.map.gz")), is_map(Path("a.mrcs"))
    (True, False)
    """
    endings = [suffix for suffix in path.suffixes if suffix not in (".gz", ".bz2", ".xz", ".zst")]
    return bool(endings) and endings[-1] in MAP_ENDINGS


def convert_particles(source: Path, target: Path, options: ReadOptions) -> None:
    """Read particles and write them in the form that the target's ending names.

    Raises
    ------
    BadFile, BadInput
        If the source cannot be read, lacks what the target needs, or the ending is unknown.
    """
    from cryorbit.io.particles import write_images, write_particles

    if target.suffix == ".mrcs":
        stack = read(source, options)
        write_images(target, stack)
    else:
        stack = read(source, options, images="if found")
        write_particles(target, stack)
    say(f"{target}: {len(stack)} particles")
