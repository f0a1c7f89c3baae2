"""What `cryorbit check` looks at: each function takes a stack and says what it found."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.cli.doctor import available_memory_gb
from cryorbit.cli.reading import chunks, refuse_for_abinitio
from cryorbit.errors import BadFile, BadInput
from cryorbit.inference.memory import LATTICES, lattice_bytes

if TYPE_CHECKING:
    from cryorbit.data import ParticleStack

SCAN_LIMIT_BYTES = 8 * 2**30
"""Stacks up to this size on disk are read whole; of larger ones an even sample is."""

CACHED_PIXELS = 1 << 19
"""Pixels looked at in one go: few enough to stay in the processor's cache."""

OUTLIER_SD = 8.0
"""An image whose standard deviation is this many times the median, or less than 1/8 of it, is an outlier."""

USUAL_DEFOCUS_A = (1000.0, 60000.0)
"""Underfocus of single-particle images; outside it, units or sign are usually wrong."""


SHOWN = 5
"""Findings of one kind that are listed one by one."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    level: Literal["ok", "warning", "error"]
    message: str
    values: dict[str, Any] = field(default_factory=dict)


def counts(stack: ParticleStack) -> Finding:
    """How many particles, of what size, from how many micrographs and optics groups."""
    micrographs = None if stack.micrograph is None else len(set(stack.micrograph.tolist()))
    groups = 1 if stack.optics_group is None else int(torch.unique(stack.optics_group).numel())
    values = {
        "particles": len(stack),
        "box": stack.box,
        "pixel_size_A": stack.pixel_size_A,
        "optics_groups": groups,
        "micrographs": micrographs,
    }
    text = f"{len(stack)} of {stack.box} px at {stack.pixel_size_A:g} A/px, {groups} optics group(s)"
    text += "" if micrographs is None else f", {micrographs} micrograph(s)"
    return Finding("particles", "ok", text, values)


def images(stack: ParticleStack) -> Finding:
    """Whether pixels are finite and images alike, from one pass over them (or over an even sample)."""
    n = len(stack)
    step = max(1, -(-n * stack.box**2 * _pixel_bytes(stack) // SCAN_LIMIT_BYTES))
    parts = chunks(n, stack.box)[::step]
    mean, sd = [], []
    try:
        for part in parts:
            pixels = stack.images[part].flatten(1)
            for few in pixels.split(max(1, CACHED_PIXELS // pixels.shape[1])):
                deviation, average = spread(few)
                mean.append(average)
                sd.append(deviation)
    except BadFile as error:
        return Finding("images", "error", str(error))
    row = torch.cat([torch.arange(part.start, part.stop) for part in parts])
    return _judge_spread(stack, row, torch.cat(mean).double(), torch.cat(sd).double(), share=len(row) / n)


def _pixel_bytes(stack: ParticleStack) -> int:
    """Bytes of a pixel on disk, four where it lies in none."""
    from cryorbit.io.sources import on_disk

    files = on_disk(stack.images)
    return 4 if files is None or not files.headers else max(h.dtype.itemsize for h in files.headers)


def spread(pixels: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Deviation and mean of each row; a row of one value has deviation 0, to the bit.

    Sums of what is left after the row's first pixel: `torch.std_mean` is no more exact, and four times slower.

    >>> deviation, mean = spread(torch.tensor([[1e6, 1e6 + 2], [3.1, 3.1]]))
    >>> [round(x, 4) for x in deviation.tolist()], mean.tolist()[0]
    ([1.4142, 0.0], 1000001.0)
    """
    n, first = pixels.shape[1], pixels[:, :1]
    moved = pixels - first
    mean = moved.mean(1)
    squares = torch.linalg.vector_norm(moved, dim=1).square()
    return ((squares - n * mean.square()) / max(n - 1, 1)).clamp_min(0).sqrt(), first[:, 0] + mean


def _judge_spread(
    stack: ParticleStack, row: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor, *, share: float
) -> Finding:
    typical = float(sd.median())
    values = {"scanned": len(row), "mean": float(mean.mean()), "sd": typical}
    seen = "all read" if share == 1 else f"{share:.0%} read"
    blank = row[sd == 0]
    if len(blank):
        names = ", ".join(f"row {int(r) + 1} ({stack.ids[int(r)]})" for r in blank[:3])
        return Finding("images", "error", f"{len(blank)} blank, the first: {names}. Drop those rows.", values)
    odd = row[(sd > OUTLIER_SD * typical) | (sd < typical / OUTLIER_SD)]
    text = f"{seen}, finite; mean {values['mean']:.3g}, sd {typical:.3g}"
    if len(odd):
        message = f"{text}; {len(odd)} of unusual contrast, the first in row {int(odd[0]) + 1}"
        return Finding("images", "warning", message, values | {"outliers": len(odd)})
    return Finding("images", "ok", text, values)


def pixel_size(stack: ParticleStack) -> list[Finding]:
    """Whether the stacks' own headers agree with the table about the pixel size."""
    from cryorbit.io.findings import header_disagreements

    found = header_disagreements(stack)
    if not found:
        return [Finding("pixel size", "ok", f"{stack.pixel_size_A:g} A, headers agree or are silent")]
    return [Finding("pixel size", f.severity, f.message, {"row": f.row}) for f in found[:SHOWN]]


def ctf(stack: ParticleStack) -> Finding:
    """Whether there is a CTF, in the usual range, and how defocus is spread."""
    if stack.ctf is None:
        return Finding("CTF", "warning", "none")
    defocus = 0.5 * (stack.ctf.defocus_u_A + stack.ctf.defocus_v_A).double()
    astigmatism = (stack.ctf.defocus_u_A - stack.ctf.defocus_v_A).abs().double()
    low, middle, high = (
        float(x) for x in torch.quantile(_sample(defocus), torch.tensor([0.0, 0.5, 1.0]).double())
    )
    count, edges = np.histogram(defocus.numpy() / 1e4, bins=10)
    values = {
        "defocus_um": [low / 1e4, middle / 1e4, high / 1e4],
        "histogram": {"count": count.tolist(), "edge_um": [round(float(e), 4) for e in edges]},
        "astigmatism_A": float(astigmatism.median()),
        "voltage_kV": float(stack.ctf.voltage_kV.median()),
        "cs_mm": float(stack.ctf.cs_mm.median()),
        "amplitude_contrast": float(stack.ctf.amplitude_contrast.median()),
    }
    text = (
        f"defocus {low / 1e4:.2f} to {high / 1e4:.2f} um (median {middle / 1e4:.2f}), "
        f"{values['voltage_kV']:g} kV, Cs {values['cs_mm']:g} mm, "
        f"amplitude contrast {values['amplitude_contrast']:g}  [{bars(count)}]"
    )
    if low < USUAL_DEFOCUS_A[0] or high > USUAL_DEFOCUS_A[1]:
        return Finding(
            "CTF", "warning", f"{text}; outside the usual 0.1 to 6 um: check the unit and the sign", values
        )
    return Finding("CTF", "ok", text, values)


def _sample(values: torch.Tensor) -> torch.Tensor:
    """Extremes and an even sample: `torch.quantile` takes no more than 16 million."""
    if len(values) <= 1_000_000:
        return values
    return torch.cat(
        [values[:: len(values) // 1_000_000], values.aminmax().min[None], values.aminmax().max[None]]
    )


def bars(count: np.ndarray) -> str:
    """A histogram in one line.

    >>> bars(np.array([0, 1, 8]))
    ' ▁█'
    """
    blocks = " ▁▂▃▄▅▆▇█"
    top = max(int(count.max()), 1)
    return "".join(blocks[-(-int(c) * 8 // top)] for c in count)


def half_sets(stack: ParticleStack) -> Finding:
    """Whether the half sets are there, balanced and split by micrograph."""
    if stack.half_set is None:
        return Finding("half sets", "ok", "none in the file: will be split by micrograph")
    first = int((stack.half_set == 1).sum())
    second = int((stack.half_set == 2).sum())
    text = f"{first} and {second} particles"
    values = {"half1": first, "half2": second}
    if first + second < len(stack) or min(first, second) == 0:
        return Finding("half sets", "error", f"{text} of {len(stack)}. Give every particle 1 or 2.", values)
    if min(first, second) < 0.25 * len(stack):
        return Finding("half sets", "warning", f"{text}: unbalanced, the FSC will be pessimistic", values)
    return Finding("half sets", "ok", text, values)


def duplicates(stack: ParticleStack) -> list[Finding]:
    """Whether an image is listed twice, or picked twice at one place."""
    from cryorbit.io.findings import duplicate_images

    found = [Finding("duplicates", f.severity, f.message, {"row": f.row}) for f in duplicate_images(stack)]
    table = stack.tables.get("particles")
    columns = ["rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY"]
    if not found and table is not None and all(name in table for name in columns):
        same = int(table.duplicated(columns).sum())
        if same:
            message = f"{same} particles share micrograph and coordinates with another one: picked twice?"
            found.append(Finding("duplicates", "warning", message, {"same_place": same}))
    return found or [Finding("duplicates", "ok", "none")]


def poses(stack: ParticleStack) -> Finding:
    """Whether there are poses, and whether they look like poses."""
    if stack.pose is None:
        return Finding("poses", "ok", "none: use `cryorbit abinitio`")
    shift = stack.pose.shift_A.norm(dim=-1)
    values = {"shift_A_median": float(shift.median()), "shift_A_max": float(shift.max())}
    text = f"present; shifts median {values['shift_A_median']:.1f} A, largest {values['shift_A_max']:.1f} A"
    if values["shift_A_max"] > 0.5 * stack.box * stack.pixel_size_A:
        return Finding(
            "poses", "warning", f"{text}: more than half the box. Pixels taken for angstrom?", values
        )
    if bool((stack.pose.rotation == stack.pose.rotation[:1]).all()) and len(stack) > 1:
        return Finding(
            "poses", "warning", f"{text}; all rotations are equal: no reconstruction from these", values
        )
    return Finding("poses", "ok", text, values)


def readiness(stack: ParticleStack) -> Finding:
    """Whether `cryorbit abinitio` would take these particles, and why not."""
    try:
        refuse_for_abinitio(stack, ctf=True)
    except BadInput as refusal:
        return Finding("ab initio", "warning", str(refusal).removeprefix(f"{stack.source}: "))
    return Finding("ab initio", "ok", "ready for `cryorbit abinitio`")


def resources(stack: ParticleStack, folder: Path) -> Finding:
    """What a run needs of memory and disk, beside what there is."""
    images_gb = len(stack) * stack.box**2 * 4 / 1e9
    memory_gb = LATTICES["refine"] * lattice_bytes(stack.box) / 1e9 + 0.6
    disk_gb = (3 * stack.box**3 * 4 + len(stack) * 400) / 1e9
    free_memory, free_disk = available_memory_gb(), shutil.disk_usage(folder).free / 1e9
    values = {"images_gb": images_gb, "memory_gb": memory_gb, "disk_gb": disk_gb, "disk_free_gb": free_disk}
    text = f"images {images_gb:.2f} GB (not all held), memory about {memory_gb:.1f} GB"
    text += f", results {disk_gb:.2f} GB on disk"
    if free_memory is not None and memory_gb > free_memory:
        return Finding("resources", "warning", f"{text}; only {free_memory:.1f} GB of memory free", values)
    if disk_gb > free_disk:
        return Finding("resources", "error", f"{text}; only {free_disk:.1f} GB of disk free here", values)
    return Finding("resources", "ok", text, values)
