"""`cryorbit bench amortised`: encoders, losses and the hybrid on the same simulated stacks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.benchmarks.amortised_tasks import full_scale, methods_of
from cryorbit.benchmarks.tasks import Cell, RunFailed, cells, command, simulation_options, structure_name
from cryorbit.cli.bench import stamp, threads_of
from cryorbit.cli.progress import say

if TYPE_CHECKING:
    from cryorbit.benchmarks.score import ScoreFile
    from cryorbit.cli.bench import Settings

ORACLE, CHANCE = "oracle (true poses)", "chance (random poses)"


def run_methods(settings: Settings, scores: ScoreFile, work: Path) -> int:
    """All methods of all cells that have no row yet, one after the other; how many cells failed."""
    from cryorbit.benchmarks.amortised import verdict
    from cryorbit.benchmarks.score import json_number

    if settings.amortised.scale == "full":
        settings = replace(
            settings,
            amortised=full_scale(settings.amortised),
            task=replace(settings.task, n_particles=100_000, box=128),
        )
    names = [str(path.absolute() if path.exists() else path) for path in settings.structure]
    failures = 0
    for cell in cells(names, settings.task):
        key = {"structure": structure_name(cell.structure), "snr": json_number(cell.snr), "seed": cell.seed}
        todo = [
            m
            for m in (CHANCE, ORACLE, *methods_of(settings.amortised))
            if not scores.has(key | {"method": m})
        ]
        if not todo:
            continue
        try:
            for row in rows_of_cell(cell, todo, settings, work):
                scores.add({**key, **row, **stamp(settings), "box_px": settings.amortised.box_px})
        except RunFailed as error:
            failures += 1
            say(f"{cell.name}: FAILED: {error}")
    for line in verdict([row for row in scores.rows if not row.get("published")]):
        say(line)
    return failures


def rows_of_cell(cell: Cell, methods: list[str], settings: Settings, work: Path) -> Any:
    """Simulate the cell's stack, run each method on it, and remove the images."""
    import torch

    from cryorbit.benchmarks.amortised import Prepared, oracle_row, run_method
    from cryorbit.benchmarks.score import chance_row

    folder = work / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    threads = threads_of(settings)
    ctf_from = None if settings.ctf_from is None else settings.ctf_from.absolute()
    options = simulation_options(cell, settings.task, ctf_from)
    command(
        "simulate", cell.structure, "-o", folder / "data", *options, threads=threads, log=folder / "log.txt"
    )
    torch.set_num_threads(threads)
    prepared = Prepared.of(folder / "data", settings.amortised)
    for method in methods:
        if method == CHANCE:
            row = chance_row(prepared.truth, generator=torch.Generator().manual_seed(cell.seed))
            row |= {"decoder": None, "steps": 0}
        elif method == ORACLE:
            row = oracle_row(prepared)
        else:
            row = run_method(method, prepared, settings.amortised, seed=cell.seed)
        say(f"{cell.name}: {method}: mse {row['mse']:.4g}, {row['image_visits']} visits, {row['seconds']} s")
        yield {"method": method, **row}
    (folder / "data" / "particles.mrcs").unlink()
