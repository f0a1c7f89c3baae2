"""`cryorbit map render MAP -o OUT.png`: pictures of the map's surface; no display and no graphics card needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.map_files import MapFile, MapOptions, read_any
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.outputs import refuse_existing
from cryorbit.cli.progress import say
from cryorbit.errors import BadInput

View = Literal["front", "side", "top", "back", "left", "bottom"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Draw a map's surface as a PNG, with a scale bar and the contour stated."""

    map: tyro.conf.Positional[MapFile]
    """Map to draw."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT.png")]
    """Picture to write."""
    level: float | None = None
    """Density of the surface; the level that best parts particle and background unless given."""
    views: tuple[View, ...] = ("front", "side", "top")
    """From +z, +x and +y; and from behind each."""
    low_pass_A: float | None = None
    """Smooth the map first."""
    width_px: int = 1800
    """Width of the picture."""
    files: Annotated[MapOptions, Flat] = field(default_factory=MapOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Draw and write."""
    from cryorbit.analysis.map_tools import filter_map
    from cryorbit.io.atomic import atomic_path
    from cryorbit.report.render import surface_png

    refuse_existing(settings.out, overwrite=settings.files.overwrite)
    if settings.out.suffix.lower() != ".png":
        raise BadInput(f"{settings.out}: only PNG is written. Give a name that ends in .png.")
    if not settings.views or settings.width_px < 100:
        raise BadInput("map render: give at least one view and a width of 100 pixels or more.")
    volume, _ = read_any(settings.map, settings.files)
    if settings.low_pass_A is not None:
        volume = filter_map(volume, low_pass_A=settings.low_pass_A)
    picture = surface_png(
        volume,
        level=settings.level,
        views=settings.views,
        width_px=settings.width_px,
        title=settings.map.name,
    )
    with atomic_path(settings.out) as part:
        part.write_bytes(picture.png)
    say(f"{settings.out}: contour {picture.level:.4g}, {picture.edge_A:.0f} A across each view")
    return 0
