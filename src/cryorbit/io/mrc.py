"""MRC maps: files <-> `Volume`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cryorbit.data.volume import Volume, moved_place
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path
from cryorbit.io.compressed import read_plain
from cryorbit.io.mrc_header import (
    MODES,
    MrcHeader,
    PixelStatistics,
    check_length,
    header_bytes,
    read_header,
)
from cryorbit.io.mrc_stack import MrcImages, StackWriter

__all__ = [
    "MrcImages",
    "StackWriter",
    "map_shape",
    "read_map",
    "refuse_not_finite",
    "write_map",
    "write_maps",
]

_SQUARE_CELL = 1e-3
"""Relative difference of voxel edges that still counts as a cubic voxel: headers are rounded to 3
decimals."""


def read_map(
    path: str | os.PathLike[str],
    *,
    pixel_size_A: float | None = None,
    to_cube: Literal["refuse", "pad"] = "refuse",
) -> Volume:
    """Read a map, plain or compressed, whatever the order of its axes, as values[z, y, x].

    Parameters
    ----------
    path
        An MRC or CCP4 file of mode 0, 1, 2, 6 or 12; .gz, .bz2, .xz and .zst are unpacked on the way.
    pixel_size_A
        Replaces the header's voxel size; needed where the header has none.
    to_cube
        What to do with a map that is no cube: refuse it, or pad it with zeros around index N // 2. Padding
        moves ORIGIN and NSTART so that overlays stay right; `write_map` with the shape of `map_shape` undoes it.

    Raises
    ------
    BadFile
        If the file is broken, its axes or cell cannot be used, or it has no voxel size.
    """
    header = read_header(path)
    values = _values_zyx(path, header)
    nstart = _in_xyz(header, header.nstart)
    voxel = _voxel_size(path, header) if pixel_size_A is None else pixel_size_A
    origin = header.origin_A
    if len(set(values.shape)) != 1:
        if to_cube == "refuse":
            z, y, x = values.shape
            raise BadFile(
                f"{path}: {x} x {y} x {z} voxels, but a cube is wanted. Pad it first: "
                f"`cryorbit map crop {path} -o CUBE.mrc --box {max(x, y, z)}`."
            )
        values, before = _pad_to_cube(values)
        x, y, z = (-b for b in reversed(before))
        origin, nstart = moved_place(origin, nstart, (x, y, z), float(voxel))
    return Volume(torch.from_numpy(values), pixel_size_A=float(voxel), origin_A=origin, nstart=nstart)


def refuse_not_finite(path: str | os.PathLike[str], volume: Volume) -> None:
    """Raise if a map that was read has values that are not finite.

    Raises
    ------
    BadFile
        Naming the file and how many voxels are at fault.
    """
    bad = int((~torch.isfinite(volume.values)).sum())
    if bad:
        raise BadFile(
            f"{path}: {bad} of {volume.values.numel()} voxels are not finite (NaN or infinite). Export the map anew, or "
            "set them to the solvent's level."
        )


def map_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Voxels along z, y, x of a map that need not be a cube.

    Raises
    ------
    BadFile
        If the header cannot be read.
    """
    header = read_header(path)
    if sorted(header.axes) != [1, 2, 3]:
        return header.size[2], header.size[1], header.size[0]
    x, y, z = _in_xyz(header, header.size)
    return z, y, x


def write_map(
    path: str | os.PathLike[str], volume: Volume, *, shape: tuple[int, int, int] | None = None
) -> None:
    """Write a map as MRC2014 mode 2, with its ORIGIN and NSTART, whole or not at all.

    Parameters
    ----------
    shape
        Voxels along z, y, x to write, about index N // 2; None: all. ORIGIN and NSTART move along.

    Raises
    ------
    BadFile
        If the disk refuses.
    BadInput
        If a value is not finite, or the shape is larger than the map.
    """
    with atomic_path(path) as temporary:
        _fill(temporary, path, volume, shape)


def write_maps(maps: Mapping[Path, Volume]) -> None:
    """Write several maps, each by its path: none takes its name before all of them are on the disk.

    Raises
    ------
    BadFile
        If the disk refuses; all paths keep what they had.
    BadInput
        If a value is not finite.
    """
    with ExitStack() as files:
        for path, volume in maps.items():
            _fill(files.enter_context(atomic_path(path)), path, volume)


def _fill(
    temporary: Path,
    path: str | os.PathLike[str],
    volume: Volume,
    shape: tuple[int, int, int] | None = None,
) -> None:
    """Put header and values of the map that is to be `path` into a file, and the file on the disk."""
    values = volume.values.detach().to("cpu", torch.float32)
    origin, nstart = volume.origin_A, volume.nstart
    if shape is not None:
        values, (x, y, z) = _central(values, shape)
        origin, nstart = moved_place(origin, nstart, (x, y, z), volume.pixel_size_A)
    values = values.contiguous()
    if not torch.isfinite(values).all():
        raise BadInput(f"{path}: the map has values that are not finite. Look for the step that made them.")
    statistics = PixelStatistics()
    statistics.add(values)
    sections, rows, columns = values.shape
    header = header_bytes(
        size=(columns, rows, sections),
        mode=MODES["float32"],
        pixel_size_A=volume.pixel_size_A,
        is_stack=False,
        statistics=statistics,
        origin_A=origin,
        nstart=nstart,
    )
    with open(temporary, "wb") as file:
        file.write(header)
        file.write(values.numpy().astype("<f4", copy=False).data.cast("B"))
        file.flush()
        os.fsync(file.fileno())


def _values_zyx(path: str | os.PathLike[str], header: MrcHeader) -> np.ndarray:
    """All values as float32, sections x rows x columns turned into z, y, x."""
    if sorted(header.axes) != [1, 2, 3]:
        raise BadFile(
            f"{path}: axes MAPC, MAPR, MAPS are {header.axes}, but each of 1, 2, 3 is wanted once. "
            "Correct the header or export the map again."
        )
    raw = read_plain(path)
    check_length(path, header, len(raw))
    columns, rows, sections = header.size
    start, stop = header.data_offset, header.data_offset + header.data_bytes
    stored = np.frombuffer(raw[start:stop], header.dtype).reshape(sections, rows, columns)
    # Axis of the file that runs along z, then y, then x; the file's axes are (section, row, column).
    order = [2 - header.axes.index(axis) for axis in (3, 2, 1)]
    return np.array(stored.transpose(order), dtype=np.float32, order="C")


def _in_xyz(header: MrcHeader, along_file_axes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Values given per column, row, section, in the order x, y, z."""
    x, y, z = (along_file_axes[header.axes.index(axis)] for axis in (1, 2, 3))
    return x, y, z


def _voxel_size(path: str | os.PathLike[str], header: MrcHeader) -> float:
    angles = header.cell_angles_deg
    if any(a and abs(a - 90) > 0.01 for a in angles):
        raise BadFile(
            f"{path}: cell angles {angles} are not 90 degrees: a crystal's map. Resample it on cubic voxels."
        )
    sizes = [c / m if m > 0 else 0.0 for c, m in zip(header.cell_A, header.grid, strict=True)]
    if not all(s > 0 for s in sizes):
        x, y, z = _in_xyz(header, header.size)
        raise BadFile(
            f"{path}: the header has no voxel size (cell {header.cell_A} A). State the pixel size, or write it into a "
            f"header first: `cryorbit map crop {path} -o OUT.mrc --box {x} {y} {z} --header-pixel-size-A ...`."
        )
    if max(sizes) - min(sizes) > _SQUARE_CELL * max(sizes):
        shown = ", ".join(f"{s:.4f}" for s in sizes)
        raise BadFile(
            f"{path}: voxels of {shown} A are not cubes. Resample the map, or state the pixel size."
        )
    return sizes[0]


def _pad_to_cube(values: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Zeros around, index N // 2 of each axis going to index N // 2 of the cube; also what went before."""
    n = max(values.shape)
    before = [n // 2 - m // 2 for m in values.shape]
    widths = [(b, n - m - b) for b, m in zip(before, values.shape, strict=True)]
    return np.pad(values, widths), before


def _central(values: torch.Tensor, shape: tuple[int, int, int]) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """The central voxels, index N // 2 of each axis kept; also what was cut off before (x, y, z)."""
    if any(not 0 < m <= n for n, m in zip(values.shape, shape, strict=True)):
        raise BadInput(f"write_map: {shape} voxels wanted of a map of {tuple(values.shape)}. Pad it first.")
    cut = [n // 2 - m // 2 for n, m in zip(values.shape, shape, strict=True)]
    for axis, (start, length) in enumerate(zip(cut, shape, strict=True)):
        values = values.narrow(axis, start, length)
    return values, (cut[2], cut[1], cut[0])
