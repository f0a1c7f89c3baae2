"""Trajectories of molecular dynamics: DCD files of CHARMM, NAMD and X-PLOR -> positions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.io import FortranEOFError, FortranFile, FortranFormattingError
from torch import Tensor

from cryorbit.errors import BadFile

_HEADER_BYTES = 84


def read_dcd(path: str | os.PathLike[str]) -> Float[Tensor, "frames atoms 3"]:
    """All frames that the file really holds, in angstrom; the count in its header is not trusted.

    A DCD file is a sequence of Fortran records: a header of 84 bytes that begins with "CORD", a title, the number of
    atoms, and for each frame the unit cell (where the header announces one) and then all x, all y and all z as 32-bit
    floats.

    Raises
    ------
    BadFile
        If the file is missing or is no DCD file, holds fixed atoms, or no whole frame.
    """
    if not Path(path).is_file():
        raise BadFile(f"{path}: no such file. Give the path of a .dcd trajectory.")
    order = _byte_order(path)
    marker: Any = np.dtype(f"{order}u4")
    with FortranFile(path, "r", header_dtype=marker) as file:
        try:
            header = file.read_record(np.dtype(f"{order}i4"))
            file.read_record(np.dtype(np.uint8))
            atoms = int(file.read_record(np.dtype(f"{order}i4"))[0])
        except (FortranEOFError, FortranFormattingError, ValueError) as error:
            raise BadFile(f"{path}: the DCD header is cut short ({error}). Copy the file again.") from error
        if header[9] != 0:
            raise BadFile(
                f"{path}: {header[9]} atoms are fixed and stand in the first frame only. Unfix them."
            )
        frames = _frames(file, atoms, has_cell=bool(header[11]), order=order)
    if not frames:
        raise BadFile(f"{path}: no whole frame in it. Copy the file again.")
    return torch.from_numpy(np.stack(frames))


def _byte_order(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    for order in "<>":
        if start == np.array(_HEADER_BYTES, f"{order}u4").tobytes() + b"CORD":
            return order
    raise BadFile(f"{path}: not a DCD trajectory (no CORD header). Convert it to DCD first.")


def _frames(file: FortranFile, atoms: int, *, has_cell: bool, order: str) -> list[np.ndarray]:
    """Frames up to the end of the file; one that is cut short is left out."""
    frames = []
    while True:
        try:
            if has_cell:
                file.read_record(np.dtype(np.uint8))
            axes = [file.read_record(np.dtype(f"{order}f4")) for _ in range(3)]
        except (FortranEOFError, FortranFormattingError):
            return frames
        if any(len(axis) != atoms for axis in axes):
            return frames
        frames.append(np.stack(axes, axis=1).astype(np.float32))
