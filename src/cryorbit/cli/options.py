"""Options that every computing verb shares, and what they do to the process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cryorbit.cli.progress import say
from cryorbit.errors import BadInput

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]

OutFolder = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
"""Type of a verb's required output folder."""


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Where settings come from."""

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yaml")] = None
    """Read settings from this file; the command line wins."""
    print_config: bool = False
    """Print the settings as YAML and stop."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and how widely to compute."""

    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    threads: int | None = None
    """CPU threads; all cores unless given."""


def prepare(options: ComputeOptions) -> torch.device:
    """Set the number of threads and choose the device; a missing GPU is said once.

    Raises
    ------
    BadInput
        If a GPU was asked for and none is usable, or the number of threads is not positive.
    """
    import torch

    set_threads(options.threads)
    gpu = options.device != "cpu" and torch.cuda.is_available()
    if options.device == "cuda" and not gpu:
        raise BadInput("--device cuda: no usable GPU was found. Use --device cpu, or see `cryorbit doctor`.")
    if not gpu:
        if options.device == "auto":
            say(f"No GPU found: computing on the CPU with {torch.get_num_threads()} threads.")
        return torch.device("cpu")
    return torch.device("cuda")


def set_threads(count: int | None) -> None:
    """Compute with `count` threads; None leaves the number as it is.

    Raises
    ------
    BadInput
        If it is not positive.
    """
    import torch

    if count is not None:
        if count < 1:
            raise BadInput(f"--threads {count}: wanted 1 or more.")
        torch.set_num_threads(count)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
