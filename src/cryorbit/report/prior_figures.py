"""Pictures of a posterior beside the maps it stands between."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from cryorbit.analysis.masks import density_level
from cryorbit.data import Volume
from cryorbit.report.style import (
    SEQUENTIAL,
    bare,
    figure,
    picture_address,
    png_address,
    round_length_A,
    scale_bar,
)
from cryorbit.report.surface import common_edge, render_surface

DIVERGING = LinearSegmentedColormap.from_list(
    "cryorbit_two", ["#8c2d19", "#d9822b", "#f1c99a", "#f7f8fa", "#a9c9e4", "#3a7fb8", "#123a63"]
)
"""Orange: taken away; blue: added."""
_VIEWS = ("front", "side")
_STRONG = 6.0
"""Standard deviations at either end of the colours of a disagreement."""


def surfaces(maps: Mapping[str, Volume], reference: str) -> dict[str, tuple[str, ...]]:
    """Addresses of two views of each map, all at the reference's level and on one scale; none where nothing shows."""
    level = density_level(maps[reference].values)
    edge = common_edge(list(maps.values()), level)
    found = {}
    for name, volume in maps.items():
        drawn = render_surface(volume, level=level, views=_VIEWS, edge=edge)
        found[name] = () if drawn is None else tuple(picture_address(p) for p in drawn.pictures.values())
    return found


def sections_figure(maps: Mapping[str, Volume], spread: Volume) -> str:
    """Central sections of each map in one grey scale, and of the spread in its own colours: a column each."""
    columns = [*maps.items(), ("Spread", spread)]
    first = next(iter(maps.values()))
    values = np.concatenate([v.values.float().cpu().numpy().ravel() for v in maps.values()])
    low, high = np.percentile(values, [0.5, 99.9])
    fig = figure(9.6, 7.6)
    for column, (name, volume) in enumerate(columns):
        for row, (plane, section) in enumerate(_sections(volume).items()):
            axes = fig.add_subplot(3, len(columns), row * len(columns) + column + 1)
            if volume is spread:
                top = float(np.percentile(volume.values.cpu().numpy(), 99.9))
                axes.imshow(section, cmap=SEQUENTIAL, vmin=0, vmax=max(top, 1e-12), interpolation="bilinear")
            else:
                axes.imshow(
                    section, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), interpolation="bilinear"
                )
            bare(axes)
            if row == 0:
                axes.set_title(name)
            if column == 0:
                axes.set_ylabel(plane)
            if row == 0 and column == 0:
                length = round_length_A(first.box * first.pixel_size_A)
                scale_bar(axes, length_A=length, pixel_size_A=first.pixel_size_A, box=first.box)
    return png_address(fig, dpi=130)


def disagreement_figure(disagreement: Volume) -> str:
    """Central sections of a map in standard deviations, with a bar of colours."""
    fig = figure(9.6, 3.5)
    shown = None
    places = []
    for column, (plane, section) in enumerate(_sections(disagreement).items()):
        axes = fig.add_subplot(1, 3, column + 1)
        shown = axes.imshow(section, cmap=DIVERGING, vmin=-_STRONG, vmax=_STRONG, interpolation="bilinear")
        axes.set_title(f"Section {plane}")
        bare(axes)
        places.append(axes)
    assert shown is not None
    bar = fig.colorbar(shown, ax=places, shrink=0.85, pad=0.015)
    bar.set_label("standard deviations")
    return png_address(fig, dpi=140)


def _sections(volume: Volume) -> dict[str, np.ndarray]:
    values = volume.values.float().cpu().numpy()
    n = volume.box // 2
    return {"x, y": values[n], "x, z": values[:, n], "y, z": values[:, :, n]}
