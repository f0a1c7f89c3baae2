"""The prior benchmark: which tasks there are, and the loop that fills a file of rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cryorbit.benchmarks.prior_cost import CostCell, CostTask, cost_table, cost_verdict
from cryorbit.benchmarks.prior_halves import OURS as DENOISED
from cryorbit.benchmarks.prior_halves import (
    HalvesCell,
    HalvesTask,
    halves_cells,
    halves_table,
    halves_verdict,
)
from cryorbit.benchmarks.prior_maps import (
    MapCell,
    MapTask,
    fingerprint,
    map_cells,
    methods_for,
)
from cryorbit.benchmarks.prior_methods import ROOMY, SamplerPlan
from cryorbit.benchmarks.prior_poses import OURS as IN_LOOP
from cryorbit.benchmarks.prior_poses import PosesCell, PosesTask, poses_table, poses_verdict
from cryorbit.benchmarks.prior_proteins import MapGrid, Protein
from cryorbit.benchmarks.prior_table import map_table, map_verdict
from cryorbit.benchmarks.prior_units import (
    UnitsCell,
    UnitsTask,
    small_point_prior,
    units_table,
    units_verdict,
)
from cryorbit.benchmarks.score import ScoreFile
from cryorbit.errors import BadInput
from cryorbit.models.point_prior import PointPrior
from cryorbit.models.volume_prior import VolumePrior

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Bench:
    """What every task is given."""

    prior: VolumePrior | None
    proteins: Sequence[Protein]
    grid: MapGrid
    plan: SamplerPlan
    scores: ScoreFile
    say: Say = print
    jobs: int = 1
    stop_at: float = float("inf")
    """Time of `time.monotonic` after which nothing new is begun."""

    @property
    def name(self) -> str:
        """The prior's fingerprint."""
        return fingerprint(self.prior)

    def take(self, rows: Iterable[Row]) -> None:
        """Add rows to the file as they are made."""
        for row in rows:
            self.scores.add(row)
            self.say(line(row))

    def known(self, key: Row) -> bool:
        """Whether the row is in the file.

        Raises
        ------
        BadInput
            If it is, but was sampled to another plan: it would stand for what was asked for now.
        """
        row = self.scores.find(key)
        if row is None:
            return False
        plan = self.plan.settings(key["method"], key["seed"])
        asked: dict[str, float] = {"steps": plan.steps, "samples": plan.samples}
        if key["method"] in ROOMY:
            asked["room"] = self.plan.room
        held = {name: row.get(name, value) for name, value in asked.items()}
        if held != asked:
            raise BadInput(
                f"{self.scores.path}: holds rows of {key['method']} with {_listed(held)}, not {_listed(asked)}. Give "
                f"{', '.join('--' + name for name in asked)} as they were, or another --json."
            )
        return True

    def each(self, cells: Sequence[Any], work: Callable[[Any], None]) -> None:
        """Work on cells, `jobs` at a time, until time is up; the first error ends it."""

        def unless_late(cell: Any) -> bool:
            if time.monotonic() > self.stop_at:
                return False
            work(cell)
            return True

        with ThreadPoolExecutor(self.jobs) as pool:
            done = list(pool.map(unless_late, cells))
        if not all(done):
            self.say(f"time is up: {done.count(False)} of {len(done)} cells left; run again to go on")


def run_maps(bench: Bench, task: MapTask, methods: Sequence[str] = ()) -> None:
    """Rows of the main task that are not in the file yet."""

    def work(cell: MapCell) -> None:
        for method in methods_for(cell, task, methods, prior=bench.prior is not None):
            if bench.known(cell.key(method, bench.name)):
                continue
            bench.take([cell.row(method, cell.run(method, bench.prior, bench.plan), bench.name)])

    bench.each(list(map_cells(bench.proteins, task, bench.grid)), work)


def run_halves(bench: Bench, task: HalvesTask) -> None:
    """Rows of the half maps that are not in the file yet."""
    prior = bench.prior

    def work(cell: HalvesCell) -> None:
        if prior is not None and not bench.known(cell.key(DENOISED, bench.name)):
            bench.take(cell.rows(prior, bench.name, bench.plan))

    bench.each(halves_cells(bench.proteins, task, bench.grid), work)


def run_poses(bench: Bench, task: PosesTask) -> None:
    """Rows of unknown poses that are not in the file yet: of the largest protein, which is the easiest to turn."""
    prior = bench.prior
    protein = max(bench.proteins, key=lambda p: p.residues)

    def work(cell: PosesCell) -> None:
        if prior is not None and not bench.scores.has(cell.key(IN_LOOP, bench.name)):
            bench.take(cell.rows(prior, bench.name))

    bench.each([PosesCell(protein, bench.grid, task, n) for n in task.images], work)


def run_cost(bench: Bench, task: CostTask) -> None:
    """Rows of the cost that are not in the file yet; one at a time, since they are timed."""
    for n in task.particles:
        cell = CostCell(bench.proteins[0], bench.grid, n)
        if bench.prior is not None and not bench.known(cell.key(bench.name)):
            bench.take([cell.row(bench.prior, bench.name, steps=bench.plan.steps)])


def run_units(bench: Bench, task: UnitsTask, prior: PointPrior | None) -> str:
    """Rows of guidance strengths that are not in the file yet; the fingerprint of the prior of chains."""
    if prior is None:
        bench.say(f"training a prior of chains: {task.training_steps} steps")
        prior = small_point_prior(task.training_steps)
    name = fingerprint(prior)
    protein = next((p for p in bench.proteins if p.name == "6lyz"), bench.proteins[0])
    for views in task.unit_views:
        cell = UnitsCell(protein, views, task)
        if not all(bench.scores.has(cell.key(strength, name)) for strength in task.strengths):
            bench.take(cell.rows(prior, name))
    return name


def tables(rows: Sequence[Row]) -> str:
    """All tasks that there are rows of."""
    found = (map_table(rows), halves_table(rows), poses_table(rows), cost_table(rows), units_table(rows))
    return "\n\n".join(text for text in found if text)


def verdict(rows: Sequence[Row], prior: str, chains: str = "") -> list[str]:
    """The bars of all tasks that there are rows of, for one prior of maps and one of chains."""
    return [
        *map_verdict(rows, prior),
        *halves_verdict(rows, prior),
        *poses_verdict(rows, prior),
        *cost_verdict(rows, prior),
        *(units_verdict(rows, chains) if chains else []),
    ]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def line(row: Row) -> str:
    """A row in words, as it is made."""
    where = f"{row['task']}: {row['protein']}, {row['views']} images, SNR {row['snr']:g}, seed {row['seed']}"
    told = ("pearson", "fsc_area", "coverage90", "pose_error_deg", "rmsd_A", "seconds_per_step")
    values = [f"{name} {row[name]:.3f}" for name in told if row.get(name)]
    return f"{where}: {row['method']}: {', '.join(values)}, {row['seconds']:.1f} s"
