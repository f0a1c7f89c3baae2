"""`cryorbit doctor`: what this installation can use, for a bug report or a first look."""

from __future__ import annotations

import json as json_format
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cryorbit import __version__
from cryorbit.cli.options import cores

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "mrcfile",
    "gemmi",
    "starfile",
    "pandas",
    "matplotlib",
    "safetensors",
    "tyro",
)
COMPILERS = ("c++", "nvcc")
LEAST_MEMORY_GB, LEAST_DISK_GB = 4.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Versions, devices, threads, memory and disk of this installation."""

    json: bool = False
    """Print JSON instead of a table."""


def run(settings: Settings) -> int:
    """Print what was found; exit code 1 if something needed is missing."""
    facts, problems = survey(Path.cwd())
    if settings.json:
        print(json_format.dumps({**facts, "problems": problems}))
    else:
        for name, value in facts.items():
            print(f"{name:14s} {value}")
        for problem in problems:
            print(f"problem: {problem}")
        print("all is well" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def survey(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What there is, and what should be mended."""
    import torch

    facts: dict[str, Any] = {
        "cryorbit": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    problems = []
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "missing"
            problems.append(f"{package} is not installed: pip install cryorbit again")
    facts["cores"] = cores()
    facts["threads"] = torch.get_num_threads()
    facts["gpu"] = (
        torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none (computing on the CPU)"
    )
    memory = available_memory_gb()
    facts["memory_free"] = "unknown" if memory is None else f"{memory:.1f} GB"
    if memory is not None:
        facts["largest_box"] = largest_boxes(int(memory * 1e9))
    if memory is not None and memory < LEAST_MEMORY_GB:
        problems.append(f"only {memory:.1f} GB of memory free: close other programs before a run")
    disk = shutil.disk_usage(folder).free / 1e9
    facts["disk_free"] = f"{disk:.1f} GB in {folder}"
    if disk < LEAST_DISK_GB:
        problems.append(f"only {disk:.1f} GB free in {folder}: make room or write elsewhere")
    for compiler in COMPILERS:
        facts[compiler] = shutil.which(compiler) or "none (optional)"
    facts["executable"] = sys.executable
    return facts, problems


def largest_boxes(free: int) -> str:
    """The boxes whose maps fit into so many bytes.

    >>> largest_boxes(16 * 10**9)
    '320 px to reconstruct, 286 px to refine or find ab initio'
    """
    from cryorbit.inference.memory import largest_box

    boxes = largest_box(free, "reconstruct"), largest_box(free, "refine")
    return f"{boxes[0]} px to reconstruct, {boxes[1]} px to refine or find ab initio"


def available_memory_gb() -> float | None:
    """Memory that can still be had, None where the system does not tell.

    >>> memory = available_memory_gb()
    >>> memory is None or memory > 0
    True
    """
    from cryorbit.inference.memory import free_bytes

    free = free_bytes()
    return None if free is None else free / 1e9
