"""`cryorbit bench flex`: methods for heterogeneity on data sets with known states, kept in a JSON file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from cryorbit.benchmarks.flex import KEY, FlexBenchmark, run_benchmark
from cryorbit.benchmarks.flex_methods import chosen
from cryorbit.benchmarks.flex_table import table, verdict
from cryorbit.benchmarks.flex_tasks import FlexTask
from cryorbit.benchmarks.score import ScoreFile
from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions, cores, set_threads
from cryorbit.cli.progress import say
from cryorbit.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Score methods for heterogeneity beside one consensus map, the true states and linear analysis.

    Rows that are in the file are not run again. Exit code 1 where ours misses a bar.
    """

    json: Annotated[Path, tyro.conf.arg(metavar="OUT.json")]
    """File of the rows; a benchmark that was stopped goes on with it."""
    method: tuple[str, ...] = ()
    """Methods, by name or the beginning of it: chance, oracle, linear, "MLP decoder", ours, with pose errors also "ours,
    poses refined"; these unless given. More: "ours, image encoder"; "linear, kernel volumes", of fewer maps."""
    benchmark: Annotated[FlexBenchmark, Flat] = field(default_factory=FlexBenchmark)
    task: Annotated[FlexTask, Flat] = field(default_factory=FlexTask)
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Run what is not in the file yet and print the table; exit code 1 if a bar is missed."""
    folder = settings.benchmark.structures
    if folder is not None and not folder.is_dir():
        raise BadInput(f"--structures {folder}: no such folder. Name the one with the structure files.")
    set_threads(settings.threads or cores())
    task = settings.task
    methods = chosen(settings.method, pose_errors=task.pose_error_deg > 0 or task.pose_error_px > 0)
    scores = ScoreFile(settings.json, key=KEY)
    run_benchmark(settings.benchmark, task, methods, scores, say=say)
    print(table(scores.rows))
    return 1 if any(text.startswith("MISS") for text in verdict(scores.rows)) else 0
