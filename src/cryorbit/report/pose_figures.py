"""Figures of poses against a truth: errors and groups through time, hands, the projective plane, calibration."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Circle
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from cryorbit.analysis.calibration import Calibration, Reliability
from cryorbit.analysis.fsc import ShellCorrelation
from cryorbit.analysis.mirror import MirrorSymmetry
from cryorbit.analysis.pose_history import CONVERGED_BELOW, PoseHistory
from cryorbit.analysis.pose_subsets import ConsistentSubsets
from cryorbit.report.figures_curves import resolution_ticks
from cryorbit.report.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PALE,
    RULE,
    TEAL,
    bare,
    figure,
    png_address,
    svg_address,
)

MAX_RIDGES = 28
"""Snapshots shown in a joy plot, evenly chosen by number."""
MAX_POINTS = 3000
"""Points shown in a projective plane."""
_DOUBT = LinearSegmentedColormap.from_list("doubt", [ORANGE, "#e3b98a", "#8fb0cc", BLUE])
_SHARES = np.linspace(-0.04, 1.04, 217)
_RIDGE_SD = 0.012


def error_history_figure(history: PoseHistory) -> str:
    """Mean and median squared error through the run, both axes logarithmic."""
    fig = figure(5.6, 3.6)
    axes = fig.add_subplot()
    time = history.time.tolist()
    for values, colour, name in ((history.mse, BLUE, "mean"), (history.medse, TEAL, "median")):
        axes.plot(time, values.clamp_min(1e-6).tolist(), color=colour, marker="o", markersize=3, label=name)
    axes.set_yscale("log")
    _time_axis(axes, history)
    low = float(torch.minimum(history.mse, history.medse).clamp_min(1e-6).min())
    axes.set_ylim(min(0.05, 0.6 * low), 12.0)
    _level(axes, 6.0, "chance", side="right")
    _level(axes, CONVERGED_BELOW, "converged", side="left")
    axes.set_ylabel("Squared error |R − R′|²")
    fig.legend(loc="outside upper left", ncols=2, columnspacing=1.4, handlelength=1.8)
    return svg_address(fig)


def _level(axes: Axes, value: float, word: str, *, side: Literal["left", "right"]) -> None:
    """A line across with a word: on the right above it, on the left below it, where curves are not."""
    right = side == "right"
    axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        word,
        (1.0 if right else 0.0, value),
        xycoords=axes.get_yaxis_transform(),
        xytext=(-4, 2) if right else (4, -3),
        textcoords="offset points",
        color=MUTED,
        fontsize=8.5,
        ha=side,
        va="bottom" if right else "top",
    )


def _time_axis(axes: Axes, history: PoseHistory) -> None:
    """Time on a logarithmic axis where it starts above 0 and spans more than a factor of three."""
    first, last = float(history.time[0]), float(history.time[-1])
    if first > 0 and last > 3 * first:
        axes.set_xscale("log")
        steps = (1, 2, 5) if last < 300 * first else (1,)
        decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
        ticks = [step * 10.0**power for power in decades for step in steps]
        axes.set_xticks(ticks, [_short(tick) for tick in ticks])
        axes.minorticks_off()
    if last > first:
        axes.set_xlim(first, last)
    axes.set_xlabel(history.time_label)


def joy_figure(history: PoseHistory) -> str:
    """A ridge per snapshot: how the sizes of the particles' consistent subsets are distributed, by hand."""
    count = len(history.time)
    rows = np.unique(np.linspace(0, count - 1, min(count, MAX_RIDGES)).round().astype(int))
    fig = figure(5.6, 1.4 + 0.13 * len(rows))
    axes = fig.add_subplot()
    for place, row in enumerate(rows):
        size, hand = history.size[row].numpy(), history.hand[row].numpy()
        base = float(len(rows) - 1 - place)  # time runs downwards, later ridges lie in front
        both, other = _ridge(size, np.ones_like(size)), _ridge(size, hand < 0)
        scale = 2.6 / max(both.max(), 1e-9)
        axes.fill_between(_SHARES, base, base + scale * both, color=BLUE, zorder=2 * place + 2, linewidth=0)
        axes.fill_between(
            _SHARES, base, base + scale * other, color=ORANGE, zorder=2 * place + 2, linewidth=0
        )
        axes.plot(_SHARES, base + scale * both, color="white", linewidth=0.9, zorder=2 * place + 3)
        axes.plot([_SHARES[0], _SHARES[-1]], [base, base], color=RULE, linewidth=0.6, zorder=2 * place + 1)
    every = max(1, math.ceil(len(rows) / 12))
    shown = range(0, len(rows), every)
    axes.set_yticks([len(rows) - 1 - i for i in shown], [_short(float(history.time[rows[i]])) for i in shown])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.3, len(rows) + 2.2)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("Particles that agree with a particle, of all")
    axes.set_ylabel(history.time_label)
    axes.fill_between([], [], color=BLUE, label="in the final hand")
    axes.fill_between([], [], color=ORANGE, label="mirrored")
    fig.legend(loc="outside upper left", ncols=2, columnspacing=1.4, handlelength=1.0)
    return svg_address(fig)


def _ridge(size: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Density of sizes, each blurred by a Gaussian."""
    known = np.isfinite(size)
    away = (_SHARES[:, None] - size[known][None]) / _RIDGE_SD
    return (np.exp(-0.5 * away**2) * weight[known]).sum(1)


def _short(value: float) -> str:
    """A time as an axis says it.

    >>> _short(12500.0), _short(0.25), _short(3.2e6)
    ('12.5k', '0.25', '3.2M')
    """
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def hand_history_figure(history: PoseHistory) -> str:
    """Share of the particles that are right in either hand, through the run."""
    fig = figure(5.6, 3.6)
    axes = fig.add_subplot()
    time = history.time.tolist()
    axes.plot(
        time,
        history.fraction_union.tolist(),
        color=INK,
        linewidth=1.2,
        linestyle=(0, (3, 2)),
        label="in either",
    )
    axes.plot(
        time, history.fraction_a.tolist(), color=BLUE, marker="o", markersize=3, label="in the final hand"
    )
    axes.plot(time, history.fraction_b.tolist(), color=ORANGE, marker="o", markersize=3, label="mirrored")
    _time_axis(axes, history)
    _share_axis(axes)
    fig.legend(loc="outside upper left", ncols=3, columnspacing=1.4, handlelength=1.8)
    return svg_address(fig)


def hand_sweep_figure(subsets: ConsistentSubsets) -> str:
    """Share of the particles that are right in either hand, against how close counts as right."""
    fig = figure(5.6, 3.6)
    axes = fig.add_subplot()
    angle = torch.rad2deg(2 * torch.asin((subsets.below / 8).sqrt().clamp_max(1))).tolist()
    hand = subsets.groups[0].hand
    first, second = subsets.fraction_a, subsets.fraction_b
    if hand < 0:
        first, second = second, first
    axes.plot(
        angle,
        subsets.fraction_union.tolist(),
        color=INK,
        linewidth=1.2,
        linestyle=(0, (3, 2)),
        label="in either",
    )
    axes.plot(angle, first.tolist(), color=BLUE, marker="o", markersize=4, label="in one hand")
    axes.plot(angle, second.tolist(), color=ORANGE, marker="o", markersize=4, label="in the other")
    axes.set_xscale("log")
    axes.set_xticks(angle, [f"{a:.0f}°" for a in angle])
    axes.minorticks_off()
    axes.set_xlabel("Largest rotation error that counts as right")
    _share_axis(axes)
    fig.legend(loc="outside upper left", ncols=3, columnspacing=1.4, handlelength=1.8)
    return svg_address(fig)


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("Particles in one frame")


def plane_points(rotation: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 2"]:
    """Viewing directions on the projective plane: sgn(z3) (z1, z2) of the third row z; a view and its opposite meet."""
    view = rotation[:, 2].double()
    side = torch.where(view[:, 2] < 0, -1.0, 1.0)
    return side[:, None] * view[:, :2]


def plane_colours(points: Float[Tensor, "n 2"]) -> np.ndarray:
    """A colour (n, 3) for every point of the projective plane, smooth also across its rim.

    Even functions of the direction (x, y, z) only, as opposite points of the rim are one: hue from (xz, yz) inside and from
    (x^2 - y^2, 2 x y) at the rim, lightness from z^2, in CIELAB.
    """
    x, y = points.double().cpu().numpy().T
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    a = 95 * (x * z) + 42 * (x * x - y * y)
    b = 95 * (y * z) + 42 * (2 * x * y)
    return _rgb_of_lab(48 + 34 * z * z, a, b)


def _rgb_of_lab(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Screen colours (sRGB) of CIELAB under D65, clipped to 0 to 1."""
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array([0.9505, 1.0, 1.089])
    linear = (
        xyz @ np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]).T
    )
    linear = np.clip(linear, 0, 1)
    return np.clip(np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear), 0, 1)


def plane_figure(
    rotation: Float[Tensor, "n 3 3"],
    truth: Float[Tensor, "n 3 3"],
    *,
    confidence: Float[Tensor, "n"] | None = None,
) -> str:
    """Viewing directions on the projective plane: the truth, and beside it the predictions in the true frame.

    Both in the colour of where the particle truly is; a third plane shows the predictions by confidence if it is given.
    """
    rows = torch.linspace(0, len(truth) - 1, min(len(truth), MAX_POINTS)).round().long()
    true, found = plane_points(truth[rows].cpu()), plane_points(rotation[rows].cpu())
    colours = plane_colours(true)
    panels = 2 if confidence is None else 3
    fig = figure(3.1 * panels + (0.3 if panels == 3 else 0), 3.35)
    axes = np.atleast_1d(fig.subplots(1, panels))
    _plane(axes[0], true, "truth", c=colours)
    _plane(axes[1], found, "predicted, in the colour of the truth", c=colours)
    if confidence is not None:
        value = confidence[rows].double().cpu()
        order = value.argsort(descending=True)  # the doubtful ones on top
        shown = _plane(
            axes[2],
            found[order],
            "predicted, by confidence",
            c=value[order].numpy(),
            cmap=_DOUBT,
            vmin=0.0,
            vmax=1.0,
        )
        bar = fig.colorbar(shown, ax=axes[2], fraction=0.046, pad=0.03)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return png_address(fig, dpi=180)


def _plane(axes: Axes, points: Tensor, title: str, **how: object) -> PathCollection:
    bare(axes)
    axes.set_aspect("equal")
    axes.add_patch(Circle((0, 0), 1, facecolor=PALE, edgecolor=RULE, linewidth=0.9, zorder=0))
    size = float(np.clip(9000 / max(len(points), 1), 5, 22))
    x, y = points.numpy().T
    shown = axes.scatter(x, y, s=size, linewidths=0, **how)  # pyright: ignore[reportArgumentType]
    axes.set_xlim(-1.04, 1.04)
    axes.set_ylim(-1.04, 1.04)
    axes.set_title(title, fontsize=9.5, fontweight="normal", loc="center")
    return shown


def mirror_figure(mirror: MirrorSymmetry, half: ShellCorrelation | None = None) -> str:
    """Shell correlation of a map with its best reflection, beside that of its half maps."""
    fig = figure(5.6, 3.6)
    axes = fig.add_subplot()
    if half is not None:
        frequency, value = half.frequency_per_A.tolist(), half.correlation.tolist()
        axes.plot(frequency[1:], value[1:], color=MUTED, linewidth=1.5, label="half maps")
    frequency, value = mirror.curve.frequency_per_A.tolist(), mirror.curve.correlation.tolist()
    axes.plot(frequency[1:], value[1:], color=ORANGE, linewidth=2.4, label="map and its best reflection")
    last = frequency[-1] if half is None else max(frequency[-1], float(half.frequency_per_A[-1]))
    resolution_ticks(axes, last)
    axes.axhline(0.0, color=INK, linewidth=0.7)
    axes.set_ylim(-0.12, 1.04)
    axes.set_ylabel("Fourier shell correlation")
    fig.legend(loc="outside upper left", ncols=2, columnspacing=1.4, handlelength=1.8)
    return svg_address(fig)


def calibration_figure(calibration: Calibration) -> str:
    """Coverage of credible sets against their level, with what chance allows."""
    fig = figure(4.8, 4.1)
    axes = fig.add_subplot()
    level, coverage = calibration.level.numpy(), calibration.coverage.numpy()
    spread = 2 * calibration.deviation.numpy()
    axes.fill_between(
        level, level - spread, level + spread, color=MUTED, alpha=0.25, linewidth=0, label="chance, two sd"
    )
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    whole = calibration.coverage_whole_cells.numpy()
    if np.abs(whole - coverage).max() > 0.02:
        axes.plot(level, whole, color=TEAL, linewidth=1.2, label="sets of whole cells")
    axes.plot(level, coverage, color=BLUE, marker="o", markersize=4, label="credible sets")
    axes.text(0.04, 0.93, "too cautious", color=MUTED, fontsize=9)
    axes.text(0.96, 0.05, "overconfident", color=MUTED, fontsize=9, ha="right")
    _unit_square(axes)
    axes.set_xlabel("Level of the credible set")
    axes.set_ylabel("Truths inside")
    fig.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=1.6)
    return svg_address(fig)


def pit_figure(calibration: Calibration, *, bins: int = 20) -> str:
    """Histogram of the level at which credible sets take in the truth: flat if calibrated."""
    fig = figure(4.8, 2.9)
    axes = fig.add_subplot()
    n = len(calibration.pit)
    counts, edges = np.histogram(calibration.pit.numpy(), bins=bins, range=(0, 1))
    axes.bar(edges[:-1], counts / n * bins, width=1 / bins, align="edge", color=BLUE, alpha=0.85, linewidth=0)
    spread = 2 * math.sqrt(bins / n * (1 - 1 / bins))
    axes.axhspan(max(0.0, 1 - spread), 1 + spread, color=MUTED, alpha=0.25, linewidth=0)
    axes.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("Credible level of the truth")
    axes.set_ylabel("Particles, uniform = 1")
    return svg_address(fig)


def reliability_figure(found: Reliability) -> str:
    """How often poses of a given confidence are right; the area of a dot is its number of particles."""
    fig = figure(4.8, 4.1)
    axes = fig.add_subplot()
    share = (found.count / found.count.sum()).numpy()
    value, right = found.confidence.numpy(), found.correct.numpy()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    spread = 2 * np.sqrt(np.clip(value * (1 - value), 1e-4, None) / found.count.numpy())
    axes.vlines(value, np.clip(value - spread, 0, 1), np.clip(value + spread, 0, 1), color=RULE, linewidth=7)
    axes.plot(value, right, color=BLUE, linewidth=1.0, alpha=0.6)
    axes.scatter(value, right, s=14 + 420 * share, color=BLUE, zorder=3, linewidths=0)
    axes.text(0.04, 0.93, "too cautious", color=MUTED, fontsize=9)
    axes.text(0.96, 0.05, "too sure", color=MUTED, fontsize=9, ha="right")
    _unit_square(axes)
    axes.set_xlabel("Confidence of the pose")
    axes.set_ylabel("Poses that are right")
    return svg_address(fig)


def _unit_square(axes: Axes) -> None:
    axes.set_aspect("equal")
    axes.set_xlim(-0.02, 1.04)
    axes.set_ylim(-0.02, 1.04)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
