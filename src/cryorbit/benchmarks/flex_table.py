"""The heterogeneity benchmark's rows as a table, and the bars that they meet or miss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryorbit.benchmarks.flex_methods import CHANCE, METHODS, MORE_METHODS, ORACLE, OURS, REFINED
from cryorbit.benchmarks.pose_scores import spread

Row = dict[str, Any]

SCORE_BARS = {"circular_correlation": 0.95, "spearman": 0.95, "adjusted_rand_index": 0.9}
"""What a latent score should exceed; there is none for clouds."""
AREA_BAR = 0.9
"""Of the oracle's area."""
CARRIED_BAR_A = 2.0
"""Below which atoms carried along a path should stay off the true frames, root mean square."""
RECOVERED_BAR = 0.5
"""Of the area that pose errors take away, by refining poses."""

_HEAD = f"{'data set':13s} {'method':27s} {'runs':>4s} {'score':>15s} {'fsc area':>16s} {'/ oracle':>9s}"
_HEAD += f" {'recovered':>9s} {'masked':>9s} {'chi2':>6s} {'seconds':>8s}"


def table(rows: Sequence[Row]) -> str:
    """Means over seeds with standard deviations, chance and oracle first; then the bars."""
    lines: list[str] = []
    for condition, members in _conditions(rows).items():
        lines += [condition, _HEAD]
        for dataset in dict.fromkeys(row["dataset"] for row in members):
            of_set = [row for row in members if row["dataset"] == dataset]
            lines += [_line([r for r in of_set if r["method"] == m]) for m in _methods(of_set)]
        lines.append("")
    return "\n".join([*lines, *verdict(rows)])


def _line(rows: list[Row]) -> str:
    first = rows[0]
    cells = [
        f"{first['dataset']:13s} {first['method']:27s} {len(rows):4d}",
        f"{_spread(rows, 'score'):>15s}",
        f"{_spread(rows, 'fsc_area'):>16s}",
        f"{_ratio(rows):9.3f}",
        f"{_mean(rows, 'recovered_share'):>9s}",
        f"{_mean(rows, 'recovered_share_masked'):>9s}",
        f"{_mean(rows, 'misfit'):>6s}",
        f"{_mean(rows, 'seconds', '.0f'):>8s}",
    ]
    return " ".join(cells) + ("  stopped by time" if any(r.get("stopped_by_time") for r in rows) else "")


def _spread(rows: list[Row], name: str) -> str:
    return spread([row[name] for row in rows]) or "-"


def _mean(rows: list[Row], name: str, form: str = ".3f") -> str:
    known = [row[name] for row in rows if row.get(name) is not None]
    return format(sum(known) / len(known), form) if known else "-"


def _ratio(rows: list[Row]) -> float:
    """Mean of the areas over those of the same runs' oracles."""
    return sum(row["fsc_area"] / row["oracle_fsc_area"] for row in rows) / len(rows)


def _methods(rows: Sequence[Row]) -> list[str]:
    """In the order of the benchmark, others after them."""
    there = list(dict.fromkeys(row["method"] for row in rows))
    order = (*METHODS, *MORE_METHODS)
    return sorted(there, key=lambda m: order.index(m) if m in order else len(order))


def _conditions(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what was simulated, in words."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        text = f"{row['images']} images of {row['box']} px, SNR {row['snr']}"
        if _has_errors(row):
            text += (
                f", poses wrong by {row['pose_error_deg']:g} degrees and {row['pose_error_px']:g} px (rms)"
            )
        groups.setdefault(text, []).append(row)
    return groups


def _has_errors(row: Row) -> bool:
    return bool(row["pose_error_deg"] or row["pose_error_px"])


def verdict(rows: Sequence[Row]) -> list[str]:
    """Ours against the bars, where the linear baseline does as well, and what refining poses brings back.

    Means over seeds are judged. The bars are those of known poses; of wrong ones only what refinement recovers is.
    """
    lines = []
    right = [row for row in rows if not _has_errors(row)]
    for condition, members in _conditions(right).items():
        for dataset in dict.fromkeys(row["dataset"] for row in members):
            of_set = [row for row in members if row["dataset"] == dataset]
            lines += [f"{text}   [{condition}]" for text in _of_set(dataset, of_set)]
    return lines + _refinement(rows)


def _of_set(dataset: str, rows: list[Row]) -> list[str]:
    ours = [row for row in rows if row["method"] == OURS]
    if not ours:
        return []
    name, score, ratio = ours[0]["score_name"], _average(ours), _ratio(ours)
    lines = []
    if name in SCORE_BARS:
        lines.append(_bar(f"{dataset}: {name} > {SCORE_BARS[name]}", score, score > SCORE_BARS[name]))
    lines.append(_bar(f"{dataset}: fsc area / oracle >= {AREA_BAR}", ratio, ratio >= AREA_BAR))
    lines += _of_atoms(dataset, [row for row in ours if "carried_rmsd_A" in row])
    for method in _methods(rows):
        theirs = [row for row in rows if row["method"] == method]
        better = [f"score {_average(theirs):.3f}"] if _average(theirs) >= score else []
        better += [f"fsc area / oracle {_ratio(theirs):.3f}"] if _ratio(theirs) >= ratio else []
        if better and method not in (CHANCE, ORACLE, OURS):
            lines.append(f"note {dataset}: {method} does as well as ours or better: {', '.join(better)}")
    return lines


def _of_atoms(dataset: str, rows: list[Row]) -> list[str]:
    """Atoms carried along the path, and the moving domains with the motion undone."""
    if not rows:
        return []
    mean, most, still, there, plain = (
        sum(row[name] for row in rows) / len(rows)
        for name in (
            "carried_rmsd_A",
            "carried_rmsd_most_A",
            "unmoved_rmsd_A",
            "moving_fsc_area",
            "moving_fsc_area_consensus",
        )
    )
    text = (
        f"{dataset}: C-alpha RMSD of carried atoms < {CARRIED_BAR_A:g} A everywhere (mean {mean:.2f}, unmoved"
    )
    text += f" {still:.2f})"
    undone = f"{dataset}: fsc area of moving domains with the motion undone > consensus {plain:.4g}"
    return [_bar(text, most, most < CARRIED_BAR_A), _bar(undone, there, there > plain)]


def _average(rows: list[Row]) -> float:
    return sum(row["score"] for row in rows) / len(rows)


def _bar(text: str, value: float, met: bool) -> str:
    return f"{'met ' if met else 'MISS'} {text}: {value:.4g}"


def _refinement(rows: Sequence[Row]) -> list[str]:
    """Of runs with pose errors whose data set and seed were run with the true poses too."""
    same = ("dataset", "seed", "images", "box", "snr")

    def area(like: Row, method: str, *, errors: tuple[float, float]) -> float | None:
        for row in rows:
            given = (row["pose_error_deg"], row["pose_error_px"])
            if row["method"] == method and given == errors and all(row[k] == like[k] for k in same):
                return row["fsc_area"]
        return None

    shares: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["method"] != REFINED or not _has_errors(row):
            continue
        errors = (row["pose_error_deg"], row["pose_error_px"])
        best, worst = area(row, OURS, errors=(0.0, 0.0)), area(row, OURS, errors=errors)
        if best is not None and worst is not None and best != worst:
            text = f"{errors[0]:g} degrees, {errors[1]:g} px"
            shares.setdefault((row["dataset"], text), []).append((row["fsc_area"] - worst) / (best - worst))
    lines = []
    for (dataset, errors), found in shares.items():
        mean = sum(found) / len(found)
        lines.append(
            _bar(
                f"{dataset}: of the area lost to {errors}, refining poses recovers >= {RECOVERED_BAR}",
                mean,
                mean >= RECOVERED_BAR,
            )
        )
    return lines
