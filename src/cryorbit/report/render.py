"""One picture of a map's surface from several sides, to be kept by itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.report.style import INK, MUTED, bare, house_style, round_length_A
from cryorbit.report.surface import VIEWS, render_surface

SEEN_FROM = {"front": "+z", "side": "+x", "top": "+y", "back": "-z", "left": "-x", "bottom": "-y"}
"""Axis of the map that points at the viewer."""

_DPI = 200


@dataclass(frozen=True)
class SurfacePicture:
    """A PNG, the density of its surface, and what one view is across in angstrom."""

    png: bytes
    level: float
    edge_A: float


def surface_png(
    volume: Volume,
    *,
    level: float | None = None,
    views: Sequence[str] = ("front", "side", "top"),
    width_px: int = 1800,
    title: str = "",
) -> SurfacePicture:
    """Draw a map's surface from some sides, with a scale bar; up to three views in a row.

    Raises
    ------
    BadInput
        If a view is unknown, or nothing lies above the level.
    """
    unknown = [view for view in views if view not in VIEWS]
    if unknown:
        raise BadInput(f"render: no view is called {', '.join(unknown)}. Choose of {', '.join(VIEWS)}.")
    surface = render_surface(volume, level=level, views=tuple(views))
    if surface is None:
        raise BadInput(
            f"render: the map has no density above {level if level is not None else 'its background'} "
            f"(maximum {float(volume.values.max()):.4g}). Give a lower --level."
        )
    columns = min(3, len(views))
    rows = -(-len(views) // columns)
    width = width_px / _DPI
    with house_style():
        figure = Figure(figsize=(width, width / columns * rows * 1.06 + 0.55), facecolor="white")
        FigureCanvasAgg(figure)
        height = figure.get_figheight()
        foot, cell = 0.5 / height, (1.0 - 0.5 / height) / rows
        for place, view in enumerate(views):
            row, column = divmod(place, columns)
            axes = figure.add_axes((column / columns, 1.0 - (row + 1) * cell, 1.0 / columns, cell * 0.95))
            axes.imshow(surface.pictures[view], interpolation="antialiased")
            axes.set_title(f"{view} ({SEEN_FROM[view]})", loc="center", fontsize=9, color=MUTED, y=0.97)
            bare(axes)
            if place == 0:
                _bar(axes, surface.edge_A, size=surface.pictures[view].shape[1])
        deviations = (surface.level - float(volume.values.mean())) / float(volume.values.std())
        text = f"contour {surface.level:.4g} ({deviations:.1f} sd above the mean), {volume.pixel_size_A:.3g} Å per voxel"
        figure.text(0.98, 0.35 * foot, text, ha="right", va="center", fontsize=8.5, color=MUTED)
        figure.text(0.02, 0.35 * foot, title, ha="left", va="center", fontsize=9, color=INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return SurfacePicture(buffer.getvalue(), surface.level, surface.edge_A)


def _bar(axes: Axes, edge_A: float, *, size: int) -> None:
    """A bar of round length below the particle, in the lower left corner."""
    length = round_length_A(edge_A)
    width = length / edge_A * size
    x, y = 0.05 * size, 0.965 * size
    axes.plot([x, x + width], [y, y], color=INK, linewidth=2.4, solid_capstyle="butt")
    axes.text(
        x + width / 2, y - 0.012 * size, f"{length:.0f} Å", color=INK, ha="center", va="bottom", fontsize=8.5
    )
