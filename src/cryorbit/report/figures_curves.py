"""Curves: shell correlations, convergence, spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from cryorbit.analysis.fsc import MaskedCorrelation, ShellCorrelation
from cryorbit.report.data import ImageStatistics
from cryorbit.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PALE, RED, TEAL, figure, svg_address

_STEP_KEYS = frozenset(
    {"step", "steps", "fraction", "image_visits", "seconds", "time", "elapsed", "rate", "eta", "visits"}
)
_NAMES = {
    "log_likelihood": "Log-likelihood per image",
    "log_evidence": "Log-evidence of the best start",
    "resolution_A": "Resolution used (Å)",
    "radius": "Frequency radius used (shells)",
    "confidence": "Mean confidence",
    "entropy": "Mean pose entropy (nats)",
    "pose_change_deg": "Pose change (degrees)",
    "shift_sd_A": "Spread of the shifts (Å)",
    "starts": "Starts still in the race",
}
MAX_METRICS = 6


def resolution_ticks(axes: Axes, last_per_A: float) -> None:
    """Label a frequency axis by resolution in angstrom, at round places."""
    axes.set_xlim(0.0, last_per_A)
    candidates = [100, 50, 30, 20, 15, 12, 10, 9, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.8, 1.5, 1.2, 1]
    places: list[float] = []
    for resolution in candidates:
        at = 1.0 / resolution
        if at <= last_per_A * 1.001 and (not places or at - places[-1] > 0.085 * last_per_A):
            places.append(at)
    axes.set_xticks(places, [f"{1 / p:.3g}" for p in places])
    axes.set_xlabel("Resolution (Å)")


def _draw(axes: Axes, curve: ShellCorrelation, **how: object) -> None:
    frequency, values = curve.frequency_per_A.tolist(), curve.correlation.tolist()
    axes.plot(frequency[1:], values[1:], **how)  # pyright: ignore[reportArgumentType]


def _mark(axes: Axes, curve: ShellCorrelation, threshold: float, colour: str) -> None:
    """A dot at the crossing, with the resolution beside it."""
    resolution = curve.resolution_A(threshold)
    if not math.isfinite(resolution):
        return
    at = 1.0 / resolution
    limited = curve.nyquist_limited(threshold)
    height = float(curve.correlation[-1]) if limited else threshold
    axes.plot([at], [height], "o", color=colour, markersize=6, markeredgecolor="white", zorder=5)
    right = at > 0.72 * float(curve.frequency_per_A[-1])
    axes.annotate(
        f"{'≤ ' if limited else ''}{resolution:.1f} Å",
        (at, height),
        xytext=(-8 if right else 8, 7),
        textcoords="offset points",
        ha="right" if right else "left",
        color=colour,
        fontweight="bold",
        fontsize=10,
    )


def _thresholds(axes: Axes, *levels: float) -> None:
    for level in levels:
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.text(
            0.004,
            level + 0.012,
            f"{level:g}",
            color=MUTED,
            fontsize=8.5,
            transform=axes.get_yaxis_transform(),
        )
    axes.axhline(0.0, color=INK, linewidth=0.7)
    axes.set_ylim(-0.12, 1.04)
    axes.set_ylabel("Fourier shell correlation")


def half_map_figure(half: ShellCorrelation | None, masked: MaskedCorrelation | None) -> str:
    """Half-map correlations: unmasked, masked, phase-randomised, corrected, with 0.143 marked."""
    fig = figure(5.8, 4.0)
    axes = fig.add_subplot()
    curves = [half] if half is not None else []
    if masked is not None:
        curves = [
            masked.unmasked if half is None else half,
            masked.masked,
            masked.randomised,
            masked.corrected,
        ]
    looks = (
        {"color": MUTED, "label": "no mask", "linewidth": 1.5},
        {"color": TEAL, "label": "soft mask", "linewidth": 1.5},
        {"color": ORANGE, "label": "phases randomised, mask", "linewidth": 1.2, "linestyle": (0, (2, 1.5))},
        {"color": BLUE, "label": "corrected for the mask", "linewidth": 2.4},
    )
    looks = looks if len(curves) > 1 else ({"color": BLUE, "label": "no mask", "linewidth": 2.4},)
    for curve, look in zip(curves, looks, strict=True):
        _draw(axes, curve, **look)
    resolution_ticks(axes, float(curves[0].frequency_per_A[-1]))
    _thresholds(axes, 0.143)
    _mark(axes, curves[-1], 0.143, BLUE)
    fig.legend(loc="outside upper left", ncols=2, columnspacing=1.4, handlelength=1.8)
    return svg_address(fig)


def correlations_figure(
    curves: Mapping[str, ShellCorrelation], *, threshold: float = 0.143, end_A: float | None = None
) -> str:
    """Correlations by name on one plot, the crossing of each marked, the band beyond `end_A` shaded."""
    fig = figure(5.8, 4.0)
    axes = fig.add_subplot()
    last = max(float(curve.frequency_per_A[-1]) for curve in curves.values())
    for (name, curve), colour in zip(curves.items(), (TEAL, BLUE, ORANGE, GREEN), strict=False):
        _draw(axes, curve, color=colour, label=name, linewidth=2.2)
        _mark(axes, curve, threshold, colour)
    resolution_ticks(axes, last)
    _thresholds(axes, threshold)
    if end_A is not None and 1 / end_A < last:
        axes.axvspan(1 / end_A, last, color=PALE, zorder=0, linewidth=0)
    fig.legend(loc="outside upper left", ncols=2)
    return svg_address(fig)


def truth_figure(curve: ShellCorrelation) -> str:
    """Correlation with a known truth, with 0.5 marked."""
    fig = figure(5.8, 4.0)
    axes = fig.add_subplot()
    _draw(axes, curve, color=GREEN, label="map against truth", linewidth=2.4)
    resolution_ticks(axes, float(curve.frequency_per_A[-1]))
    _thresholds(axes, 0.5)
    _mark(axes, curve, 0.5, GREEN)
    fig.legend(loc="outside upper left")
    return svg_address(fig)


def spectrum_figure(statistics: ImageStatistics) -> str:
    """Power of noise, and of signal if known, per shell on a logarithmic axis."""
    fig = figure(5.4, 3.4)
    axes = fig.add_subplot()
    frequency = statistics.frequency_per_A.tolist()[1:]
    axes.semilogy(frequency, statistics.noise_power.tolist()[1:], color=RED, label="noise")
    if statistics.signal_power is not None:
        power = np.maximum(statistics.signal_power.double().cpu().numpy()[1:], 1e-30)
        axes.semilogy(frequency, power, color=BLUE, label="signal in the reprojections")
        floor = float(statistics.noise_power[1:].min()) * 1e-4
        axes.set_ylim(bottom=max(floor, float(power.min()) * 0.5))
    resolution_ticks(axes, frequency[-1])
    axes.set_ylabel("Power per shell")
    axes.legend(loc="upper right")
    return svg_address(fig)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _chosen_metrics(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Numbers that change through the run, those we have words for first."""
    seen: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            number = _number(value)
            if number is not None and key not in _STEP_KEYS:
                seen.setdefault(key, []).append(number)
    useful = [key for key, values in seen.items() if len(values) > 1 and len(set(values)) > 1]
    useful.sort(key=lambda key: (key not in _NAMES, list(_NAMES).index(key) if key in _NAMES else 0))
    return useful[:MAX_METRICS]


def stages_of(rows: Sequence[Mapping[str, object]]) -> list[tuple[str, int, int]]:
    """Runs of rows with the same stage: name, first, one past the last."""
    found: list[tuple[str, int, int]] = []
    for i, row in enumerate(rows):
        name = str(row.get("stage", ""))
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1], i + 1)
        else:
            found.append((name, i, i + 1))
    return [stage for stage in found if stage[0]]


def _time(rows: Sequence[Mapping[str, object]]) -> tuple[list[float], str]:
    """Seconds if every row has them and they rise, else the number of the row."""
    for key in ("seconds", "elapsed", "time"):
        values = [_number(row.get(key)) for row in rows]
        known = [v for v in values if v is not None]
        if len(known) == len(rows) and all(b >= a for a, b in pairwise(known)):
            return known, "Time (s)"
    return [float(i) for i in range(len(rows))], "Step"


def convergence_figures(rows: Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    """(name, address) of a curve per metric, the stages shaded and numbered behind."""
    if len(rows) < 2:
        return []
    x, label = _time(rows)
    stages = stages_of(rows)
    drawn = []
    for key in _chosen_metrics(rows):
        points = [(x[i], _number(row.get(key))) for i, row in enumerate(rows)]
        known = [(a, b) for a, b in points if b is not None]
        fig = figure(3.9, 2.35)
        axes = fig.add_subplot()
        span = max(x[-1] - x[0], 1e-9)
        for place, (_, first, end) in enumerate(stages):
            left, right = x[first], x[min(end, len(x) - 1)]
            if place % 2 == 0:
                axes.axvspan(left, right, color=PALE, zorder=0, linewidth=0)
            if (right - left) / span > 0.03:
                axes.text(
                    (left + right) / 2,
                    1.01,
                    str(place + 1),
                    ha="center",
                    va="bottom",
                    fontsize=8,
                    color=MUTED,
                    transform=axes.get_xaxis_transform(),
                )
        few = len(known) < 40
        axes.plot(
            *zip(*known, strict=True), color=BLUE, marker="o" if few else None, markersize=3, linewidth=1.5
        )
        axes.set_xlim(x[0], x[-1])
        axes.set_xlabel(label)
        title = _NAMES.get(key, key.replace("_", " "))
        drawn.append((title, svg_address(fig)))
    return drawn
