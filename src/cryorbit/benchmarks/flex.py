"""The heterogeneity benchmark: methods on data sets with known states, between one consensus map and the true states."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cryorbit.benchmarks.flex_bounds import chance_areas, oracle_areas, recovered_share
from cryorbit.benchmarks.flex_methods import CHANCE, ORACLE, Outcome, Say, run_method
from cryorbit.benchmarks.flex_recipes import RECIPES
from cryorbit.benchmarks.flex_scores import FscAreas, image_fsc_areas, latent_score, sample_rows
from cryorbit.benchmarks.flex_tasks import FlexData, FlexTask, flex_data
from cryorbit.benchmarks.score import ScoreFile
from cryorbit.errors import BadInput

Row = dict[str, Any]

CONDITION = ("images", "box", "snr", "pose_error_deg", "pose_error_px")
"""What a row was measured under."""
KEY = ("dataset", "method", "seed", *CONDITION)
"""What makes a row the same row."""
MADE_UP = ("hinge", "hinge-circle", "lobes")
"""Data sets that need no structure file."""


@dataclass(frozen=True, kw_only=True)
class FlexBenchmark:
    """Which data sets, and how each method is run."""

    dataset: tuple[str, ...] = ()
    """Recipes; with --structures all of them unless given, else the three that need no file."""
    structures: Path | None = None
    """Folder with 1igt, adk_closed, adk_dims.dcd and 4v5a, as PDB or mmCIF; folders in it are searched too."""
    seeds: int = 3
    """Runs of each data set and method, of the seeds --seed, --seed + 1, ...; each has images of its own."""
    max_minutes: float = 15.0
    """Learning stops after this time, and the method is scored as it stands."""
    decoded: int = 100
    """Images whose maps are compared with the true ones, spread over the states; the same for all methods."""

    def __post_init__(self) -> None:
        unknown = set(self.dataset) - set(RECIPES)
        if unknown:
            raise BadInput(
                f"--dataset {' '.join(sorted(unknown))}: no such data set. Choose from {', '.join(RECIPES)}."
            )
        if self.seeds < 1 or self.max_minutes <= 0 or self.decoded < 1:
            raise BadInput(
                f"--seeds {self.seeds} --max-minutes {self.max_minutes:g} --decoded {self.decoded}: "
                "wanted at least one seed, some time and one decoded image."
            )

    def cells(self, task: FlexTask) -> list[tuple[str, FlexTask]]:
        """Data sets and what to simulate of them, seed by seed, so that a benchmark cut short has each set in it."""
        names = self.dataset or (MADE_UP if self.structures is None else tuple(RECIPES))
        seeds = range(task.seed, task.seed + self.seeds)
        return [(name, replace(task, seed=seed)) for seed in seeds for name in names]


def key_of(name: str, method: str, task: FlexTask) -> Row:
    """The fields that tell one row from another."""
    about = {"snr": str(task.snr) if task.snr == float("inf") else task.snr}
    for item in CONDITION:
        about.setdefault(item, getattr(task, item))
    return {"dataset": name, "method": method, "seed": task.seed} | about


def run_benchmark(
    settings: FlexBenchmark,
    task: FlexTask,
    methods: Sequence[str],
    scores: ScoreFile,
    *,
    say: Say = print,
) -> None:
    """Run what is not in the file yet; chance and the oracle come with every data set."""
    for name, one in settings.cells(task):
        todo = [m for m in methods if not scores.has(key_of(name, m, one))]
        if not todo:
            continue
        say(f"{name}, seed {one.seed}: simulating {one.images} images of {one.box} px")
        cell = _Cell(settings, flex_data(name, one, structures=settings.structures), one, scores, say)
        for row in cell.rows(todo):
            scores.add(row)
            say(line(row))


@dataclass(frozen=True, eq=False)
class _Cell:
    """One data set: its images, and the bounds that every row quotes."""

    settings: FlexBenchmark
    data: FlexData
    task: FlexTask
    scores: ScoreFile
    say: Say

    def rows(self, methods: Sequence[str]) -> Iterator[Row]:
        """The bounds if they are not known yet, then a row per method."""
        sampled = sample_rows(self.data, self.settings.decoded)
        chance, chance_is_new = self._bound(CHANCE, lambda: chance_areas(self.data, sampled))
        oracle, oracle_is_new = self._bound(ORACLE, lambda: oracle_areas(self.data, sampled))
        for row, new in ((chance, chance_is_new), (oracle, oracle_is_new)):
            if new:
                yield self._filled(row, chance, oracle)
        for method in methods:
            if method in (CHANCE, ORACLE):
                continue
            self.say(f"{self.data.name}, seed {self.task.seed}: {method}")
            outcome = run_method(
                method, self.data, self.task, max_minutes=self.settings.max_minutes, say=self.say
            )
            yield self._filled(self._measured(method, outcome), chance, oracle)

    def _bound(self, method: str, measure: Callable[[], FscAreas]) -> tuple[Row, bool]:
        known = self.scores.find(key_of(self.data.name, method, self.task))
        if known is not None:
            return known, False
        start = time.monotonic()
        areas = measure()
        # Latents drawn at random say what a score is worth; those of the oracle are the states.
        random = torch.randn(
            len(self.data), 2, generator=torch.Generator().manual_seed(self.task.seed), dtype=torch.float64
        )
        drawn = latent_score(self.data, random)
        row = key_of(self.data.name, method, self.task) | {
            "score_name": drawn.name,
            "score": drawn.value if method == CHANCE else 1.0,
            "chance_score": drawn.chance,
            "fsc_area": areas.mean,
            "fsc_area_masked": float(areas.masked.mean()),
            "seconds": round(time.monotonic() - start, 1),
        }
        return row, True

    def _measured(self, method: str, outcome: Outcome) -> Row:
        start = time.monotonic()
        score = latent_score(self.data, outcome.latents, outcome.precision, label=outcome.label)
        wanted = min(self.settings.decoded, outcome.maps or self.settings.decoded)
        areas = image_fsc_areas(self.data, outcome.decode, sample_rows(self.data, wanted))
        return key_of(self.data.name, method, self.task) | {
            "score_name": score.name,
            "score": score.value,
            "chance_score": score.chance,
            "fsc_area": areas.mean,
            "fsc_area_masked": float(areas.masked.mean()),
            "seconds": round(outcome.seconds, 1),
            "seconds_scoring": round(time.monotonic() - start, 1),
            "decoded": wanted,
            **outcome.about,
        }

    def _filled(self, row: Row, chance: Row, oracle: Row) -> Row:
        """With the bounds, and the share of the way between them."""
        bounds = {"oracle_fsc_area": oracle["fsc_area"], "chance_fsc_area": chance["fsc_area"]}
        share = {
            f"recovered_share{end}": _finite(
                recovered_share(
                    row[f"fsc_area{end}"], chance=chance[f"fsc_area{end}"], oracle=oracle[f"fsc_area{end}"]
                )
            )
            for end in ("", "_masked")
        }
        about = {"pixel_size_A": self.data.stack.pixel_size_A, "threads": torch.get_num_threads()}
        return row | bounds | share | about


def _finite(value: float) -> float | None:
    return value if value == value else None


def line(row: Row) -> str:
    """A row in words, as it is made."""
    share = row.get("recovered_share")
    return (
        f"{row['dataset']}, seed {row['seed']}: {row['method']}: {row['score_name']} {row['score']:.3f}, "
        f"fsc area {row['fsc_area']:.4f} ({row['fsc_area'] / row['oracle_fsc_area']:.3f} of the oracle's"
        f"{'' if share is None else f', {share:.2f} of the way from chance'}), {row['seconds']:.0f} s"
    )
