"""The benchmark's table: its rows, their file, chance, published values, and how it is printed."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cryorbit.analysis.pose_error import pose_errors
from cryorbit.data import Pose
from cryorbit.errors import BadFile
from cryorbit.geometry.rotations import random_rotations
from cryorbit.io.atomic import atomic_path

CONVERGED_BELOW = 0.1
"""Mean squared Frobenius error below which a run has found the poses: 12.8 degrees."""

KEY = ("structure", "snr", "seed", "method")
"""What makes a row the same row."""

COLUMNS = ("mse", "medse", "converged", "seconds", "image_visits", "fsc05_truth_A")

_PUBLISHED = (
    # structure, SNR, method, MSE, MedSE, seconds, resolution in angstrom, share of converged runs
    ("spliceosome", math.inf, "standard L_sym", 0.0040, 0.0030, 2818, 11.26, 0.625),
    ("spliceosome", math.inf, "C4 L_mir", 0.0008, 0.0005, 1457, 11.11, 1.0),
    ("spliceosome", math.inf, "D4 L2", 0.0004, 0.0003, 1239, 10.88, 0.875),
    ("80S", math.inf, "standard L_sym", 0.0041, 0.0030, 2564, 10.20, 1.0),
    ("80S", math.inf, "C4 L_mir", 0.0010, 0.0006, 791, 10.05, 1.0),
    ("80S", math.inf, "D4 L2", 0.0005, 0.0004, 774, 9.72, 0.875),
    ("spliceosome", 1.0, "standard L_sym", 0.3232, 0.0077, None, 12.72, 0.125),
    ("spliceosome", 1.0, "C4 L_mir", 0.0014, 0.0010, 1181, 11.33, 0.875),
    ("spliceosome", 1.0, "D4 L2", 0.0010, 0.0007, 1624, 11.03, 0.5),
    ("80S", 1.0, "standard L_sym", 0.0102, 0.0070, 3093, 11.22, 0.75),
    ("80S", 1.0, "C4 L_mir", 0.0038, 0.0027, 1386, 10.97, 1.0),
    ("80S", 1.0, "D4 L2", 0.0032, 0.0023, 1071, 10.65, 1.0),
    ("80S", 0.5, "D4 L2", 0.0021, 0.0014, 1850.6, 9.75, None),
    ("80S", 0.25, "D4 L2", 1.4671, 0.1627, None, 22.98, None),
    ("80S", 0.25, "standard", 0.7455, 0.0546, None, 16.09, None),
)
"""As printed in "Equivariant amortized inference of poses for cryo-EM": other structures, 100,000 images.

SNR inf and 1 are means over the best three of eight seeds, the others the best of five. Not run by us.
"""


def published_rows() -> list[dict[str, Any]]:
    """Rows that others printed, marked so.

    >>> {row["published"] for row in published_rows()}
    {True}
    """
    return [
        {
            "structure": structure,
            "snr": json_number(snr),
            "seed": None,
            "method": f"published: {method}",
            "mse": mse,
            "medse": medse,
            "converged": mse < CONVERGED_BELOW,
            "converged_share": share,
            "seconds": seconds,
            "image_visits": None,
            "fsc05_truth_A": resolution,
            "published": True,
        }
        for structure, snr, method, mse, medse, seconds, resolution, share in _PUBLISHED
    ]


def json_number(value: float) -> float | str:
    """The number, or the word for what JSON has no number for.

    >>> json_number(0.1), json_number(math.inf)
    (0.1, 'inf')
    """
    return value if math.isfinite(value) else str(value)


def chance_row(truth: Pose, *, generator: torch.Generator) -> dict[str, Any]:
    """What random poses score against these true ones."""
    rotation = random_rotations(len(truth), generator=generator, dtype=torch.float64)
    errors = pose_errors(Pose(rotation, torch.zeros(len(truth), 2, dtype=torch.float64)), truth)
    return _row_of({"mse": errors.mse, "medse": errors.medse}, seconds=0.0, visits=0)


def rows_of_run(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that one evaluated run gives: its own, and the oracle's from the same images."""
    ours = _row_of(numbers, seconds=numbers.get("seconds"), visits=numbers.get("image_visits"))
    extra = ("hand", "hand_a", "hand_b", "hand_union", "rotation_error_deg_median", "shift_error_A_median")
    more = (*extra, "fsc05_truth_masked_A", "fsc0143_half_A", "seconds_computing", "verdict")
    ours |= {name: numbers[name] for name in more if name in numbers}
    oracle = _row_of({"mse": 0.0, "medse": 0.0}, seconds=None, visits=numbers.get("particles"))
    oracle |= {
        name: numbers.get(f"oracle_{name}")
        for name in ("fsc05_truth_A", "fsc05_truth_masked_A")
        if f"oracle_{name}" in numbers
    }
    return {"cryorbit": ours, "oracle (true poses)": oracle}


def _row_of(numbers: Mapping[str, Any], *, seconds: float | None, visits: int | None) -> dict[str, Any]:
    return {
        "mse": numbers["mse"],
        "medse": numbers["medse"],
        "converged": numbers["mse"] < CONVERGED_BELOW,
        "seconds": seconds,
        "image_visits": visits,
        "fsc05_truth_A": numbers.get("fsc05_truth_A"),
        "published": False,
    }


class ScoreFile:
    """Rows in a JSON file (a list), complete at any moment, safe to add to from several threads.

    Parameters
    ----------
    key
        Fields that make a row the same row.
    """

    def __init__(self, path: str | os.PathLike[str], *, key: Sequence[str] = KEY) -> None:
        self.path, self.key = Path(path), tuple(key)
        self._lock = threading.Lock()
        self.rows: list[dict[str, Any]] = self._read()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        try:
            rows = json.loads(self.path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise BadFile(f"{self.path}: no readable rows ({error}). Name another file.") from error
        if not isinstance(rows, list):
            raise BadFile(f"{self.path}: wanted a list of rows. Name another file.")
        return rows

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether there is a row of the same key: structure, SNR, seed and method unless told otherwise."""
        return self.find(row) is not None

    def find(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The first row of the same key, None where there is none."""
        same = (known for known in self.rows if all(known.get(name) == row[name] for name in self.key))
        return next(same, None)

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Append the rows that are not there yet, and write the file."""
        with self._lock:
            self.rows += [dict(row) for row in rows if not self.has(row)]
            with atomic_path(self.path) as part:
                part.write_text(json.dumps(self.rows, indent=1) + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text, one cell's runs together, the median of each cell and method below them."""
    head = f"{'structure':14s} {'SNR':>6s} {'seed':>4s}  {'method':28s}"
    lines = [head + "".join(f" {name:>13s}" for name in COLUMNS)]
    order = sorted(rows, key=_order)
    for row in order:
        lines.append(_line(row, str("-" if row["seed"] is None else row["seed"])))
    return "\n".join([*lines, *_medians(order)])


def _order(row: Mapping[str, Any]) -> tuple:
    return (bool(row.get("published")), row["structure"], -float(row["snr"]), row["method"], row["seed"] or 0)


def _line(row: Mapping[str, Any], seed: str) -> str:
    start = f"{row['structure'][:14]:14s} {float(row['snr']):6g} {seed:>4s}  {row['method'][:28]:28s}"
    return start + "".join(f" {_cell(row.get(name)):>13s}" for name in COLUMNS)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _medians(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if not row.get("published"):
            groups.setdefault((row["structure"], row["snr"], row["method"]), []).append(row)
    lines = ["", "medians over seeds"]
    for members in groups.values():
        middle: dict[str, Any] = {name: _median([m.get(name) for m in members]) for name in COLUMNS}
        middle["converged"] = f"{sum(bool(m['converged']) for m in members)}/{len(members)}"
        lines.append(_line({**members[0], **middle}, str(len(members))))
    return lines


def _median(values: Sequence[Any]) -> float | None:
    known = sorted(float(v) for v in values if v is not None and not isinstance(v, bool))
    if not known:
        return None
    half = len(known) // 2
    return known[half] if len(known) % 2 else 0.5 * (known[half - 1] + known[half])
