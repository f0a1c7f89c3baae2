"""`cryorbit bench prior`: what a learned prior adds to maps, beside chance and maps without one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cryorbit.benchmarks.prior import (
    Bench,
    run_cost,
    run_halves,
    run_maps,
    run_poses,
    run_units,
    tables,
    verdict,
)
from cryorbit.benchmarks.prior_cost import CostTask
from cryorbit.benchmarks.prior_halves import HalvesTask
from cryorbit.benchmarks.prior_maps import KEY, MapTask
from cryorbit.benchmarks.prior_methods import SamplerPlan
from cryorbit.benchmarks.prior_poses import PosesTask
from cryorbit.benchmarks.prior_proteins import MapGrid, benchmark_proteins
from cryorbit.benchmarks.prior_units import UnitsTask
from cryorbit.benchmarks.score import ScoreFile
from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions, cores, set_threads
from cryorbit.cli.prior_files import PriorFile, load_volume_prior
from cryorbit.cli.progress import say
from cryorbit.errors import BadInput

Task = Literal["maps", "halves", "poses", "cost", "units"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Score maps made with a learned prior beside chance and the best that can be had without one.

    Rows that are in the file are not run again. Exit code 1 where a bar is missed.
    """

    json: Annotated[Path, tyro.conf.arg(metavar="OUT.json")]
    """File of the rows; a benchmark that was stopped goes on with it."""
    prior: PriorFile = None
    structures: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of structure files that --proteins are taken from; procedural proteins unless given."""
    proteins: tuple[str, ...] = ()
    """Entries in the folder, 101m, 6lyz and eight more unless given; without a folder numbers of residues."""
    task: tuple[Task, ...] = ("maps",)
    """maps: few views with known poses. halves: two half maps denoised. poses: the prior in the loop of unknown poses. cost:
    seconds with few and many images. units: guidance of a prior of chains, in angstrom."""
    chain_prior: Annotated[Path | None, tyro.conf.arg(metavar="PRIOR")] = None
    """Prior of chains for the task units; a small one is trained on the spot unless given."""
    method: tuple[str, ...] = ()
    """Methods of the task maps; all unless given."""
    maps: Annotated[MapTask, Flat] = field(default_factory=MapTask)
    halves: Annotated[HalvesTask, Flat] = field(default_factory=HalvesTask)
    poses: Annotated[PosesTask, Flat] = field(default_factory=PosesTask)
    cost: Annotated[CostTask, Flat] = field(default_factory=CostTask)
    units: Annotated[UnitsTask, Flat] = field(default_factory=UnitsTask)
    plan: Annotated[SamplerPlan, Flat] = field(default_factory=SamplerPlan)
    figures: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Also draw maps of the first seed beside the true ones, as PNG in this folder; pictures that are there are kept."""
    max_minutes: float = 120.0
    """Nothing new is begun after this time; run again to go on."""
    jobs: int | None = None
    """Cells at a time, one thread each; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Run what is not in the file yet and print the tables; exit code 1 if a bar is missed."""
    if settings.max_minutes <= 0:
        raise BadInput(f"--max-minutes {settings.max_minutes:g}: wanted some time.")
    set_threads(1)
    seen = [*trained_on(settings.prior), *trained_on(settings.chain_prior)]
    proteins = benchmark_proteins(settings.structures, settings.proteins, seen=seen)
    bench = Bench(
        load_volume_prior(settings.prior),
        proteins,
        MapGrid(),
        settings.plan,
        ScoreFile(settings.json, key=KEY),
        say,
        settings.jobs or cores(),
        time.monotonic() + 60 * settings.max_minutes,
    )
    name = run_tasks(bench, settings)
    if settings.figures is not None:
        draw_figures(bench, settings.maps, settings.figures)
    print(tables(bench.scores.rows))
    bars = verdict(bench.scores.rows, bench.name, name)
    print("\n".join(["", *bars]))
    return 1 if any(text.startswith("MISS") for text in bars) else 0


def run_tasks(bench: Bench, settings: Settings) -> str:
    """The tasks asked for; the fingerprint of the prior of chains, if that task was."""
    from cryorbit.cli.prior_files import load_prior
    from cryorbit.models.point_prior import PointPrior

    chains = None if settings.chain_prior is None else load_prior(settings.chain_prior)
    if chains is not None and not isinstance(chains, PointPrior):
        raise BadInput(f"--chain-prior {settings.chain_prior}: a prior of maps. Give one of --kind points.")
    if "maps" in settings.task:
        run_maps(bench, settings.maps, settings.method)
    if "halves" in settings.task:
        run_halves(bench, settings.halves)
    if "poses" in settings.task:
        run_poses(bench, settings.poses)
    if "cost" in settings.task:
        run_cost(bench, settings.cost)
    return run_units(bench, settings.units, chains) if "units" in settings.task else ""


def draw_figures(bench: Bench, task: MapTask, folder: Path) -> None:
    """Pictures that are not in the folder yet, of the conditions of the task maps.

    Raises
    ------
    BadFile
        If one cannot be written.
    """
    from cryorbit.benchmarks.prior_maps import compared, map_cells
    from cryorbit.cli.outputs import making_folder
    from cryorbit.io.atomic import atomic_path
    from cryorbit.report.prior_comparison import comparison_png

    for cell in map_cells(bench.proteins, replace(task, seeds=1), bench.grid):
        path = folder / f"{cell.protein.name}_{cell.views}_images_snr_{cell.snr:g}.png"
        if path.exists() or bench.prior is None or time.monotonic() > bench.stop_at:
            continue
        shown = compared(cell, bench.prior, bench.plan)
        picture = comparison_png(shown.maps, shown.notes, spread=shown.spread, title=shown.title)
        with making_folder(folder, ()), atomic_path(path) as part:
            part.write_bytes(picture)
        say(f"{path}: {shown.title}")


def trained_on(prior: Path | None) -> list[str]:
    """Names of the structures that a prior of one's own was trained on or chosen by; the shipped one has seen none.

    Raises
    ------
    BadFile
        If the file is no prior.
    """
    from cryorbit.cli.prior_files import PRIOR
    from cryorbit.io.checkpoint import load_state

    if prior is None:
        return []
    _, meta = load_state(prior / PRIOR if prior.is_dir() else prior)
    seen = meta.get("about", {}).get("structures")
    if seen is None:
        say(f"{prior}: does not say what it was trained on. Proteins that it has seen score too well.")
        return []
    return [*seen.get("train", []), *seen.get("validation", [])]
