"""Figures of what a pose network says: its hypotheses on moved images, and how many of them it takes to hold the pose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from cryorbit.geometry.rotations import geodesic_angle, random_rotations
from cryorbit.report.data import Reader
from cryorbit.report.style import BLUE, MUTED, ORANGE, TEAL, bare, figure, png_address, svg_address

AXES = (ORANGE, TEAL, BLUE)
"""Colours of the particle's own x, y and z axes."""
READERS = (BLUE, ORANGE, TEAL)
SHOWN_ABOVE = 0.02
"""Probability of a hypothesis that is drawn."""


def moved_figure(
    images: Float[Tensor, "p g h h"],
    rotation: Float[Tensor, "p g k 3 3"],
    probability: Float[Tensor, "p g k"],
    centre_px: Float[Tensor, "p g 2"],
    *,
    titles: tuple[str, ...],
) -> str:
    """Images of p particles under g moves; on each the particle's axes as the hypotheses have them, as strong as probable.

    `centre_px` is where the particle sits, (x, y) in pixels from index h // 2.
    """
    particles, moves = images.shape[:2]
    fig = figure(2.05 * moves, 2.05 * particles + 0.3)
    grid = fig.subplots(particles, moves, squeeze=False)
    for p in range(particles):
        low, high = torch.quantile(images[p].flatten(), torch.tensor([0.005, 0.995])).tolist()
        for g in range(moves):
            axes = grid[p][g]
            bare(axes)
            axes.imshow(
                images[p, g].numpy(),
                cmap="gray",
                vmin=low,
                vmax=high,
                origin="lower",
                interpolation="bicubic",
            )
            _tripods(axes, rotation[p, g], probability[p, g], centre_px[p, g], box=images.shape[-1])
            if p == 0:
                axes.set_title(titles[g], fontsize=9.5, fontweight="normal", loc="center")
    return png_address(fig, dpi=150)


def _tripods(
    axes: Axes,
    rotation: Float[Tensor, "k 3 3"],
    probability: Float[Tensor, "k"],
    centre_px: Float[Tensor, "2"],
    *,
    box: int,
) -> None:
    """The particle's axes, projected: column j of A is where axis j points in the image's frame."""
    x, y = (centre_px + box // 2).tolist()
    for k in probability.argsort().tolist():  # the likeliest on top
        if probability[k] < SHOWN_ABOVE:
            continue
        strength = float(probability[k] / probability.max())
        for j, colour in enumerate(AXES):
            dx, dy, _ = (0.4 * box * rotation[k, :, j]).tolist()
            axes.plot(
                [x, x + dx],
                [y, y + dy],
                color=colour,
                alpha=0.15 + 0.85 * strength,
                linewidth=0.8 + 1.8 * strength,
            )
    axes.set_xlim(-0.5, box - 0.5)
    axes.set_ylim(-0.5, box - 0.5)


def hypotheses_figure(readers: Sequence[Reader], *, within_deg: float = 20.0) -> str:
    """Share of the particles whose pose is near one of the first hypotheses, against how many are counted; and by chance."""
    fig = figure(4.8, 3.6)
    axes = fig.add_subplot()
    count = list(range(1, readers[0].hypothesis_deg.shape[1] + 1))
    for reader, colour in zip(readers, READERS, strict=False):
        near = (reader.hypothesis_deg.cummin(1).values <= within_deg).double().mean(0)
        axes.plot(count, near.tolist(), color=colour, marker="o", markersize=4, label=reader.name)
    chance = [1 - (1 - chance_within(within_deg)) ** k for k in count]
    axes.plot(count, chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="chance")
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xticks(count)
    axes.set_xlabel("Hypotheses counted, most probable first")
    axes.set_ylabel(f"Particles with one within {within_deg:.0f}°")
    fig.legend(loc="outside upper left", ncols=3, columnspacing=1.4, handlelength=1.8)
    return svg_address(fig)


def agreement_figure(readers: Sequence[Reader], *, generator: torch.Generator) -> str:
    """Share of the particles within an angle of the pose that the search found, alone (thin) and refined; and by chance."""
    fig = figure(4.8, 3.6)
    axes = fig.add_subplot()
    random = random_rotations(20_000, generator=generator)
    for reader, colour in zip(readers, READERS, strict=False):
        _cumulative(axes, reader.refined_deg, color=colour, label=reader.name)
        _cumulative(axes, reader.hypothesis_deg[:, 0], color=colour, linewidth=1.0, alpha=0.7)
    chance = torch.rad2deg(geodesic_angle(random[::2], random[1::2]))
    _cumulative(axes, chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="chance")
    axes.set_xscale("log")
    axes.set_xlim(0.2, 180)
    ticks = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 180)
    axes.set_xticks(ticks, [f"{t:g}°" for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("Angle to the pose that the run found")
    axes.set_ylabel("Particles nearer than that")
    fig.legend(loc="outside upper left", ncols=3, columnspacing=1.0, handlelength=1.4)
    return svg_address(fig)


def _cumulative(axes: Axes, angle_deg: Float[Tensor, "n"], **how: Any) -> None:
    ordered = angle_deg.double().sort().values.clamp_min(0.05)
    axes.plot(ordered.tolist(), (torch.arange(1, len(ordered) + 1) / len(ordered)).tolist(), **how)


def chance_within(limit_deg: float) -> float:
    """Share of all rotations within an angle of a given one: (w - sin w) / pi.

    >>> round(chance_within(180.0), 6)
    1.0
    """
    angle = math.radians(limit_deg)
    return (angle - math.sin(angle)) / math.pi
