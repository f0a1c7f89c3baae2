"""Maps as the `map` verbs read and write them: any box, cubes inside, the header's place kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.progress import say
from cryorbit.errors import BadInput

if TYPE_CHECKING:
    from cryorbit.data import Volume

Shape = tuple[int, int, int]

MapFile = Annotated[Path, tyro.conf.arg(metavar="MAP")]
"""An MRC or CCP4 map, plain or compressed; its box need not be a cube."""

OutMap = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT.mrc")]
"""Map to write."""


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """What all map verbs share"""

    header_pixel_size_A: float | None = None
    """Pixel size of the map, where the header has none or a wrong one."""
    overwrite: bool = False
    """Replace the output if it is there."""


def read_any(path: Path, options: MapOptions | None = None) -> tuple[Volume, Shape]:
    """A map as a cube, zeros around what is none, and its own voxels along z, y, x.

    Raises
    ------
    BadFile
        If it cannot be read.
    """
    from cryorbit.io.mrc import map_shape, read_map

    pixel = None if options is None else options.header_pixel_size_A
    return read_map(path, pixel_size_A=pixel, to_cube="pad"), map_shape(path)


def on_grid_of(path: Path, reference: Volume, *, name: str) -> Volume:
    """A map that must have the same cube as another, such as a mask.

    Raises
    ------
    BadInput
        If its box differs.
    """
    volume, _ = read_any(path)
    if volume.box != reference.box:
        raise BadInput(
            f"{path}: the {name} has box {volume.box}, the map {reference.box}. "
            "Make both on one grid: `cryorbit map crop` or `cryorbit map resample`."
        )
    return volume


def write_any(path: Path, volume: Volume, shape: Shape | None = None) -> None:
    """Write the central part of a given shape (z, y, x), or all, and say so in a line."""
    from cryorbit.io.mrc import write_map

    write_map(path, volume, shape=shape)
    z, y, x = (volume.box,) * 3 if shape is None else shape
    say(f"{path}: {x} x {y} x {z} voxels of {volume.pixel_size_A:.4g} A")
