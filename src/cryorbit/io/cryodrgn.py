"""cryoDRGN pickles: pose.pkl, ctf.pkl, ind.pkl; nothing but NumPy arrays is ever unpickled."""

from __future__ import annotations

import codecs
import io
import os
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from cryorbit.data.ctf import CTF
from cryorbit.data.pose import Pose
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path
from cryorbit.io.compressed import read_plain
from cryorbit.io.notices import ShiftUnitWarning

_NOT_ROTATION = 1e-3
"""Largest deviation of R R^T from 1 in a pose file: float32 and printed digits stay far below."""
_FIELDS = (
    "defocus_u_A",
    "defocus_v_A",
    "astigmatism_angle_deg",
    "voltage_kV",
    "cs_mm",
    "amplitude_contrast",
    "phase_shift_deg",
)
"""Columns 2 to 8 of ctf.pkl; columns 0 and 1 are box and pixel size of the original data."""


@dataclass(frozen=True, eq=False)
class PickledCTF:
    """What a ctf.pkl says: the CTF, and box and pixel size of the data it was made from."""

    ctf: CTF
    original_box: int
    original_pixel_size_A: float

    def pixel_size_A(self, box: int) -> float:
        """Pixel size of these images cut down to `box` pixels in Fourier space."""
        return self.original_pixel_size_A * self.original_box / box


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can rebuild NumPy arrays and nothing else: no other name is ever looked up."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _allowed().get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return allowed


def read_arrays(path: str | os.PathLike[str]) -> list[Any]:
    """Everything pickled in a file, one entry per pickle: arrays, numbers, and tuples, lists or dicts of
    them.

    Raises
    ------
    BadFile
        If it holds anything but plain NumPy arrays: such a pickle could run code, so it is not opened.
    """
    raw = io.BytesIO(read_plain(path))
    size = len(raw.getbuffer())
    found = []
    try:
        while raw.tell() < size:
            found.append(_ArraysOnly(raw, encoding="latin1").load())
    except Exception as error:  # a broken pickle can fail in any way
        raise BadFile(
            f"{path}: not a pickle of NumPy arrays alone ({error}), so it was not opened. "
            "Save the arrays with pickle.dump from NumPy."
        ) from error
    if not found or any(a.dtype.hasobject for a in _arrays_in(found)):
        raise BadFile(f"{path}: no NumPy arrays of numbers in it. Give a pickle that cryoDRGN wrote.")
    return found


def read_pose_pickle(
    path: str | os.PathLike[str],
    *,
    box: int,
    pixel_size_A: float,
    shifts: Literal["auto", "fraction", "pixels"] = "auto",
) -> Pose:
    """Poses from a cryoDRGN pose.pkl: rotations A, and shifts as a fraction of the box with the sign of
    rlnOrigin.

    Parameters
    ----------
    path
        A pickle of (rotations, shifts), of a 1-tuple, or of rotations alone (no shifts).
    box, pixel_size_A
        Of the images that the poses belong to.
    shifts
        Unit of the shifts. "auto": pixels where any exceeds 1, fractions otherwise, with a warning where the
        file's name (pose.N.pkl) is one that two engines write in different units.

    Raises
    ------
    BadFile
        If the arrays are not rotations and shifts of equal number.
    """
    found = read_arrays(path)[0]
    parts = list(found) if isinstance(found, tuple | list) else [found]
    rotation = np.asarray(parts[0], np.float64)
    if rotation.ndim != 3 or rotation.shape[1:] != (3, 3) or len(rotation) == 0:
        raise BadFile(f"{path}: rotations of shape {rotation.shape}, (n, 3, 3) is wanted. Give a pose.pkl.")
    off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    bad = (off > _NOT_ROTATION) | ~np.isfinite(off)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise BadFile(f"{path}: row {row + 1} is not a rotation matrix. Write the pose file again.")
    n = len(rotation)
    translation = np.zeros((n, 2)) if len(parts) < 2 else np.asarray(parts[1], np.float64)
    if translation.shape != (n, 2) or not np.isfinite(translation).all():
        raise BadFile(
            f"{path}: {n} rotations but shifts of shape {translation.shape}, finite ({n}, 2) is wanted."
        )
    if shifts == "auto":
        shifts = _guess_unit(path, translation)
    unit_A = pixel_size_A * (box if shifts == "fraction" else 1)
    shift = 0.0 - translation * unit_A
    return Pose(torch.from_numpy(rotation.astype(np.float32)), torch.from_numpy(shift.astype(np.float32)))


def write_pose_pickle(path: str | os.PathLike[str], pose: Pose, *, box: int, pixel_size_A: float) -> None:
    """Write poses as cryoDRGN's pose.pkl: (rotations, shifts as a fraction of the box), float32.

    Raises
    ------
    BadInput
        If a shift exceeds the box, which cryoDRGN would take for its old pixel format.
    BadFile
        If the disk refuses.
    """
    _check_box(path, box)
    fraction = 0.0 - pose.shift_A.detach().cpu().double() / (box * pixel_size_A)
    if (fraction.abs() > 1).any():
        row = int(torch.nonzero((fraction.abs() > 1).any(1))[0, 0])
        raise BadInput(f"{path}: the shift of particle {row + 1} exceeds the box. Remove that particle.")
    rotation = pose.rotation.detach().cpu().numpy().astype(np.float32)
    _write_pickle(path, (rotation, fraction.numpy().astype(np.float32)))


def read_ctf_pickle(path: str | os.PathLike[str]) -> PickledCTF:
    """CTF parameters from a cryoDRGN ctf.pkl: an array (n, 9).

    A phase shift of NaN, which cryoDRGN writes where a STAR file had none, is read as 0.

    Raises
    ------
    BadFile
        If the array has another shape or a value is not finite.
    """
    table = np.asarray(read_arrays(path)[0])
    if table.ndim != 2 or table.shape[1] != 2 + len(_FIELDS) or len(table) == 0:
        raise BadFile(f"{path}: an array of shape {table.shape}, (n, 9) is wanted. Give a ctf.pkl.")
    table = table.astype(np.float64)
    table[:, 8] = np.nan_to_num(table[:, 8], nan=0.0)
    bad = ~np.isfinite(table).all(1) | (table[:, :2] <= 0).any(1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise BadFile(
            f"{path}: row {row + 1} has a value that is not finite, or no box or pixel size. Correct it."
        )
    differs = np.abs(table[:, :2] - table[0, :2]).max(1) > 1e-4 * table[0, 1]
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        raise BadFile(
            f"{path}: row 1 has box {table[0, 0]:g} and {table[0, 1]:g} A but row {row + 1} has "
            f"{table[row, 0]:g} and "
            f"{table[row, 1]:g} A. Bring all particles to one size."
        )
    values = {f: torch.from_numpy(table[:, 2 + i].astype(np.float32)) for i, f in enumerate(_FIELDS)}
    n = len(table)
    ctf = CTF(**values, b_factor_A2=torch.zeros(n), scale=torch.ones(n))
    return PickledCTF(ctf, round(float(table[0, 0])), float(np.round(table[0, 1], 6)))


def write_ctf_pickle(path: str | os.PathLike[str], ctf: CTF, *, box: int, pixel_size_A: float) -> None:
    """Write CTF parameters as cryoDRGN's ctf.pkl: float32, (n, 9).

    Raises
    ------
    BadFile
        If the disk refuses.
    """
    _check_box(path, box)
    n = len(ctf)
    columns = [np.full(n, box), np.full(n, pixel_size_A)]
    columns += [getattr(ctf, field).detach().cpu().numpy() for field in _FIELDS]
    _write_pickle(path, np.stack(columns, 1).astype(np.float32))


def read_index_pickle(path: str | os.PathLike[str], *, count: int) -> torch.Tensor:
    """Rows to keep, from a cryoDRGN ind.pkl, for `ParticleStack.select`.

    Raises
    ------
    BadFile
        If it is no list of whole numbers, or one is not below `count`.
    """
    rows = np.asarray(read_arrays(path)[0])
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise BadFile(
            f"{path}: an array of {rows.dtype} and shape {rows.shape}, whole numbers (n,) are wanted."
        )
    if rows.size and (rows.min() < 0 or rows.max() >= count):
        raise BadFile(
            f"{path}: index {rows.max()} is beyond the {count} particles. Give the file they belong to."
        )
    return torch.from_numpy(rows.astype(np.int64))


def _check_box(path: str | os.PathLike[str], box: int) -> None:
    if box <= 0:
        raise BadInput(
            f"{path}: the box size is not known, as the stacks were not opened. Read them with it."
        )


def _guess_unit(path: str | os.PathLike[str], translation: np.ndarray) -> Literal["fraction", "pixels"]:
    largest = float(np.abs(translation).max())
    if largest > 1:
        warnings.warn(
            f"{path}: shifts up to {largest:g} cannot be fractions of the box, so they are taken for pixels.",
            ShiftUnitWarning,
            stacklevel=4,
        )
        return "pixels"
    if largest > 0 and re.search(r"pose\.\d+\.pkl", os.path.basename(path)):
        warnings.warn(
            f"{path}: some versions of cryoDRGN write such files with shifts in pixels; fractions of the "
            "box are "
            "assumed, as all are below 1. Say shifts 'pixels' if they are.",
            ShiftUnitWarning,
            stacklevel=4,
        )
    return "fraction"


def _write_pickle(path: str | os.PathLike[str], content: object) -> None:
    raw = pickle.dumps(content, protocol=4)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(raw)


def _arrays_in(content: object) -> list[np.ndarray]:
    if isinstance(content, np.ndarray):
        return [content]
    if isinstance(content, tuple | list):
        return [a for item in content for a in _arrays_in(item)]
    if isinstance(content, dict):
        return [a for item in content.values() for a in _arrays_in(item)]
    return []


def _allowed() -> dict[tuple[str, str], Callable[..., Any]]:
    """What a pickle of arrays names, with our own rebuilders in place of NumPy's."""
    return {
        ("numpy.core.multiarray", "_reconstruct"): _blank_array,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1_bytes,
    }


def _blank_array(kind: type, shape: tuple[int, ...], typecode: object) -> np.ndarray:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"it rebuilds {kind}")
    return np.ndarray.__new__(np.ndarray, (0,), "b")  # filled by its pickled state


def _from_buffer(
    buffer: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: str
) -> np.ndarray:
    array = np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")
    return array.copy()


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it has text encoded as {encoding}")
    return codecs.encode(text, "latin1")
