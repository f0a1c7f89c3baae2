"""What the refinement benchmark runs: each stack refined from ab initio's poses and from the true ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cryorbit.benchmarks.tasks import BenchmarkSettings, Cell, RunFailed, command, simulation_options
from cryorbit.io.particles import match_ids, read_particles, require_pose, write_particles

Start = Literal["abinitio", "truth"]
STARTS: tuple[Start, ...] = ("truth", "abinitio")
BAR = 1.5
"""Mean squared error from ab initio's poses over that from the true ones, at most."""
NUMBERS = ("mse", "medse", "mse_refined", "fsc05_truth_A", "oracle_fsc05_truth_A", "fsc0143_half_A")


def prepare_stack(
    cell: Cell,
    settings: BenchmarkSettings,
    *,
    work: Path,
    threads: int,
    ctf_from: Path | None,
    abinitio_options: Sequence[str] = (),
) -> Path:
    """Simulate a cell's stack and find its poses from nothing, unless its folder holds them from before; that folder.

    Raises
    ------
    RunFailed
        If one of the commands fails.
    """
    folder = work / cell.name
    log, data, out = folder / "log.txt", folder / "data", folder / "run"
    simulate = ("simulate", cell.structure, "-o")
    options = simulation_options(cell, settings, ctf_from)
    done = (out / "run.json").exists() and json.loads((out / "run.json").read_text()).get("finished")
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command(*simulate, data, *options, threads=threads, log=log)
        search = (data / "particles.star", "-o", out, "--seed", cell.seed, "--threads", threads)
        command("abinitio", *search, *abinitio_options, threads=threads, log=log)
    elif not (data / "particles.mrcs").exists():
        again = folder / "again"
        shutil.rmtree(again, ignore_errors=True)
        command(*simulate, again, *options, threads=threads, log=log)
        if (again / "truth.star").read_bytes() != (data / "truth.star").read_bytes():
            raise RunFailed(f"{folder}: holds a run of other particles. Remove it, or name another --work.")
        (again / "particles.mrcs").replace(data / "particles.mrcs")
        shutil.rmtree(again)
    return folder


def refine_from(
    start: Start, folder: Path, *, seed: int, threads: int, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Refine a cell's particles from one start and evaluate; the evaluation's numbers and `seconds`.

    Both starts have the same half sets, those of the ab initio run.
    """
    log, out, star = folder / "log.txt", folder / f"refined_{start}", folder / "run" / "particles.star"
    shutil.rmtree(out, ignore_errors=True)
    if start == "truth":
        star = _with_true_poses(folder)
    search = (star, "-o", out, "--seed", seed, "--threads", threads, *options)
    seconds = command("refine", *search, threads=threads, log=log)
    truth = ("--truth", folder / "data" / "truth.star", "--truth-map", folder / "data" / "truth.mrc")
    command("evaluate", out, *truth, "--threads", threads, threads=threads, log=log)
    numbers = json.loads((out / "evaluation.json").read_text())
    facts = json.loads((out / "run.json").read_text())
    return numbers | {"seconds": round(seconds, 2), "rounds": facts["rounds"], "verdict": facts["verdict"]}


def _with_true_poses(folder: Path) -> Path:
    """The ab initio run's particles with their true poses."""
    particles = read_particles(folder / "run" / "particles.star")
    truth = read_particles(folder / "data" / "truth.star", images="absent")
    true_pose = require_pose(truth)[match_ids(particles.ids, truth.ids)]
    path = folder / "start_truth.star"
    path.unlink(missing_ok=True)
    write_particles(path, replace(particles, pose=true_pose))
    return path


def row_of(start: Start, numbers: Mapping[str, Any], *, images: int) -> dict[str, Any]:
    """The row of one refinement.

    >>> row_of("truth", {"mse": 1e-4, "seconds": 50.0}, images=10_000)["seconds_per_1000"]
    5.0
    """
    row = {name: numbers.get(name) for name in NUMBERS}
    return {
        "method": f"refine from {start}",
        "start": start,
        **row,
        "converged": numbers["mse"] < 0.1,
        "seconds": numbers["seconds"],
        "seconds_per_1000": round(1000 * numbers["seconds"] / images, 2),
        "image_visits": numbers.get("image_visits"),
        "rounds": numbers.get("rounds"),
        "verdict": numbers.get("verdict"),
        "published": False,
    }


def verdict(rows: Sequence[Mapping[str, Any]], *, shells: Mapping[tuple, float] | None = None) -> list[str]:
    """For each structure, SNR and seed: the ratio of the two starts, and the map's resolution beside the oracle's.

    Parameters
    ----------
    shells
        Field of view, box times pixel size in A, by (structure, snr, seed): one shell is one over it.

    >>> base = {"structure": "x", "snr": 1.0, "seed": 0, "fsc05_truth_A": 8.0, "oracle_fsc05_truth_A": 8.0}
    >>> a = {**base, "start": "abinitio", "mse": 3e-4}
    >>> verdict([a, {**base, "start": "truth", "mse": 1e-4}])[0].split("; ")[1]
    'FSC 0.5 8.00 A, true poses 8.00 A'
    """
    starts: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("start"):
            starts.setdefault((row["structure"], row["snr"], row["seed"]), {})[row["start"]] = row
    lines = []
    for key, both in starts.items():
        if set(both) < set(STARTS):
            continue
        ours, best = both["abinitio"], both["truth"]
        ratio = ours["mse"] / best["mse"]
        said = "met" if ratio <= BAR else "MISSED"
        line = (
            f"{key[0]} SNR {key[1]} seed {key[2]}: mse {ours['mse']:.2e} from abinitio, {best['mse']:.2e} from truth: "
            f"ratio {ratio:.2f}, wanted {BAR}: {said}"
        )
        ours_A, oracle_A = ours.get("fsc05_truth_A"), ours.get("oracle_fsc05_truth_A")
        if ours_A and oracle_A:
            line += f"; FSC 0.5 {ours_A:.2f} A, true poses {oracle_A:.2f} A"
            if shells and key in shells:
                apart = (1 / oracle_A - 1 / ours_A) * shells[key]
                line += f", {apart:+.1f} shells, wanted 1: {'met' if apart <= 1 else 'MISSED'}"
        lines.append(line)
    return lines
