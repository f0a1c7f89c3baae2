"""`cryorbit bench refine`: stacks refined from ab initio's poses and from the true ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.benchmarks.refine_tasks import STARTS, Start, prepare_stack, refine_from, row_of, verdict
from cryorbit.benchmarks.tasks import Cell, RunFailed, cells, structure_name
from cryorbit.cli.bench import stamp, threads_of
from cryorbit.cli.progress import say

if TYPE_CHECKING:
    from cryorbit.benchmarks.score import ScoreFile
    from cryorbit.cli.bench import Settings


def run_refinements(settings: Settings, scores: ScoreFile, work: Path) -> int:
    """Both starts of all cells that have no row yet, one after the other; how many cells failed."""
    from cryorbit.benchmarks.score import json_number

    names = [str(path.absolute() if path.exists() else path) for path in settings.structure]
    failures = 0
    for cell in cells(names, settings.task):
        key = {"structure": structure_name(cell.structure), "snr": json_number(cell.snr), "seed": cell.seed}
        todo: list[Start] = [
            start for start in STARTS if not scores.has(key | {"method": f"refine from {start}"})
        ]
        if not todo:
            continue
        try:
            for row in rows_of_cell(cell, todo, settings, work):
                scores.add({**key, **row, **stamp(settings)})
        except RunFailed as error:
            failures += 1
            say(f"{cell.name}: FAILED: {error}")
    field_A = settings.task.box * settings.task.pixel_size_A
    ours = [row for row in scores.rows if row.get("start")]
    for line in verdict(ours, shells={(r["structure"], r["snr"], r["seed"]): field_A for r in ours}):
        say(line)
    return failures


def rows_of_cell(cell: Cell, starts: list[Start], settings: Settings, work: Path) -> Iterator[dict[str, Any]]:
    """Chance, the true poses, and a row per start; the images are removed at the end."""
    import torch

    from cryorbit.benchmarks.score import chance_row, rows_of_run
    from cryorbit.io.particles import read_particles, require_pose

    threads, task = threads_of(settings), settings.task
    ctf_from = None if settings.ctf_from is None else settings.ctf_from.absolute()
    folder = prepare_stack(cell, task, work=work, threads=threads, ctf_from=ctf_from)
    truth = require_pose(read_particles(folder / "data" / "truth.star", images="absent"))
    chance = chance_row(truth, generator=torch.Generator().manual_seed(cell.seed))
    yield {"method": "chance (random poses)", **chance}
    for start in starts:
        numbers = refine_from(start, folder, seed=cell.seed, threads=threads)
        row = row_of(start, numbers, images=task.images)
        say(
            f"{cell.name}: from {start}: mse {row['mse']:.3g}, half maps {row['fsc0143_half_A']:.2f} A, "
            f"{row['seconds_per_1000']:.1f} s per 1,000 images"
        )
        yield row
        if start == STARTS[-1]:
            yield {"method": "oracle (true poses)", **rows_of_run(numbers)["oracle (true poses)"]}
    (folder / "data" / "particles.mrcs").unlink()
