"""Time and memory of a hundred thousand and of a million particles: `python -m cryorbit.benchmarks.million`.

Stacks of 64 px in float16 are written to a folder, with a STAR file of poses and CTFs, and removed at the end. Signals are
those of 2,000 simulated images, over and over; the noise of every image is its own. Every measurement has a process of its
own, so that its memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cryorbit.data import ParticleStack
from cryorbit.data.particles import MemoryImages
from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import matrix_to_relion_angles
from cryorbit.inference.reconstruct import ReconstructSettings, reconstruct
from cryorbit.io.mrc import StackWriter
from cryorbit.io.particles import read_particles
from cryorbit.io.star import write_star
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.simulate import Simulation, SimulationSettings, simulate

BOX, PIXEL_A, SNR = 64, 5.0, 0.1
SIGNALS = 2000
PER_STACK = 10_000
RATE_IMAGES = 20_000
"""Images of the comparison between disk and memory; the page cache holds them after the first pass."""
REPEATS = 3
CHECK_S, ROW_BYTES, RATE_LOSS = 60.0, 1000.0, 0.2
"""What is aimed at for a million particles: seconds of `check`, bytes of the table per row, loss of rate from disk."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the stacks, measure, print a line per measurement; 1 if an aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--particles", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=None, help="where the stacks are written (8.2 GB)")
    parser.add_argument("--json", type=Path, default=None, help="append the rows to this file as JSON lines")
    parser.add_argument("--part", choices=sorted(PARTS), default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.part is not None:
        print(json.dumps(PARTS[options.part](options.folder)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="million-", dir=options.folder))
    try:
        counts = sorted(options.particles)
        rows = [measure(count, folder, rate=count == counts[-1]) for count in counts]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json is not None:
        with options.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    missed = misses(rows)
    print("\n".join(missed) or "every aim is met")
    return 1 if missed else 0


def measure(count: int, folder: Path, *, rate: bool) -> dict[str, Any]:
    """All measurements of `count` particles; the stacks that are there already are kept, and added to.

    `rate` adds that of a reconstruction, which is of the first 20,000 images and needs so many.

    Raises
    ------
    BadInput
        If the disk has no room.
    """
    star = write_particles_of(count, folder)
    row: dict[str, Any] = {"particles": count, "box": BOX, "load": os.getloadavg()[0]}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cryorbit", "check", str(star), "--json"], capture_output=True, text=True
    )
    row["check_seconds"] = round(time.perf_counter() - start, 1)
    checked = json.loads(done.stdout)
    row["check_images"] = next(c["message"] for c in checked["checks"] if c["name"] == "images")
    parts = ["table", "images"] + (["rate"] if rate and count >= RATE_IMAGES else [])
    for part in parts:
        line = [sys.executable, "-m", "cryorbit.benchmarks.million", "--part", part, "--folder", str(star)]
        row |= json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    for name, value in row.items():
        print(f"{count:9,d}  {name:28s} {value}", flush=True)
    return row


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """Which aims the rows do not meet, in words."""
    out = []
    for row in rows:
        n = f"{row['particles']:,d} particles"
        if row["check_seconds"] > CHECK_S:
            out.append(f"{n}: check took {row['check_seconds']:.0f} s, more than {CHECK_S:.0f}")
        if row["table_bytes_per_row"] > ROW_BYTES:
            out.append(f"{n}: {row['table_bytes_per_row']:.0f} bytes of the table per row")
        if row.get("rate_ratio", 1.0) < 1 - RATE_LOSS:
            out.append(f"{n}: reconstruction from disk at {row['rate_ratio']:.0%} of the rate from memory")
    memory = [row["image_memory_MB"] for row in rows]
    if len(memory) > 1 and max(memory) > 1.2 * min(memory) + 20:
        out.append(f"image memory grows with the stack: {memory} MB")
    return out


def write_particles_of(count: int, folder: Path) -> Path:
    """A STAR file of `count` particles, and the stacks of it that are not there yet."""
    needed = count * BOX * BOX * 2 + count * 300
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise BadInput(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free. Give --folder."
        )
    settings = SimulationSettings(
        n_particles=SIGNALS, box=BOX, pixel_size_A=PIXEL_A, snr=float("inf"), shift_sd_A=5.0
    )
    base = simulate(synthetic_complex(generator=torch.Generator().manual_seed(0)), settings)
    signals = base.stack.images[slice(None)]
    deviation = float(signals.std()) / SNR**0.5
    for number in range(-(-count // PER_STACK)):
        path = folder / f"stack_{number:04d}.mrcs"
        size = min(PER_STACK, count - number * PER_STACK)
        if not path.exists():
            _write_stack(path, signals, size, deviation, seed=number)
    star = folder / f"particles_{count}.star"
    write_star(star, {"optics": _optics(), "particles": _table(base, count)})
    return star


def _write_stack(path: Path, signals: torch.Tensor, size: int, deviation: float, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with StackWriter(path, box=BOX, pixel_size_A=PIXEL_A, dtype="float16") as stack:
        for rows in torch.arange(size).split(SIGNALS):
            noise = torch.randn(len(rows), BOX, BOX, generator=generator)
            stack.append(signals[rows % SIGNALS] + deviation * noise)


def _optics() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["one"],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [PIXEL_A],
            "rlnImageSize": [BOX],
            "rlnImageDimensionality": [2],
        }
    )


def _table(base: Simulation, count: int) -> pd.DataFrame:
    """The columns that RELION has after a refinement."""
    index = np.arange(count)
    signal = index % PER_STACK % SIGNALS
    angles = matrix_to_relion_angles(base.truth.rotation.double()).numpy()[signal]
    shift, ctf = -base.truth.shift_A.double().numpy()[signal], base.stack.ctf
    assert ctf is not None
    place = np.random.default_rng(0).uniform(0, 4000, (count, 2)).round(2)
    return pd.DataFrame(
        {
            "rlnImageName": [
                f"{i % PER_STACK + 1:06d}@stack_{i // PER_STACK:04d}.mrcs" for i in range(count)
            ],
            "rlnMicrographName": [f"MotionCorr/micrograph_{i // 300:05d}.mrc" for i in range(count)],
            "rlnCoordinateX": place[:, 0],
            "rlnCoordinateY": place[:, 1],
            "rlnOpticsGroup": 1,
            **{f"rlnAngle{name}": angles[:, k].round(6) for k, name in enumerate(("Rot", "Tilt", "Psi"))},
            "rlnOriginXAngst": shift[:, 0].round(6),
            "rlnOriginYAngst": shift[:, 1].round(6),
            "rlnDefocusU": ctf.defocus_u_A.numpy()[signal],
            "rlnDefocusV": ctf.defocus_v_A.numpy()[signal],
            "rlnDefocusAngle": ctf.astigmatism_angle_deg.numpy()[signal],
            "rlnRandomSubset": index % 2 + 1,
        }
    )


def resident_MB(field: str = "VmRSS") -> float:
    """Memory of this process as Linux tells it: VmRSS now, VmHWM at most since `forget_peak`, RssAnon without files."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) / 1e3


def forget_peak() -> None:
    """Begin to measure the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def table_part(star: Path) -> dict[str, Any]:
    """Reading the table: seconds, and memory that it keeps and needs per row, images untouched."""
    with star.open() as lines, tempfile.NamedTemporaryFile("w", dir=star.parent, suffix=".star") as few:
        few.writelines(line for line, _ in zip(lines, range(200), strict=False))
        few.flush()
        read_particles(few.name)  # what is loaded once, whatever is read
    before = resident_MB()
    forget_peak()
    start = time.perf_counter()
    stack = read_particles(star)
    seconds = time.perf_counter() - start
    per_row = 1e6 / len(stack)
    return {
        "table_seconds": round(seconds, 1),
        "table_bytes_per_row": round((resident_MB() - before) * per_row),
        "table_peak_bytes_per_row": round((resident_MB("VmHWM") - before) * per_row),
    }


def images_part(star: Path) -> dict[str, Any]:
    """One pass over all images in their order: how much more than the table is resident at most, mapped files included."""
    stack = read_particles(star)
    before = resident_MB()
    forget_peak()
    start = time.perf_counter()
    total = 0.0
    for rows in torch.arange(len(stack)).split(1024):
        total += float(stack.images[rows][:, 0, 0].sum())
    seconds = time.perf_counter() - start
    return {
        "image_memory_MB": round(resident_MB("VmHWM") - before),
        "images_read_per_second": round(len(stack) / seconds),
    }


def rate_part(star: Path) -> dict[str, Any]:
    """Reconstruction from disk against the same images in memory, one thread, interleaved, medians."""
    torch.set_num_threads(1)
    mapped = read_particles(star).select(torch.arange(RATE_IMAGES))
    held = ParticleStack(
        images=MemoryImages(mapped.images[slice(None)]),
        pixel_size_A=mapped.pixel_size_A,
        ids=mapped.ids,
        ctf=mapped.ctf,
        pose=mapped.pose,
        half_set=mapped.half_set,
    )
    seconds: dict[str, list[float]] = {"disk": [], "memory": []}
    for _ in range(REPEATS):
        for name, stack in (("disk", mapped), ("memory", held)):
            seconds[name].append(_seconds_of_pass(stack))
    disk, memory = (statistics.median(seconds[name]) for name in ("disk", "memory"))
    return {
        "rate_disk_per_second": round(RATE_IMAGES / disk),
        "rate_memory_per_second": round(RATE_IMAGES / memory),
        "rate_ratio": round(memory / disk, 3),
    }


def _seconds_of_pass(stack: ParticleStack) -> float:
    """Seconds of the pass over the images alone: the maps are solved once, whatever the number of images."""
    start = end = time.perf_counter()
    for progress in reconstruct(stack, ReconstructSettings(contrast="light")):
        if progress.result is not None:
            break
        end = time.perf_counter()
    return end - start


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "table": table_part,
    "images": images_part,
    "rate": rate_part,
}

if __name__ == "__main__":
    sys.exit(main())
