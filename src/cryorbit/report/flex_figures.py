"""Pictures of a heterogeneity run: its cloud of particles, its maps side by side and as a film, its motions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from cryorbit.analysis.masks import density_level
from cryorbit.data import Gaussians, Volume
from cryorbit.physics.splat import gaussians_to_map
from cryorbit.report.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    bare,
    figure,
    png_address,
    round_length_A,
    svg_address,
)
from cryorbit.report.surface import Paint, common_edge, render_surface

_BOX = 96
"""Pictures are drawn of maps of at most this box: their details are finer than Gaussians of a few hundred are."""
_MOST_DOTS = 20_000
_MOTION = np.array([[0.80, 0.84, 0.88], [0.45, 0.66, 0.85], [0.98, 0.80, 0.36], [0.85, 0.30, 0.20]])
"""Colours from no motion, grey, to the largest, red."""


def group_colours(count: int) -> np.ndarray:
    """A colour per group, (count, 3)."""
    name = "tab10" if count <= 10 else "tab20"
    table = np.asarray(colormaps[name](np.arange(count) % colormaps[name].N))
    return table[:, :3]


@dataclass(frozen=True, eq=False)
class Stage:
    """One frame, one scale and one contour for all pictures of a run.

    Parameters
    ----------
    view
        Rotation into the picture's frame, (3, 3).
    box, pixel_size_A
        Grid that is drawn.
    level
        Density of the surface.
    edge
        Voxels across a picture.
    """

    view: Float[Tensor, "3 3"]
    box: int
    pixel_size_A: float
    level: float
    edge: int

    @classmethod
    def of(
        cls, all_gaussians: Sequence[Gaussians], view: Float[Tensor, "3 3"], *, box: int, pixel_size_A: float
    ) -> Stage:
        """What holds all of some conformations; the contour is that of the first."""
        small = min(box, _BOX)
        bare_stage = cls(view, small, box * pixel_size_A / small, 0.0, small)
        maps = [bare_stage.map_of(g) for g in all_gaussians]
        level = float(density_level(maps[0].values))
        return cls(view, small, bare_stage.pixel_size_A, level, common_edge(maps, level))

    @property
    def edge_A(self) -> float:
        """Width of a picture."""
        return self.edge * self.pixel_size_A

    def map_of(self, gaussians: Gaussians) -> Volume:
        """The map in the picture's frame."""
        turned = gaussians.moved(self.view, torch.zeros(3))
        return gaussians_to_map(turned, box=self.box, pixel_size_A=self.pixel_size_A)

    def draw(
        self, gaussians: Gaussians, *, views: tuple[str, ...] = ("front",), paint: Paint | None = None
    ) -> list[np.ndarray]:
        """RGBA of the surface from some sides, blank where nothing is above the contour."""
        surface = render_surface(
            self.map_of(gaussians), level=self.level, views=views, edge=self.edge, paint=paint
        )
        if surface is None:
            return [np.zeros((2 * self.edge, 2 * self.edge, 4))] * len(views)
        return [surface.pictures[name] for name in views]


def cloud_figure(
    points: Float[Tensor, "n 2"],
    label: Int[Tensor, "n"],
    marked: Int[Tensor, "k"],
    *,
    names: tuple[str, str],
    lines: Sequence[Float[Tensor, "m 2"]] = (),
) -> str:
    """Particles as dots coloured by group, numbers at the particles `marked`, lines through series of latents."""
    fig = figure(5.6, 4.6)
    axes = fig.add_subplot()
    rows = torch.linspace(0, len(points) - 1, min(len(points), _MOST_DOTS)).long()
    colours = group_colours(len(marked))
    x, y = points[rows].T.numpy()
    size = float(np.clip(4000 / len(rows), 1.5, 14))
    axes.scatter(x, y, c=colours[label[rows].numpy()], s=size, linewidths=0, alpha=0.75)
    for line, colour in zip(lines, (INK, ORANGE), strict=False):
        axes.plot(*line.T.numpy(), color=colour, linewidth=1.3, marker="o", markersize=3)
    for k, row in enumerate(marked.tolist()):
        across, up = points[row].tolist()
        axes.annotate(
            str(k + 1),
            (across, up),
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=INK,
            bbox={"boxstyle": "circle,pad=0.22", "fc": "white", "ec": colours[k], "lw": 1.6},
        )
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    return png_address(fig)


def variance_figure(variance: Float[Tensor, "c"], *, doubtful: float, seen: float) -> str:
    """Variance per axis beside what noise alone gives."""
    fig = figure(4.6, 4.6)
    axes = fig.add_subplot()
    place = np.arange(1, len(variance) + 1)
    axes.bar(place, variance.numpy(), color=BLUE, width=0.62)
    axes.axhspan(0, doubtful, color=ORANGE, alpha=0.16, linewidth=0)
    axes.axhline(seen, color=ORANGE, linewidth=1.2, linestyle="--")
    axes.set_yscale("symlog", linthresh=5)
    top = max(float(variance.max()), seen) * 1.3
    axes.set_ylim(0, top)
    ticks = [t for t in (0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 200, 500, 1000, 10000) if t <= top]
    axes.set_yticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xticks(place)
    axes.set_xlabel("Principal component")
    axes.set_ylabel("Variance (error variances)")
    return svg_address(fig)


def misfit_figure(chi_square: Float[Tensor, "n"]) -> str:
    """How well the model explains each image."""
    fig = figure(5.6, 3.3)
    axes = fig.add_subplot()
    values = chi_square.double()
    low, high = torch.quantile(values[: 10**6], torch.tensor([0.002, 0.998], dtype=values.dtype)).tolist()
    span = max(high - low, 1e-6)
    bins = np.linspace(low - 0.1 * span, high + 0.1 * span, 60)
    axes.hist(values.clamp(bins[0], bins[-1]).numpy(), bins=bins, color=BLUE)
    axes.axvline(1.0, color=ORANGE, linewidth=1.4, linestyle="--")
    axes.set_xlabel("Misfit per number, χ² (1: noise alone is left)")
    axes.set_ylabel("Particles")
    return svg_address(fig)


def trimmed(pictures: Sequence[np.ndarray], *, margin: int = 12) -> list[np.ndarray]:
    """Pictures without the empty border that all of them have, so that they stay in register."""
    alpha = np.max([p[..., 3] for p in pictures], axis=0) > 0.02
    if not alpha.any():
        return list(pictures)
    cuts = []
    for axis in (1, 0):
        where = np.flatnonzero(alpha.any(axis))
        cuts.append(slice(max(where[0] - margin, 0), where[-1] + margin + 1))
    return [p[cuts[0], cuts[1]] for p in pictures]


def strip_figure(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    pixel_A: float,
    columns: int,
    colours: np.ndarray | None = None,
) -> str:
    """Pictures of one size and scale in rows of `columns`, each with its title; a scale bar in the first.

    Parameters
    ----------
    pixel_A
        Pixel of the pictures, angstrom.
    """
    rows = -(-len(pictures) // columns)
    width, foot = 9.6, 0.34
    high = width / columns * pictures[0].shape[0] / pictures[0].shape[1]
    height = rows * (high + 0.26) + foot
    fig = Figure(figsize=(width, height))
    for k, picture in enumerate(pictures):
        row, column = divmod(k, columns)
        bottom = height - (row + 1) * (high + 0.26)
        axes = fig.add_axes((column / columns, bottom / height, 0.98 / columns, high / height))
        axes.imshow(picture, interpolation="antialiased", aspect="auto")
        colour = INK if colours is None else tuple(0.75 * colours[k])
        axes.set_title(titles[k], loc="center", fontsize=9, fontweight="normal", color=colour, pad=2)
        bare(axes)
    _bar(fig, columns * pictures[0].shape[1] * pixel_A, per_view_A=pictures[0].shape[1] * pixel_A)
    return png_address(fig, dpi=150)


def _bar(fig: Figure, across_A: float, *, per_view_A: float) -> None:
    """A bar of round length in the lower left corner of a figure that is so wide."""
    length = round_length_A(per_view_A)
    axes = fig.add_axes((0.0, 0.0, 1.0, 0.3 / fig.get_figheight()))
    axes.set_xlim(0, across_A)
    axes.set_ylim(0, 1)
    start = 0.012 * across_A
    axes.plot([start, start + length], [0.5, 0.5], color=INK, linewidth=2.2, solid_capstyle="butt")
    axes.text(start + length + 0.008 * across_A, 0.46, f"{length:.0f} Å", va="center", fontsize=9, color=INK)
    bare(axes)


def painted_figure(
    stage: Stage, gaussians: Gaussians, values: Float[Tensor, "n"], *, unit: str, high: float | None = None
) -> str:
    """The surface coloured by a number per Gaussian, from the best side, from above it and from its right.

    Parameters
    ----------
    high
        Value at the top of the scale; None: all but the largest hundredths.
    """
    painted = Gaussians(gaussians.position_A, gaussians.amplitude * values, gaussians.width_A)
    density = stage.map_of(gaussians).values
    share = stage.map_of(painted).values / density.clamp_min(0.05 * density.max())
    if high is None:
        high = max(float(torch.quantile(values.double(), 0.98)), 1e-3)
    paint = Paint(Volume(share.clamp_min(1e-3 * high), stage.pixel_size_A), 0.0, high, _MOTION)
    whole = stage.draw(gaussians, views=("front", "top", "side"), paint=paint)
    pictures, pixel = trimmed(whole), stage.edge_A / whole[0].shape[1]
    width, foot = 9.6, 0.34
    row = 0.29 * width * pictures[0].shape[0] / pictures[0].shape[1]
    fig = Figure(figsize=(width, row + foot))
    for k, picture in enumerate(pictures):
        axes = fig.add_axes((0.29 * k, foot / (row + foot), 0.285, row / (row + foot)))
        axes.imshow(picture, interpolation="antialiased", aspect="auto")
        bare(axes)
    across = pictures[0].shape[1] * pixel
    _bar(fig, across / 0.285, per_view_A=across)
    _colour_scale(fig, high, unit)
    return png_address(fig, dpi=150)


def _colour_scale(fig: Figure, high: float, unit: str) -> None:
    """The colours of `_MOTION` from 0 to `high`, at a figure's right edge."""
    scale = fig.add_axes((0.90, 0.16, 0.016, 0.68))
    ramp = np.stack(
        [np.interp(np.linspace(0, 1, 128), np.linspace(0, 1, 4), _MOTION[:, c]) for c in range(3)], -1
    )
    scale.imshow(ramp[:, None], origin="lower", aspect="auto", extent=(0, 1, 0, high))
    scale.set_xticks([])
    scale.grid(visible=False)
    scale.yaxis.tick_right()
    scale.set_title(unit, fontsize=9, color=MUTED, loc="center", fontweight="normal")
