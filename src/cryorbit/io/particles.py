"""Particle files of any dialect <-> `ParticleStack`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cryorbit.data.particles import ParticleStack
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.relion import Origins, read_relion
from cryorbit.io.relion_write import ImagePaths, write_relion
from cryorbit.io.star import is_star


def read_particles(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    origins: Origins = "auto",
    pixel_size_A: float | None = None,
    images: Literal["present", "absent"] = "present",
) -> ParticleStack:
    """Read particles."""
    if is_star(path):
        return read_relion(path, data_dir=data_dir, origins=origins, pixel_size_A=pixel_size_A, images=images)
    raise BadInput(f"{path}: not a particle file that can be read. Give a .star, .cs, .mrcs or .txt file.")


def write_particles(
    path: str | os.PathLike[str],
    stack: ParticleStack,
    *,
    extra_columns: Mapping[str, np.ndarray | torch.Tensor] | None = None,
    image_paths: ImagePaths = "auto",
) -> None:
    """Write particles."""
    write_relion(path, stack, extra_columns=extra_columns, image_paths=image_paths)
