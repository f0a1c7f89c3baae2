from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cryorbit.cli.progress import read_metrics
from cryorbit.cli.run_folder import CHECKPOINT, METRICS, RUN, read_json
from cryorbit.io.mrc import read_map
from cryorbit.io.particles import read_particles

KILLS = 5
SMALL = "--batches 8 --starts 2 --rounds 1 --threads 2 --checkpoint-every-s 0.2".split()


def abinitio(*arguments: object) -> subprocess.Popen:
    line = [sys.executable, "-m", "cryorbit.cli.main", "abinitio", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def kill_later(process: subprocess.Popen, folder: Path, rows: int, more_s: float) -> None:
    """kill -9 some time after `rows` records are written; or let it end, if it is quicker."""
    while process.poll() is None and len(read_metrics(folder / METRICS)) < rows:
        time.sleep(0.02)
    time.sleep(more_s)
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def particles(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    options = "--n-particles 300 --box 48 --pixel-size-A 8 --snr 2 --shift-sd-A 6 --seed 1"
    line = [sys.executable, "-m", "cryorbit.cli.main", "simulate", "synthetic", "-o", str(folder / "data")]
    subprocess.run([*line, *options.split()], check=True, capture_output=True)
    return folder / "data" / "particles.star"


@pytest.mark.slow
def test_a_run_killed_at_random_moments_resumes_to_the_same_bits(particles, tmp_path):
    """kill -9 five times, then --resume alone: poses, maps and metrics are the unbroken run's, bit by bit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(abinitio(particles, "-o", whole, *SMALL))
    total = len(read_metrics(whole / METRICS))
    moments = random.Random(2)
    for k in range(KILLS):
        first = not (broken / "settings.yaml").exists()
        process = abinitio(*([particles, "-o", broken, *SMALL] if first else ["-o", broken, "--resume"]))
        kill_later(process, broken, (k + 1) * total // (KILLS + 1), moments.uniform(0, 0.5))
        assert not read_json(broken / RUN).get("finished"), "the run was not broken: it ended first"
    finish(abinitio("-o", broken, "--resume"))
    assert not (broken / CHECKPOINT).exists()
    one, other = (read_particles(folder / "particles.star") for folder in (whole, broken))
    assert torch.equal(one.pose.rotation, other.pose.rotation)
    assert torch.equal(one.pose.shift_A, other.pose.shift_A)
    for name in ("map.mrc", "half1.mrc", "half2.mrc"):
        assert torch.equal(read_map(whole / name).values, read_map(broken / name).values)
    steps = [[(r["stage"], r["step"]) for r in read_metrics(f / METRICS)] for f in (whole, broken)]
    assert steps[0] == steps[1]
    visits = [read_json(folder / RUN)["image_visits"] for folder in (whole, broken)]
    assert visits[0] == visits[1]


@pytest.mark.slow
def test_sigterm_saves_and_exits_143(particles, tmp_path):
    """SIGTERM ends a run with 143 and a checkpoint; asking for other settings at the resume is refused."""
    process = abinitio(particles, "-o", tmp_path / "run", *SMALL)
    while process.poll() is None and len(read_metrics(tmp_path / "run" / METRICS)) < 2:
        time.sleep(0.02)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "--resume" in output
    assert (tmp_path / "run" / CHECKPOINT).exists()
    changed = abinitio("-o", tmp_path / "run", "--resume", "--symmetry", "C2")
    output, _ = changed.communicate(timeout=60)
    assert changed.returncode == 2
    assert "symmetry" in output
