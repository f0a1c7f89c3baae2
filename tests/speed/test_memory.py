"""Memory of a large stack: images are read as they are needed, never all held."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cryorbit.geometry.conventions import matrix_to_relion_angles
from cryorbit.geometry.rotations import random_rotations
from cryorbit.io.mrc import StackWriter
from cryorbit.io.star import write_star

N, BOX, TILE = 200_000, 64, 2000
LIMIT_MB = 700
"""Anonymous memory that a run on 200,000 images may take: 1.6 GB of pixels do not fit in."""


@pytest.fixture(scope="module")
def large_stack(tmp_path_factory) -> Path:
    """A STAR file of 200,000 images of 64 px with poses and CTF; one tile of noise, repeated."""
    folder = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(TILE, BOX, BOX, generator=generator)
    with StackWriter(folder / "large.mrcs", box=BOX, pixel_size_A=3.0, dtype="float16") as stack:
        for _ in range(N // TILE):
            stack.append(tile)
    angles = matrix_to_relion_angles(random_rotations(N, generator=generator, dtype=torch.float64)).numpy()
    defocus = np.random.default_rng(0).uniform(10_000, 30_000, N)
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{i + 1:06d}@large.mrcs" for i in range(N)],
            "rlnMicrographName": [f"micrograph_{i // 100:05d}.mrc" for i in range(N)],
            "rlnOpticsGroup": 1,
            **{f"rlnAngle{name}": angles[:, k] for k, name in enumerate(("Rot", "Tilt", "Psi"))},
            "rlnOriginXAngst": 0.0,
            "rlnOriginYAngst": 0.0,
            "rlnDefocusU": defocus,
            "rlnDefocusV": defocus,
            "rlnDefocusAngle": 0.0,
        }
    )
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [1],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [3.0],
            "rlnImageSize": [BOX],
        }
    )
    write_star(folder / "large.star", {"optics": optics, "particles": particles})
    return folder / "large.star"


def peak_anonymous_mb(*arguments: object) -> tuple[float, float]:
    """Largest RssAnon of a cryorbit command in MB, and its seconds; fails with its output if it fails."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "cryorbit.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.02)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return peak / 1024, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["check", "reconstruct"])
def test_a_large_stack_takes_little_memory(large_stack, tmp_path, verb):
    """`check` and `reconstruct` of 200,000 float16 images stay below 700 MB of anonymous memory."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to measure memory")
    more = ["-o", tmp_path / "out", "--threads", 1] if verb == "reconstruct" else []
    peak, seconds = peak_anonymous_mb(verb, large_stack, *more)
    print(f"\n{verb}: {peak:.0f} MB anonymous at most, {seconds:.0f} s")
    assert peak < LIMIT_MB
