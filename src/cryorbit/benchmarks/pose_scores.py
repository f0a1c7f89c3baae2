"""The pose benchmark's rows: run, kept in a JSON file, printed with their spread over seeds and the bars they meet."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryorbit.benchmarks import pose_predict
from cryorbit.benchmarks.pose_phantoms import s4_projection_matching, s5_symmetry
from cryorbit.benchmarks.pose_poster import RECIPES, SIZES, Recipe, s6_poster
from cryorbit.benchmarks.pose_predict import p1_prediction
from cryorbit.benchmarks.poses import (
    BAYES,
    BAYES_CELLS,
    published_rows,
    s1_equivariance,
    s2_supervised,
    s3_refined,
)
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path

Row = dict[str, Any]
TASKS = ("S1", "S2", "S3", "S4", "S5", "S6")
"""The pose-distribution table, of one small specimen."""
MORE_TASKS = ("P1",)
"""Those of another specimen, run where asked for: P1 wants a large particle, as 4v5a."""
NAMES = ("median_deg", "within_15deg", "nll", "entropy", "coverage95", "seconds")
EXTRA = ("turn90_relative", "turn90_mse_mean", "turn90_mse_min", "turn90_mse_max", "turn17_kl", "correlation")
EXTRA = (
    *EXTRA,
    "same_argmax",
    "all_modes_found",
    "mode_share_mean_min",
    "mode_share_mean_max",
    "target_entropy",
    "mse",
    "images_per_s",
    "evaluations",
    "coefficients",
    "searched",
    "training_seconds",
)


@dataclass(frozen=True, kw_only=True)
class PoseBenchmark:
    """What to run of S1 to S6 and P1."""

    structure: Path
    """Structure file of the specimen of S1, S2, S3 and S6 (lysozyme in the published table) and P1."""
    tasks: tuple[str, ...] = TASKS
    seeds: int = 3

    def __post_init__(self) -> None:
        known = TASKS + MORE_TASKS
        if set(self.tasks) - set(known) or self.seeds < 1:
            raise BadInput(
                f"Pose benchmark: tasks {self.tasks}, {self.seeds} seeds; wanted some of {known}, >= 1 seed."
            )


def run_pose_benchmark(
    settings: PoseBenchmark, path: Path, *, published: bool = True, say: Callable[[str], None] = print
) -> list[Row]:
    """All rows; those of a task and seed that the file has already are not run again."""
    rows = _read(path)
    if published and not any(row.get("published") for row in rows):
        rows += published_rows()
    for task in settings.tasks:
        for seed in range(settings.seeds):
            if any(row["task"] == task and row["seed"] == seed for row in rows):
                continue
            made = []
            for row in _task(task, settings.structure, seed):
                made.append({"task": task, "seed": seed, "published": False, **row})
                say(line(made[-1]))
            rows += made
            with atomic_path(path) as part:
                part.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise BadFile(f"{path}: no readable rows ({error}). Name another file.") from error
    if not isinstance(rows, list):
        raise BadFile(f"{path}: wanted a list of rows. Name another file.")
    return rows


def _task(task: str, structure: Path, seed: int) -> Iterator[Row]:
    if task == "S4":
        return s4_projection_matching(seed)
    if task == "S5":
        return s5_symmetry(seed)
    with_structure = {
        "S1": s1_equivariance,
        "S2": s2_supervised,
        "S3": s3_refined,
        "S6": s6_poster,
        "P1": p1_prediction,
    }
    return with_structure[task](structure, seed)


def line(row: Row) -> str:
    """One row as text."""
    start = f"{row['task']:3s} {row['method']:42s} {_text(row.get('seed')):>4s}"
    numbers = "".join(f" {_text(row.get(name)):>13s}" for name in NAMES)
    extra = "  ".join(f"{name}={_text(row[name])}" for name in EXTRA if row.get(name) is not None)
    return f"{start}{numbers}  {extra}".rstrip()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Row]) -> str:
    """Means over seeds, +- the standard deviation, chance and Bayes among them; then the bars."""
    head = f"{'':3s} {'method':42s} {'runs':>4s}" + "".join(f" {name:>13s}" for name in NAMES)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["method"]), []).append(row)
    lines = [head]
    for members in sorted(groups.values(), key=lambda m: (m[0]["task"], bool(m[0].get("published")))):
        merged: Row = {"task": members[0]["task"], "method": members[0]["method"], "seed": len(members)}
        merged |= {name: spread([m.get(name) for m in members]) for name in (*NAMES, *EXTRA)}
        lines.append(line(merged))
    return "\n".join([*lines, "", *bars(rows)])


def spread(values: Sequence[float | None]) -> str | None:
    """Mean, and standard deviation where there are several.

    >>> spread([1.0, 3.0]), spread([2.5]), spread([None])
    ('2+-1.4', '2.5', None)
    """
    known = [float(v) for v in values if v is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.4g}"
    return f"{mean:.4g}+-{math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1)):.2g}"


def bars(rows: Sequence[Row]) -> list[str]:
    """What each task demands, and whether the mean over seeds meets it."""
    checks: list[tuple[str, bool]] = []

    def mean(task: str, method: str, name: str) -> float:
        values = [
            r[name] for r in rows if r["task"] == task and r["method"] == method and r.get(name) is not None
        ]
        return float(sum(values) / len(values)) if values else math.nan

    def add(text: str, value: float, good: Callable[[float], bool]) -> None:
        if not math.isnan(value):
            checks.append((f"{text}: {value:.4g}", good(value)))

    for method in ("slice, map", "slice, map, fine", "slice, map + learned, 10 s", "slice, learned, 20 s"):
        for reference in (BAYES, BAYES_CELLS):
            ratio = mean("S2", method, "median_deg") / mean("S2", reference, "median_deg")
            add(f"S2 {method}: median / that of {reference} <= 1.08", ratio, lambda v: v <= 1.08)
            excess = mean("S2", method, "nll") - mean("S2", reference, "nll")
            add(f"S2 {method}: NLL minus that of {reference} <= 0.2", excess, lambda v: v <= 0.2)
        coverage = mean("S2", method, "coverage95")
        add(f"S2 {method}: coverage in 0.93 .. 0.97", coverage, lambda v: 0.93 <= v <= 0.97)
    for method in ("slice, map", "slice, learned linear", "slice, learned depth 2"):
        add(f"S1 {method}: 90 degrees < 1e-5", mean("S1", method, "turn90_relative"), lambda v: v < 1e-5)
        add(f"S1 {method}: 17 degrees, KL < 0.02", mean("S1", method, "turn17_kl"), lambda v: v < 0.02)
    for name in ("slice, learned, 90 s", BAYES_CELLS):
        ratio = mean("S3", f"{name}, top 8 refined", "median_deg") / mean("S3", BAYES, "median_deg")
        add(f"S3 {name}, refined: median / Bayes <= 1.10", ratio, lambda v: v <= 1.10)
    add("S4 correlation > 0.999", mean("S4", "slice, map", "correlation"), lambda v: v > 0.999)
    add("S4 same arg-max >= 0.99", mean("S4", "slice, map", "same_argmax"), lambda v: v >= 0.99)
    for group in ("D2", "C3"):
        for method in ("slice, map", "slice, learned, 30 s"):
            low = mean("S5", f"{group}: {method}", "mode_share_mean_min")
            high = mean("S5", f"{group}: {method}", "mode_share_mean_max")
            add(f"S5 {group}, {method}: share of a mode from 0.8", low, lambda v: v >= 0.8)
            add(f"S5 {group}, {method}: share of a mode to 1.2", high, lambda v: v <= 1.2)
            found = mean("S5", f"{group}: {method}", "all_modes_found")
            add(f"S5 {group}, {method}: all modes found in 0.95 of images", found, lambda v: v >= 0.95)
    for n in SIZES:
        median = {r: mean("S6", f"{n}: {r.name}", "median_deg") for r in RECIPES}
        poster = min(median[Recipe("i2s", "1/MSE")], median[Recipe("i2s", "mask")])
        ours = median[Recipe("slice", "exact")]
        add(f"S6 {n} images: slice, NLL / best of the poster's < 1", ours / poster, lambda v: v < 1)
        pairs = (
            (Recipe("i2s", "exact"), Recipe("i2s", "mask")),
            (Recipe("slice", "exact"), Recipe("slice", "mask")),
        )
        for likelihood, mask in pairs:
            ratio = median[likelihood] / median[mask]
            add(f"S6 {n} images, same network ({likelihood.network}): NLL / mask < 1", ratio, lambda v: v < 1)
    for case in (case.name for case in pose_predict.CASES):
        ours, full = f"{case}: {pose_predict.WITH_SEARCH}", f"{case}: {pose_predict.FULL}"
        for name in ("median_deg", "mse"):
            ratio = mean("P1", ours, name) / mean("P1", full, name)
            add(f"P1 {case}: {name} / that of the full search <= 1.05", ratio, lambda v: v <= 1.05)
        for name in ("evaluations", "coefficients"):
            ratio = mean("P1", full, name) / mean("P1", ours, name)
            add(f"P1 {case}: {name} of the full search / ours >= 5", ratio, lambda v: v >= 5)
    return [f"{'met ' if good else 'MISS'} {text}" for text, good in checks]
