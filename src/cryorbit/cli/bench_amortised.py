"""`cryorbit bench amortised`: encoders, losses and the hybrid on the same simulated stacks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.benchmarks.amortised_tasks import methods_of
from cryorbit.benchmarks.tasks import Cell, RunFailed, cells, command, simulation_options, structure_name
from cryorbit.cli.bench import stamp, threads_of
from cryorbit.cli.options import ComputeOptions, prepare
from cryorbit.cli.progress import say
from cryorbit.errors import BadInput

if TYPE_CHECKING:
    from cryorbit.benchmarks.score import ScoreFile
    from cryorbit.cli.bench import Settings

ORACLE, CHANCE = "oracle (true poses)", "chance (random poses)"


def run_methods(settings: Settings, scores: ScoreFile, work: Path) -> int:
    """All methods of all cells that have no row yet, one after the other; how many cells failed."""
    from cryorbit.benchmarks.amortised import verdict
    from cryorbit.benchmarks.score import json_number

    sizes = settings.amortised.sizes
    task = replace(settings.task, n_particles=settings.task.n_particles or sizes.n_particles)
    settings = replace(settings, task=task)
    scale = {"box_px": min(sizes.box_px, task.box), "width": sizes.width, "images": task.n_particles}
    refuse_other_scale(scores, scale)
    device = prepare(ComputeOptions(device=settings.amortised.device, threads=threads_of(settings))).type
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
            for row in rows_of_cell(cell, todo, settings, work, device=device):
                scores.add({**key, **row, **stamp(settings), **scale})
        except RunFailed as error:
            failures += 1
            say(f"{cell.name}: FAILED: {error}")
    for line in verdict([row for row in scores.rows if not row.get("published")]):
        say(line)
    if settings.amortised.scale == "full":
        say(published_line())
    return failures


def refuse_other_scale(scores: ScoreFile, scale: Mapping[str, Any]) -> None:
    """Raise BadInput if the file holds rows of another scale, which would pass for those that are asked for."""
    for row in scores.rows:
        other = {name: row[name] for name, value in scale.items() if row.get(name, value) != value}
        if other:
            was = ", ".join(f"{name} {value}" for name, value in other.items())
            now = ", ".join(f"{name} {scale[name]}" for name in other)
            raise BadInput(f"{scores.path}: holds rows of {was}, wanted {now}. Name another --json.")


def published_line() -> str:
    """What a run at full scale stands beside.

    >>> published_line()
    'published: D4 L2, 80S, SNR 1: 1071 s to convergence, mse 0.0032, 10.65 A, 100,000 images of 128 px'
    """
    from cryorbit.benchmarks.score import published_rows

    wanted = {"structure": "80S", "snr": 1.0, "method": "published: D4 L2"}
    (row,) = (r for r in published_rows() if all(r[k] == v for k, v in wanted.items()))
    return (
        f"{row['method']}, {row['structure']}, SNR {row['snr']:g}: {row['seconds']} s to convergence, "
        f"mse {row['mse']}, {row['fsc05_truth_A']} A, 100,000 images of 128 px"
    )


def rows_of_cell(
    cell: Cell, methods: list[str], settings: Settings, work: Path, *, device: str = "cpu"
) -> Any:
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
            row = run_method(method, prepared, settings.amortised, seed=cell.seed, device=device)
        rate = f", {row['images_per_second']:.0f} images/s" if "images_per_second" in row else ""
        say(
            f"{cell.name}: {method}: mse {row['mse']:.4g}, {row['image_visits']} visits, {row['seconds']} s{rate}"
        )
        yield {"method": method, **row}
    (folder / "data" / "particles.mrcs").unlink()
