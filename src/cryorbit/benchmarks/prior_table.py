"""The prior benchmark's rows as tables, and the bars that they meet or miss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from cryorbit.benchmarks.prior_maps import METHODS, TASK
from cryorbit.benchmarks.prior_methods import CHANCE, NO_PRIOR, ORACLE, ROOMY, SAMPLERS
from cryorbit.benchmarks.prior_views import CLEAN_SNR

Row = dict[str, Any]

GAIN_BAR = 0.05
"""Pearson correlation above the best map without a learned prior, at the fewest views."""
COVERAGE_BAR = (0.85, 0.95)
"""Share of the voxels whose truth a 90 % interval should hold, where the map that is judged has density."""
CALIBRATED = ("pigdm", "diffpir-spectrum-draw", "split-gibbs", *ROOMY)
"""Methods whose spread is meant to be the posterior's; the others' is printed, not judged."""
FEW, MANY = 3, 30

PUBLISHED = (
    "published: EquiCryo 0.85 on lysozyme: an uncentred cosine, for a network overfitted on that same map, clean images; "
    "3 views are claimed, the script named takes 10. Non-negative least squares without any prior has 0.63 to 0.70 at 3 "
    "views and 0.89 to 0.93 at 10 on that map by that score."
)

_HEAD = f"{'method':30s} {'runs':>4s} {'pearson':>15s} {'masked':>7s} {'fsc area':>15s} {'cover90':>8s}"
_HEAD += f" {'in truth':>8s} {'in box':>7s} {'spread~error':>12s} {'passes':>7s} {'seconds':>8s}"


def map_table(rows: Sequence[Row]) -> str:
    """Means over proteins and seeds with standard deviations, by condition; chance first."""
    rows = [r for r in rows if r["task"] == TASK]
    lines: list[str] = []
    for snr, views in sorted({(-r["snr"], r["views"]) for r in rows}):
        here = [r for r in rows if (-r["snr"], r["views"]) == (snr, views)]
        lines += [condition(views, -snr), _HEAD]
        for method in METHODS:
            for prior in dict.fromkeys(r["prior"] for r in here if r["method"] == method):
                mine = [r for r in here if (r["method"], r["prior"]) == (method, prior)]
                lines.append(_line(method + (f" [{prior}]" if prior else ""), mine))
        lines.append("")
    return "\n".join([*lines, PUBLISHED] if lines else [])


def condition(views: int, snr: float) -> str:
    """What was seen, in words.

    >>> condition(3, 100.0), condition(10, 0.1)
    ('3 views, clean (SNR 100)', '10 views, SNR 0.1 with CTF')
    """
    return f"{views} views, " + (f"clean (SNR {snr:g})" if snr >= CLEAN_SNR else f"SNR {snr:g} with CTF")


def _line(name: str, rows: list[Row]) -> str:
    cells = [
        f"{name:30s} {len(rows):4d}",
        f"{_with_spread(rows, 'pearson'):>15s} {_mean(rows, 'pearson_masked'):>7s}",
        f"{_with_spread(rows, 'fsc_area'):>15s} {_mean(rows, 'coverage90'):>8s}",
        f"{_mean(rows, 'coverage90_truth'):>8s} {_mean(rows, 'coverage90_box'):>7s} {_mean(rows, 'spread_error'):>12s}",
        f"{_mean(rows, 'network_passes', '.0f'):>7s} {_mean(rows, 'seconds', '.1f'):>8s}",
    ]
    return " ".join(cells)


def average(rows: Sequence[Row], name: str) -> float | None:
    """Mean of a field over the rows that have it."""
    known = [r[name] for r in rows if r.get(name) is not None]
    return sum(known) / len(known) if known else None


def _mean(rows: Sequence[Row], name: str, form: str = ".3f") -> str:
    value = average(rows, name)
    return "-" if value is None else format(value, form)


def _with_spread(rows: Sequence[Row], name: str) -> str:
    mean = average(rows, name)
    if mean is None:
        return "-"
    values = [r[name] for r in rows]
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
    return f"{mean:.3f}" + (f" +- {sd:.3f}" if len(values) > 1 else "")


def bar(text: str, value: str, *, met: bool) -> str:
    """A verdict line.

    >>> bar("cost", "1 s", met=True)
    'met  cost: 1 s'
    """
    return f"{'met ' if met else 'MISS'} {text}: {value}"


def map_verdict(rows: Sequence[Row], prior: str) -> list[str]:
    """The samplers with this prior against the best map without one, oracle-tuned ones included; coverage."""
    rows = [r for r in rows if r["task"] == TASK and r["prior"] in ("", prior)]
    lines: list[str] = []
    for snr, views in sorted({(-r["snr"], r["views"]) for r in rows}):
        here = [r for r in rows if (-r["snr"], r["views"]) == (snr, views)]
        lines += _gain(here, views, condition(views, -snr))
        lines += _coverage(here, condition(views, -snr))
    return lines


def _gain(rows: list[Row], views: int, where: str) -> list[str]:
    """Over the proteins and seeds that samplers ran on: a benchmark cut short has maps without a prior of more."""
    cells = {(r["protein"], r["seed"]) for r in rows if r["method"] in SAMPLERS}
    rows = [r for r in rows if (r["protein"], r["seed"]) in cells]
    ours = _best(rows, lambda m: m in SAMPLERS and _everywhere(rows, m))
    blind = _best(rows, lambda m: m in NO_PRIOR and not m.endswith(ORACLE))
    known = _best(rows, lambda m: m in NO_PRIOR)
    chance = _best(rows, lambda m: m in CHANCE)
    if ours is None or blind is None or known is None:
        return []
    gain, wanted = ours[1] - known[1], GAIN_BAR if views <= FEW else 0.0
    text = f"{where}: pearson of {ours[0]} {ours[1]:.3f}, best without a prior {known[1]:.3f} ({known[0]})"
    text += f", tuned without the truth {blind[1]:.3f} ({blind[0]})"
    text += "" if chance is None else f", chance {chance[1]:.3f}"
    if FEW < views < MANY:
        return [f"note {text}: {gain:+.3f}"]
    return [bar(f"{text}; gain >= {wanted:g}", f"{gain:+.3f}", met=gain >= wanted)]


def _best(rows: list[Row], among: Callable[[str], bool]) -> tuple[str, float] | None:
    """The method of highest mean correlation over the cells."""
    means = {}
    for method in dict.fromkeys(r["method"] for r in rows):
        value = average([r for r in rows if r["method"] == method], "pearson")
        if among(method) and value is not None:
            means[method] = value
    return max(means.items(), key=lambda item: item[1]) if means else None


def _everywhere(rows: list[Row], method: str) -> bool:
    """Whether the method ran on every protein and seed that any sampler ran on."""
    cells = {(r["protein"], r["seed"]) for r in rows if r["method"] in SAMPLERS}
    return cells == {(r["protein"], r["seed"]) for r in rows if r["method"] == method}


def _coverage(rows: list[Row], where: str) -> list[str]:
    low, high = COVERAGE_BAR
    lines = []
    for method in CALIBRATED:
        mine = [r for r in rows if r["method"] == method]
        value = average(mine, "coverage90")
        if value is not None:
            text = f"{where}: 90 % intervals of {method} ({len(mine)} runs) hold {low:g} to {high:g} of the voxels"
            lines.append(bar(text, f"{value:.3f}", met=low <= value <= high))
    return lines
