"""`cryorbit bench abinitio`: runs on simulated stacks, scored against their truth, kept in a JSON file."""

from __future__ import annotations

import json as json_format
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cryorbit import __version__
from cryorbit.benchmarks.amortised_tasks import AmortisedBenchmark
from cryorbit.benchmarks.tasks import (
    BenchmarkSettings,
    Cell,
    RunFailed,
    cells,
    command,
    run_cell,
    structure_name,
)
from cryorbit.cli.bench_poses import PoseTask
from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions, cores
from cryorbit.cli.progress import say
from cryorbit.errors import BadInput

if TYPE_CHECKING:
    from cryorbit.benchmarks.score import ScoreFile

PEER_STACK = {"n_particles": 2000, "box": 32, "pixel_size_A": 15.0, "snr": 1.0, "shift_sd_A": 0.0}
"""The stack on which a peer is compared."""

PEER_TIMES = 100.0
"""The peer is stopped at this many times our own time."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Run ab initio on simulated stacks and score it; rows that are in the file are not run again.

    `cryorbit bench flex`, heterogeneity, has options of its own: see its --help.
    """

    what: tyro.conf.Positional[Literal["abinitio", "refine", "amortised", "poses"]]
    """Which benchmark."""
    json: Annotated[Path, tyro.conf.arg(metavar="OUT.json")]
    """File of the rows; a benchmark that was stopped goes on with it."""
    structure: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...")] = (Path("synthetic"),)
    """Structures or maps; `synthetic` is the built-in complex."""
    ctf_from: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw CTF parameters from this file instead of from --defocus-um."""
    task: Annotated[BenchmarkSettings, Flat] = field(default_factory=BenchmarkSettings)
    amortised: Annotated[AmortisedBenchmark, Flat] = field(default_factory=AmortisedBenchmark)
    pose_tasks: Annotated[tuple[PoseTask, ...], tyro.conf.arg(metavar="S1 ...")] = (
        "S1",
        "S2",
        "S3",
        "S4",
        "S5",
        "S6",
    )
    """Tasks of `bench poses`, which wants one structure, and runs on one thread unless --threads says more. P1 is
    `poses train` and `poses predict` against the full search: give it a large particle, as 4v5a."""
    jobs: int = 1
    """Runs at a time; the cores are shared out among them."""
    threads: int | None = None
    """CPU threads of a run; the cores divided by --jobs unless given."""
    peer: Literal["cryodrgn"] | None = None
    """Compare times with this program, on a small stack that it can do on a CPU."""
    peer_command: Literal["abinit", "abinit_homo_old"] = "abinit"
    """Which of the peer's commands: its present one, or the one before it."""
    work: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for stacks, runs and the peer; OUT.work beside OUT.json unless given."""
    published: bool = True
    """Add published rows, marked so."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Run what is not in the file yet and print the table; exit code 1 if a run failed."""
    from cryorbit.benchmarks.score import ScoreFile, published_rows, table

    if settings.jobs < 1 or settings.task.seeds < 0:
        raise BadInput(f"--jobs {settings.jobs} --seeds {settings.task.seeds}: wanted at least 1 and 0.")
    for path in settings.structure:
        if str(path) != "synthetic" and not path.exists():
            raise BadInput(f"{path}: there is no such structure. Correct the path.")
    if settings.what == "poses":
        from cryorbit.cli.bench_poses import run_poses

        return run_poses(settings)
    scores = ScoreFile(settings.json)
    work = (settings.work or settings.json.with_suffix(".work")).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if settings.published:
        scores.add(*published_rows())
    if settings.what == "amortised":
        from cryorbit.cli.bench_amortised import run_methods

        failures = run_methods(settings, scores, work)
    elif settings.what == "refine":
        from cryorbit.cli.bench_refine import run_refinements

        failures = run_refinements(settings, scores, work)
    elif settings.peer is not None:
        compare_with_peer(settings, scores, work)
        failures = 0
    else:
        failures = run_cells(settings, scores, work)
    print(table(scores.rows))
    return 1 if failures else 0


def run_cells(settings: Settings, scores: ScoreFile, work: Path) -> int:
    """All cells that have no row yet, `jobs` at a time; how many failed."""
    from cryorbit.benchmarks.score import json_number

    todo = []
    for cell in cells(
        [str(path.absolute() if path.exists() else path) for path in settings.structure], settings.task
    ):
        key = {"structure": structure_name(cell.structure), "snr": json_number(cell.snr), "seed": cell.seed}
        if not scores.has(key | {"method": "cryorbit"}):
            todo.append((cell, key))
    say(f"{len(todo)} runs to do, {settings.jobs} at a time, {threads_of(settings)} thread(s) each")
    failures = 0
    with ThreadPoolExecutor(settings.jobs) as pool:
        waiting = {pool.submit(one_cell, cell, settings, work): (cell, key) for cell, key in todo}
        for done in as_completed(waiting):
            cell, key = waiting[done]
            try:
                rows = done.result()
            except RunFailed as error:
                failures += 1
                say(f"{cell.name}: FAILED: {error}")
                continue
            scores.add(*({**key, **row, **stamp(settings)} for row in rows))
            ours = rows[0]
            say(f"{cell.name}: mse {ours['mse']:.4g} medse {ours['medse']:.4g} in {ours['seconds']:.0f} s")
    return failures


def threads_of(settings: Settings) -> int:
    """Threads of one run."""
    return settings.threads or max(1, cores() // settings.jobs)


def stamp(settings: Settings) -> dict[str, Any]:
    """When, with what and on how much a row was measured."""
    return {
        "n_particles": settings.task.images,
        "box": settings.task.box,
        "pixel_size_A": settings.task.pixel_size_A,
        "version": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "threads": threads_of(settings),
        "jobs": settings.jobs,
    }


def one_cell(cell: Cell, settings: Settings, work: Path) -> list[dict[str, Any]]:
    """The rows of one cell: ours, the oracle's, chance."""
    import torch

    from cryorbit.benchmarks.score import chance_row, rows_of_run
    from cryorbit.io.particles import read_particles, require_pose

    ctf_from = None if settings.ctf_from is None else settings.ctf_from.absolute()
    numbers = run_cell(cell, settings.task, work=work, threads=threads_of(settings), ctf_from=ctf_from)
    rows = [{"method": method, **row} for method, row in rows_of_run(numbers).items()]
    truth = require_pose(read_particles(work / cell.name / "data" / "truth.star", images="absent"))
    chance = chance_row(truth, generator=torch.Generator().manual_seed(cell.seed))
    return [*rows, {"method": "chance (random poses)", **chance}]


def compare_with_peer(settings: Settings, scores: ScoreFile, work: Path) -> None:
    """Our time and the peer's on the same small stack and cores, to poses that are right."""
    import torch

    from cryorbit.benchmarks.peers import install, run_peer
    from cryorbit.benchmarks.score import chance_row
    from cryorbit.io.particles import read_particles, require_pose

    structure = settings.structure[0]
    name, threads = structure_name(str(structure)), settings.threads or cores()
    folder = work / f"peer_{name}"
    programs = install(work / "cryodrgn", say=say)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data, out, log = folder / "data", folder / "run", folder / "log.txt"
    options = [word for key, value in PEER_STACK.items() for word in (f"--{key.replace('_', '-')}", value)]
    model = structure.absolute() if structure.exists() else structure
    command("simulate", model, "-o", data, *options, "--seed", 1000, threads=threads, log=log)
    star = data / "particles.star"
    seconds = command("abinitio", star, "-o", out, "--threads", threads, threads=threads, log=log)
    truth = ("--truth", data / "truth.star", "--truth-map", data / "truth.mrc")
    command("evaluate", out, *truth, threads=threads, log=log)
    ours = json_format.loads((out / "evaluation.json").read_text())
    say(f"cryorbit: mse {ours['mse']:.4g} after {seconds:.1f} s (from command to report)")
    true_pose = require_pose(read_particles(data / "truth.star", images="absent"))
    peer = run_peer(
        programs,
        star,
        true_pose,
        command=settings.peer_command,
        work=folder,
        limit_s=PEER_TIMES * seconds,
        threads=threads,
        seed=0,
    )
    key = {"structure": name, "snr": PEER_STACK["snr"], "seed": 0}
    stack = {k: PEER_STACK[k] for k in ("n_particles", "box", "pixel_size_A")}
    about = {**stamp(settings), **stack, "threads": threads, "jobs": 1, "published": False}
    last = peer.trace[-1][1] if peer.trace else None
    method = f"cryodrgn {peer.version} {settings.peer_command}"
    theirs = {"mse": last, "medse": None, "converged": peer.reached, "seconds": round(peer.seconds, 1)}
    rows = [
        {"method": "cryorbit, peer's stack", "seconds": round(seconds, 2), **_scores(ours)},
        {"method": method, **theirs, "image_visits": None, "fsc05_truth_A": None, "trace": peer.trace},
        {
            "method": "chance (random poses), peer's stack",
            **chance_row(true_pose, generator=torch.Generator().manual_seed(0)),
        },
    ]
    scores.add(*({**key, **row, **about} for row in rows))
    print(ratio_line(seconds, ours["mse"], peer.seconds, reached=peer.reached, name=method))


def _scores(numbers: dict[str, Any]) -> dict[str, Any]:
    names = ("mse", "medse", "converged", "image_visits", "fsc05_truth_A")
    return {name: numbers.get(name) for name in names}


def ratio_line(ours_s: float, mse: float, peer_s: float, *, reached: bool, name: str) -> str:
    """The comparison in one line.

    >>> ratio_line(10.0, 0.01, 1000.0, reached=False, name="peer")
    'time to MSE < 0.1: cryorbit 10.0 s (mse 0.01), peer not within 1000 s: ratio >= 100'
    """
    start = f"time to MSE < 0.1: cryorbit {ours_s:.1f} s (mse {mse:.2g}), {name}"
    if reached:
        return f"{start} {peer_s:.0f} s: ratio {peer_s / ours_s:.3g}"
    return f"{start} not within {peer_s:.0f} s: ratio >= {peer_s / ours_s:.3g}"
