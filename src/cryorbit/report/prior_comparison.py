"""One picture of a protein's true map beside what methods made of the same images, to be kept by itself."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cryorbit.analysis.masks import density_level
from cryorbit.data import Volume
from cryorbit.report.style import INK, MUTED, SEQUENTIAL, bare, house_style, round_length_A, scale_bar
from cryorbit.report.surface import common_edge, render_surface

_DPI = 200
_HEAD, _FOOT = 0.45, 0.34
"""Inches above and below the pictures."""


def comparison_png(
    maps: Mapping[str, Volume],
    notes: Mapping[str, str],
    *,
    spread: Volume | None = None,
    title: str = "",
    width_px: int = 2400,
) -> bytes:
    """Surfaces in a row, and a central section of each below; as PNG.

    Parameters
    ----------
    maps
        By name, the true map first: its level draws all surfaces, its greys all sections, on one scale.
    notes
        A line under the name of each that has one.
    spread
        Standard deviation of a posterior's samples: a section of it stands last, from white at 0 to blue at its largest.
    """
    truth = next(iter(maps.values()))
    level = density_level(truth.values)
    edge = common_edge([truth], level)
    columns = len(maps) + (spread is not None)
    cell = width_px / _DPI / columns
    height = _HEAD + 2 * cell + _FOOT
    with house_style():
        figure = Figure(figsize=(width_px / _DPI, height), facecolor="white")
        FigureCanvasAgg(figure)

        def panel(column: int, row: int) -> Axes:
            low = (_FOOT + (1 - row) * cell) / height
            axes = figure.add_axes((column / columns, low, 0.97 / columns, 0.97 * cell / height))
            bare(axes)
            return axes

        def name_above(column: int, name: str, note: str) -> None:
            top = 1 - 0.22 / height
            figure.text((column + 0.02) / columns, top, name, fontsize=10.5, color=INK, weight="bold")
            figure.text((column + 0.02) / columns, top - 0.19 / height, note, fontsize=9, color=MUTED)

        low, high = np.percentile(truth.values.cpu().numpy(), [0.5, 99.9])
        for column, (name, volume) in enumerate(maps.items()):
            name_above(column, name, notes.get(name, ""))
            drawn = render_surface(volume, level=level, views=("front",), edge=edge)
            axes = panel(column, 0)
            if drawn is None:
                axes.text(0.5, 0.5, "nothing this dense", ha="center", color=MUTED, transform=axes.transAxes)
            else:
                axes.imshow(drawn.pictures["front"], interpolation="antialiased")
            axes = panel(column, 1)
            axes.imshow(_section(volume), cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
            if column == 0:
                length = round_length_A(truth.box * truth.pixel_size_A)
                scale_bar(axes, length_A=length, pixel_size_A=truth.pixel_size_A, box=truth.box)
        if spread is not None:
            top = max(float(np.percentile(spread.values.cpu().numpy(), 99.9)), 1e-12)
            name_above(columns - 1, "Samples' spread", f"to {top:.2g} V")
            panel(columns - 1, 1).imshow(
                _section(spread), cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="bilinear"
            )
        text = f"surfaces at {level:.3g} V from +z; sections x, y through the middle, one grey scale"
        figure.text(0.99, 0.3 * _FOOT / height, text, ha="right", fontsize=8.5, color=MUTED)
        figure.text(0.01, 0.3 * _FOOT / height, title, fontsize=9.5, color=INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _section(volume: Volume) -> np.ndarray:
    """Plane z = 0 with y up, as surfaces from +z have it."""
    return volume.values[volume.box // 2].float().cpu().numpy()[::-1]
