"""How much memory there is, how much a run needs, and how many images are handled at a time where it is short."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from cryorbit.errors import BadInput

Work = Literal["reconstruct", "refine"]

LATTICES: dict[Work, int] = {"reconstruct": 10, "refine": 14}
"""Peak memory of a run in units of `lattice_bytes`: measured 7.5 for a reconstruction, 9.7 with symmetry, and 13.9 for
refinement and ab initio, whose last half maps are those of the whole box; the same at 128 and 160 px."""
BYTES_PER_PIXEL = 24
"""Peak memory of adding an image to the sums, per pixel; measured 20."""
FEWEST_ROWS = 8
"""Images handled at a time at least: with fewer, a run would be slow rather than possible."""


def lattice_bytes(box: int) -> int:
    """Sums of one half map on the padded lattice: a complex number and a weight per point, 12 bytes.

    >>> lattice_bytes(128) / 1e6
    101.449728
    """
    return (2 * box) ** 2 * (box + 1) * 12


def free_bytes(device: torch.device | None = None) -> int | None:
    """Memory that can still be had on a device, of a job's own limit (cgroup) if it has one; None where nothing tells.

    >>> free = free_bytes()
    >>> free is None or free > 0
    True
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [value for value in (_system_free(), _group_free()) if value is not None]
    return min(known) if known else None


def rows_per_block(
    box: int, most: int, *, free: int | None, work: Work = "reconstruct", processes: int = 1
) -> int:
    """Images handled at a time: `most`, or as many as fit beside the maps.

    More than `most` is never taken where memory is plenty: blocks that fit the processor's cache are faster, and results
    do not depend on what else a machine does.

    Parameters
    ----------
    box
        Edge of an image in pixels.
    free
        Of `free_bytes`.
    processes
        Processes that share that memory.

    Raises
    ------
    BadInput
        If the maps alone do not fit.

    >>> rows_per_block(128, 100, free=2 * 10**9), rows_per_block(128, 100, free=1040 * 10**6)
    (100, 32)
    """
    if free is None:
        return most
    require_memory(box, work, free=free, processes=processes)
    left = free // processes - LATTICES[work] * lattice_bytes(box)
    return max(min(most, left // (2 * BYTES_PER_PIXEL * box * box)), min(FEWEST_ROWS, most))


def require_memory(box: int, work: Work, *, free: int | None, processes: int = 1) -> None:
    """Raise, before any work, if the maps of a run do not fit.

    Raises
    ------
    BadInput
        With what is needed, what there is, and the box that would fit.
    """
    needed = LATTICES[work] * lattice_bytes(box)
    if free is None or processes * needed <= free:
        return
    each = f" for each of {processes} processes" if processes > 1 else ""
    remedy = f"Extract or rescale the particles to {largest_box(free // processes, work)} px or less"
    if processes > 1:
        remedy += ", start fewer processes on this machine"
    raise BadInput(
        f"maps of {box} px need about {needed / 1e9:.1f} GB of memory{each}, and {free / 1e9:.1f} GB are free. "
        f"{remedy}, or find a machine with more. (--max-resolution-A does not help: the last maps are of the whole box.)"
    )


def largest_box(free: int, work: Work) -> int:
    """Largest even box whose maps fit into `free` bytes.

    >>> largest_box(LATTICES["refine"] * lattice_bytes(200), "refine")
    200
    """
    box = int((free / LATTICES[work] / 48) ** (1 / 3)) + 2
    while box > 2 and (box % 2 or LATTICES[work] * lattice_bytes(box) > free):
        box -= 1
    return box


def _system_free() -> int | None:
    """What the system could still give, before anything is swapped."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return _psutil_free()


def _psutil_free() -> int | None:
    try:
        import psutil  # pyright: ignore[reportMissingModuleSource, reportMissingImports]
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _group_free() -> int | None:
    """What the control group of this process, as queues and containers set it, leaves (cgroup 2)."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("0::/")[2].splitlines()[0]
        folder = Path("/sys/fs/cgroup") / group
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # File pages that the group holds are given back when it needs room.
        return None if limit == "max" else int(limit) - int(used) + int(stat.get("inactive_file", 0))
    except (OSError, ValueError, IndexError):
        return None
