"""Another program on the same images and cores: cryoDRGN 4, in an environment of its own.

It is installed from the package index into a virtual environment in the benchmark's folder, never into ours,
and is only ever run as a command.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryorbit.analysis.pose_error import pose_errors
from cryorbit.benchmarks.score import CONVERGED_BELOW
from cryorbit.data import Pose
from cryorbit.errors import BadFile, CryorbitError
from cryorbit.io.cryodrgn import read_pose_pickle

PACKAGES = ("torch==2.13.0", "cryodrgn>=4,<5")
"""In this order: the first decides which build of torch the second finds, so that no GPU build is fetched."""

POLL_S = 1.0

Command = Literal["abinit_homo_old", "abinit"]


@dataclass(frozen=True)
class PeerRun:
    """What became of the peer.

    Parameters
    ----------
    seconds
        Wall time to the first poses whose error is below 0.1; the time it was given if it never got there.
    reached
        Whether it did.
    trace
        Seconds and mean squared Frobenius error of each pose file it wrote.
    """

    seconds: float
    reached: bool
    trace: list[tuple[float, float]] = field(default_factory=list)
    version: str = ""


def install(folder: Path, *, say: Callable[[str], None]) -> Path:
    """A virtual environment with cryoDRGN in `folder`, made if it is not there; the folder of its programs.

    Raises
    ------
    CryorbitError
        If it cannot be installed.
    """
    programs = folder / "bin"
    if not (programs / "cryodrgn").exists():
        say(f"Installing cryoDRGN into {folder} (some minutes)")
        steps = [[sys.executable, "-m", "venv", str(folder)]]
        steps += [
            [str(programs / "pip"), "install", "--quiet", *PACKAGES[: k + 1]] for k in range(len(PACKAGES))
        ]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise CryorbitError(f"`{' '.join(step)}` failed: {reason}. See to the network or the disk.")
    return programs


def peer_version(programs: Path) -> str:
    """The installed version of cryoDRGN."""
    code = "from importlib.metadata import version; print(version('cryodrgn'))"
    return subprocess.run([programs / "python", "-c", code], capture_output=True, text=True).stdout.strip()


def arguments(command: Command, *, star: Path, ctf: Path, out: Path, box: int, seed: int) -> list[str]:
    """The peer's command line: its own defaults, but for what these images ask for.

    Images are not inverted, as protein is light; poses are written each epoch. There are no translations to
    search; the older command always searches some, so it gets the fewest, and radii that fit a small box.
    """
    common = [str(star), "--ctf", str(ctf), "-o", str(out), "--seed", str(seed), "--uninvert-data"]
    common += ["--checkpoint", "1", "--datadir", str(star.parent)]
    if command == "abinit":
        return ["abinit", *common, "--zdim", "0", "--no-trans", "--no-analysis"]
    radius = box // 2 - 1
    radii = ["--l-start", str(min(12, radius)), "--l-end", str(min(32, radius))]
    return ["abinit_homo_old", *common, *radii, "--t-extent", "1", "--t-ngrid", "1"]


def run_peer(
    programs: Path,
    star: Path,
    truth: Pose,
    *,
    command: Command,
    work: Path,
    limit_s: float,
    threads: int,
    seed: int,
) -> PeerRun:
    """Run cryoDRGN on a stack until its poses are right, its time is up, or it ends.

    Parameters
    ----------
    star
        The stack's STAR file, particles in the order of `truth`.
    limit_s
        When to stop it.

    Raises
    ------
    CryorbitError
        If it fails before it has written any poses.
    """
    from cryorbit.io.particles import read_particles

    stack = read_particles(star)
    ctf, out, log = work / "ctf.pkl", work / "peer", work / "peer.log"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    write_ctf(ctf, star)
    line = arguments(command, star=star, ctf=ctf, out=out, box=stack.box, seed=seed)
    with log.open("w") as file:
        start = time.time()
        process = subprocess.Popen(
            [programs / "cryodrgn", *line], stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            run = _watch(process, out, truth, start=start, limit_s=limit_s, box=stack.box)
        finally:
            _stop(process)
    if not run.trace and process.returncode not in (0, -signal.SIGTERM, -signal.SIGKILL):
        tail = " | ".join(log.read_text().splitlines()[-3:])
        raise CryorbitError(f"cryodrgn {command} ended with {process.returncode}: {tail}. See {log}.")
    return PeerRun(run.seconds, run.reached, run.trace, peer_version(programs))


def write_ctf(path: Path, star: Path) -> None:
    """The stack's CTF in the peer's form."""
    from cryorbit.io.particles import read_particles, write_particles

    write_particles(path, read_particles(star))


def _watch(
    process: subprocess.Popen, out: Path, truth: Pose, *, start: float, limit_s: float, box: int
) -> PeerRun:
    """Look at each new pose file until one is right; a file's own time counts, not when it was looked at."""
    seen: set[Path] = set()
    trace: list[tuple[float, float]] = []
    while True:
        ended = process.poll() is not None
        for path in sorted(set(out.rglob("pose.*.pkl")) - seen, key=_epoch):
            seconds = path.stat().st_mtime - start
            error = _pose_error(path, truth, box=box)
            if error is None:
                continue
            seen.add(path)
            trace.append((round(seconds, 1), error))
            if error < CONVERGED_BELOW:
                return PeerRun(seconds, True, trace)
        elapsed = time.time() - start
        if ended or elapsed > limit_s:
            return PeerRun(min(elapsed, limit_s), False, trace)
        time.sleep(POLL_S)


def _epoch(path: Path) -> int:
    found = re.search(r"\d+", path.name)
    return int(found.group()) if found else -1


def _pose_error(path: Path, truth: Pose, *, box: int) -> float | None:
    """Mean squared Frobenius error of a pose file, None while it is being written."""
    try:
        pose = read_pose_pickle(path, box=box, pixel_size_A=1.0, shifts="fraction")
    except BadFile:
        return None
    if len(pose) != len(truth):
        return None
    return pose_errors(pose, truth).mse


def _stop(process: subprocess.Popen) -> None:
    """End the peer and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
