"""What the ab initio benchmark runs: cells of structure, SNR and seed, each a fresh simulated stack."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryorbit.errors import CryorbitError


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What to simulate for the ab initio benchmark."""

    snr: tuple[float, ...] = (0.1,)
    """Signal-to-noise ratios; inf for noise-free images."""
    seeds: int = 3
    """Runs per cell, seeds 0, 1, ...; each has data of its own."""
    n_particles: int | None = None
    """Images per run; 10,000 unless given, with --scale full 100,000."""
    box: int = 128
    """Edge of an image, pixels."""
    pixel_size_A: float = 3.77
    """Pixel size, angstrom."""
    shift_sd_A: float = 20.0
    """Standard deviation of the shifts per axis, angstrom."""
    b_factor_A2: float = 100.0
    """B-factor of every atom."""
    defocus_um: tuple[float, float] = (1.0, 3.0)
    """Defocus range, unless --ctf-from is given."""

    @property
    def images(self) -> int:
        """Images per run.

        >>> BenchmarkSettings().images
        10000
        """
        return 10_000 if self.n_particles is None else self.n_particles


@dataclass(frozen=True)
class Cell:
    """One run: a structure, an SNR, a seed."""

    structure: str
    """File of the structure or map, or `synthetic`."""
    snr: float
    seed: int

    @property
    def name(self) -> str:
        """A name for files and tables.

        >>> Cell("data/4v5a.cif.gz", 0.1, 2).name
        '4v5a_snr0.1_seed2'
        """
        return f"{structure_name(self.structure)}_snr{self.snr:g}_seed{self.seed}"


def structure_name(path: str) -> str:
    """The file's name without folder and endings.

    >>> structure_name("structures/1wcm.pdb.gz")
    '1wcm'
    """
    return Path(path).name.split(".")[0]


def cells(structures: Sequence[str], settings: BenchmarkSettings) -> list[Cell]:
    """All runs, seed by seed, so that a benchmark cut short has every structure and SNR in it."""
    return [
        Cell(structure, snr, seed)
        for seed in range(settings.seeds)
        for snr in settings.snr
        for structure in structures
    ]


class RunFailed(CryorbitError):
    """A command of the benchmark ended with an error."""


def command(*arguments: object, threads: int, log: Path) -> float:
    """Run a cryorbit command in a process of its own; its wall time in seconds.

    Raises
    ------
    RunFailed
        With the last lines of its output, if it fails.
    """
    start = time.monotonic()
    line = [sys.executable, "-m", "cryorbit.cli.main", *map(str, arguments)]
    with log.open("a") as file:
        done = subprocess.run(line, stdout=file, stderr=file, env=_environment(threads))
    if done.returncode:
        tail = " | ".join(log.read_text().splitlines()[-3:])
        raise RunFailed(f"`{' '.join(line[2:])}` ended with {done.returncode}: {tail}. See {log}.")
    return time.monotonic() - start


def _environment(threads: int) -> dict[str, str]:
    """The environment of a run that may use `threads` cores and no more."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def run_cell(
    cell: Cell,
    settings: BenchmarkSettings,
    *,
    work: Path,
    threads: int,
    ctf_from: Path | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Simulate, run ab initio, evaluate; the evaluation's numbers, with `seconds` from command to report.

    Parameters
    ----------
    work
        Folder for the cell's files; the images are removed at the end.
    options
        Further options of `cryorbit abinitio`.

    Raises
    ------
    RunFailed
        If one of the commands fails.
    """
    folder = work / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log, data, out = folder / "log.txt", folder / "data", folder / "run"
    simulation = simulation_options(cell, settings, ctf_from)
    command("simulate", cell.structure, "-o", data, *simulation, threads=threads, log=log)
    search = (data / "particles.star", "-o", out, "--seed", cell.seed, "--threads", threads, *options)
    seconds = command("abinitio", *search, threads=threads, log=log)
    truth = ("--truth", data / "truth.star", "--truth-map", data / "truth.mrc")
    command("evaluate", out, *truth, "--threads", threads, threads=threads, log=log)
    numbers = json.loads((out / "evaluation.json").read_text())
    (data / "particles.mrcs").unlink()
    return numbers | {"seconds_computing": numbers["seconds"], "seconds": round(seconds, 2)}


def simulation_options(cell: Cell, settings: BenchmarkSettings, ctf_from: Path | None) -> list[object]:
    """Words for `cryorbit simulate` after the structure and the folder."""
    options: list[object] = ["--n-particles", settings.images, "--box", settings.box]
    options += ["--pixel-size-A", settings.pixel_size_A, "--snr", cell.snr, "--seed", 1000 + cell.seed]
    options += ["--shift-sd-A", settings.shift_sd_A, "--b-factor-A2", settings.b_factor_A2]
    if ctf_from is not None:
        return [*options, "--ctf-from", ctf_from]
    return [*options, "--defocus-um", *settings.defocus_um]
