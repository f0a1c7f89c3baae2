"""Bare stacks and lists of stacks (.mrcs, .mrc, .txt), with poses and CTF from pickles or nowhere."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from cryorbit.data.particles import ParticleStack
from cryorbit.errors import BadFile
from cryorbit.io.compressed import read_plain
from cryorbit.io.cryodrgn import PickledCTF, read_ctf_pickle, read_pose_pickle
from cryorbit.io.locate import StackLocator
from cryorbit.io.mrc_stack import MrcImages
from cryorbit.io.notices import PixelSizeWarning

ShiftUnit = Literal["auto", "fraction", "pixels"]


def read_image_list(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    ctf: str | os.PathLike[str] | None = None,
    pixel_size_A: float | None = None,
) -> ParticleStack:
    """All images of one stack, or of the stacks that a .txt file lists one per line.

    The pixel size is the one given, else that of the ctf pickle, else the header's with a warning.

    Raises
    ------
    BadFile
        If a stack cannot be read, or there is no pixel size.
    """
    images = MrcImages(_stack_paths(Path(path), data_dir))
    pixel_size = pixel_size_A
    if pixel_size is None and ctf is not None:
        pixel_size = read_ctf_pickle(ctf).pixel_size_A(images.box)
    if pixel_size is None:
        pixel_size = _header_pixel_size(path, images)
    names = [os.path.relpath(p.absolute(), Path(path).absolute().parent) for p in images.paths]
    ids = [
        f"{s + 1:06d}@{names[f]}"
        for f, s in zip(images.file_index.tolist(), images.section.tolist(), strict=True)
    ]
    return ParticleStack(
        images=images, pixel_size_A=pixel_size, ids=np.array(ids, dtype=object), source=str(path)
    )


def with_pickles(
    stack: ParticleStack,
    *,
    poses: str | os.PathLike[str] | None = None,
    ctf: str | os.PathLike[str] | None = None,
    shifts: ShiftUnit = "auto",
) -> ParticleStack:
    """The stack with poses and CTF from cryoDRGN's pickles, which have no names: row i is particle i.

    Raises
    ------
    BadFile
        If the number of rows differs.
    """
    if poses is not None:
        pose = read_pose_pickle(poses, box=stack.box, pixel_size_A=stack.pixel_size_A, shifts=shifts)
        _same_length(poses, len(pose), stack)
        stack = replace(stack, pose=pose)
    if ctf is not None:
        found: PickledCTF = read_ctf_pickle(ctf)
        _same_length(ctf, len(found.ctf), stack)
        size = found.pixel_size_A(stack.box)
        if abs(size - stack.pixel_size_A) > 1e-3 * size:
            warnings.warn(
                f"{ctf}: it says {size:g} A per pixel for {stack.box} px images, but "
                f"{stack.pixel_size_A:g} A is used.",
                PixelSizeWarning,
                stacklevel=3,
            )
        stack = replace(stack, ctf=found.ctf)
    return stack


def _same_length(path: str | os.PathLike[str], rows: int, stack: ParticleStack) -> None:
    if rows != len(stack):
        raise BadFile(
            f"{path}: {rows} rows, but {stack.source} has {len(stack)} particles. "
            "Pickles are joined by position: give those made for exactly these particles."
        )


def _stack_paths(path: Path, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    if path.suffix != ".txt":
        return [path]
    try:
        lines = read_plain(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: not a text file. Give a list of stacks, one per line.") from error
    rows = [
        (i, line.strip())
        for i, line in enumerate(lines)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not rows:
        raise BadFile(f"{path}: the list names no stack. Write one path per line.")
    return StackLocator(path, data_dir=data_dir).find_all(
        [n for _, n in rows], np.array([i for i, _ in rows])
    )


def _header_pixel_size(path: str | os.PathLike[str], images: MrcImages) -> float:
    sizes = [h.pixel_size_A for h in images.headers]
    if sizes[0] <= 0 or max(sizes) - min(sizes) > 1e-3 * sizes[0]:
        found = ", ".join(f"{s:g}" for s in sorted(set(sizes))[:3])
        raise BadFile(
            f"{path}: no single pixel size in the stack headers ({found} A). State the pixel size "
            "(--pixel-size-A)."
        )
    warnings.warn(
        f"{path}: pixel size {sizes[0]:g} A is taken from the stack's header, which many programs leave "
        "wrong.",
        PixelSizeWarning,
        stacklevel=4,
    )
    return sizes[0]
