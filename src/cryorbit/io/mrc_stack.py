"""Stacks of particle images in MRC files: read through memory maps, written in chunks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path
from cryorbit.io.compressed import compression, decompress_to_temporary
from cryorbit.io.mrc_header import (
    HEADER_BYTES,
    MODES,
    MrcHeader,
    PixelStatistics,
    check_length,
    header_bytes,
    read_header,
)
from cryorbit.io.open_maps import OpenMaps, mapped

_CHUNK_BYTES = 32 << 20
"""Most that is converted at one time, so that half-precision stacks need no second copy in memory."""


_LARGEST = {"float32": float(np.finfo(np.float32).max), "float16": float(np.finfo(np.float16).max)}


class MrcImages:
    """Images of one or many MRC stacks, read from disk when asked for: an `ImageSource`.

    Parameters
    ----------
    paths
        The stacks, each once.
    file_index, section
        Per image: which stack, and which image in it (from 0). None: all images of all stacks in order.
    table
        The file that lists the images, for messages.
    row_offset
        Row of the first image in `table`, as its reader counts (1 for the first).

    Raises
    ------
    BadFile
        If a stack is missing, truncated, of another size, or has no such image. Pixels are checked to be
        finite when they are read.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        file_index: np.ndarray | None = None,
        section: np.ndarray | None = None,
        table: str | None = None,
    ) -> None:
        if not paths:
            raise BadInput("MrcImages: no stacks. Give at least one file.")
        self.paths = tuple(Path(p) for p in paths)
        self.table = table
        self.headers = tuple(_stack_header(p) for p in self.paths)
        counts = np.array([h.size[2] for h in self.headers])
        if file_index is None or section is None:
            file_index = np.repeat(np.arange(len(counts)), counts)
            section = np.concatenate([np.arange(n) for n in counts])
        self.file_index = file_index.astype(np.int32)
        self.section = section.astype(np.int32)
        self._check_sizes()
        self._check_sections(counts)
        self._maps = OpenMaps(self._open)

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        return self.headers[0].size[0]

    def __len__(self) -> int:
        return len(self.section)

    def __getitem__(self, index: slice | Int[Tensor, " n"]) -> Float[Tensor, "n h w"]:
        """The chosen images as float32, in the order asked for; read in the order they lie on the disk.

        Raises
        ------
        BadFile
            If a pixel is not finite, naming stack, image and row.
        """
        rows = as_rows(index, len(self))
        out = torch.empty(len(rows), self.box, self.box)
        pixels = out.numpy()
        order = np.lexsort((self.section[rows], self.file_index[rows]))
        files = self.file_index[rows[order]]
        cuts = np.flatnonzero(np.diff(files)) + 1
        chunk = max(1, _CHUNK_BYTES // (self.box * self.box * 4))
        for places in np.split(order, cuts):
            file = int(self.file_index[rows[places[0]]]) if len(places) else -1
            for start in range(0, len(places), chunk):
                part = places[start : start + chunk]
                stored = self._maps.read(file, self.section[rows[part]])
                if stored.dtype != np.dtype("<f2"):
                    pixels[part] = stored
                elif part[-1] - part[0] == len(part) - 1 and (np.diff(part) == 1).all():
                    # PyTorch casts half precision several times faster than NumPy.
                    out[part[0] : part[-1] + 1].copy_(torch.from_numpy(stored))
                else:
                    pixels[part] = torch.from_numpy(stored).float().numpy()
        self._check_finite(out, rows)
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._maps = OpenMaps(self._open)  # workers open their own maps

    def _open(self, file: int) -> np.ndarray:
        path, header = self.paths[file], self.headers[file]
        columns, rows, sections = header.size
        with open(path, "rb") if compression(path) is None else decompress_to_temporary(path) as plain:
            # Checked again: the stack may have been cut since, and reading past the end of a map kills.
            check_length(path, header, os.fstat(plain.fileno()).st_size)
            shape = (sections, rows, columns)
            return mapped(plain.fileno(), header.dtype, offset=header.data_offset, shape=shape)

    def _where(self, row: int) -> str:
        """Stack and image, and the row of the table that asked for it."""
        name = f"{self.paths[int(self.file_index[row])]}: image {int(self.section[row]) + 1}"
        return name if self.table is None else f"{name} ({self.table}, row {row + 1})"

    def _check_sizes(self) -> None:
        box = self.box
        for path, header in zip(self.paths, self.headers, strict=True):
            columns, rows, _ = header.size
            if columns != rows:
                raise BadFile(
                    f"{path}: images of {columns} x {rows} pixels are not square. Extract square boxes."
                )
            if columns != box:
                raise BadFile(
                    f"{path}: images of {columns} pixels, but those of {self.paths[0]} have {box}. "
                    "Extract all particles with one box size."
                )

    def _check_sections(self, counts: np.ndarray) -> None:
        bad = (self.section < 0) | (self.section >= counts[self.file_index])
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise BadFile(
                f"{self._where(row)} does not exist: the stack has {counts[self.file_index[row]]} images. "
                "Use the stack that belongs to this file, or remove the row."
            )

    def _check_finite(self, images: Tensor, rows: np.ndarray) -> None:
        bad = ~torch.isfinite(images.flatten(1).sum(1))
        for i in torch.nonzero(bad).flatten().tolist():
            if not torch.isfinite(images[i]).all():
                raise BadFile(
                    f"{self._where(int(rows[i]))} has pixels that are not finite (NaN or infinite). "
                    "Remove that row, or extract the particle again."
                )


def as_rows(index: slice | Tensor, n: int) -> np.ndarray:
    """Row numbers from 0 for a slice or an integer tensor.

    Raises
    ------
    BadInput
        If there is no such row.
    """
    if isinstance(index, slice):
        return np.arange(n)[index]
    rows = index.cpu().numpy().astype(np.int64)
    if rows.size and (rows.max() >= n or rows.min() < -n):
        raise BadInput(f"images: row {int(np.abs(rows).max())} asked for, but there are {n} images.")
    return rows % n if n else rows


def _stack_header(path: Path) -> MrcHeader:
    if not path.exists():
        raise BadFile(f"{path}: there is no such stack. Give its folder (--data-dir) or correct the path.")
    return read_header(path)


class StackWriter:
    """Write a stack of images in chunks, whole or not at all.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with StackWriter(folder / "a.mrcs", box=8, pixel_size_A=2.0) as stack:
    ...     stack.append(torch.zeros(3, 8, 8))
    >>> len(MrcImages([folder / "a.mrcs"]))
    3

    Parameters
    ----------
    path
        Where the stack goes when the block ends; if it raises, nothing is left there.
    box
        Edge of an image in pixels.
    pixel_size_A
        Goes into the header.
    dtype
        "float32" (mode 2) or "float16" (mode 12, half the disk; what RELION 4 and later can read).

    Raises
    ------
    BadFile
        If the disk refuses, a full one among others.
    BadInput
        If an image has another size or is not finite, or no image was written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        box: int,
        pixel_size_A: float,
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        self.path = Path(path)
        self.box = box
        self.pixel_size_A = pixel_size_A
        self.dtype = dtype
        self.count = 0
        self._statistics = PixelStatistics()
        self._exits = ExitStack()
        self._file: Any = None

    def __enter__(self) -> StackWriter:
        temporary = self._exits.enter_context(atomic_path(self.path))
        self._file = self._exits.enter_context(open(temporary, "wb"))
        self._file.write(bytes(HEADER_BYTES))
        return self

    def append(self, images: Float[Tensor, "n h w"]) -> None:
        """Add images at the end."""
        if tuple(images.shape[1:]) != (self.box, self.box):
            raise BadInput(
                f"{self.path}: images of {tuple(images.shape[1:])} in a stack of {self.box} pixels."
            )
        if images.shape[0] == 0:
            return
        pixels = images.detach().to("cpu", torch.float32)
        low, high = torch.aminmax(pixels)
        if not max(-float(low), float(high)) <= _LARGEST[self.dtype]:  # said so that NaN fails too
            raise BadInput(
                f"{self.path}: an image has pixels that {self.dtype} cannot hold. Normalise it first."
            )
        self._statistics.add(pixels)
        self.count += images.shape[0]
        stored = (pixels.half() if self.dtype == "float16" else pixels).contiguous().numpy()
        self._file.write(stored.astype(stored.dtype.newbyteorder("<"), copy=False).data.cast("B"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._exits.__exit__(kind, error, trace)
            return
        with self._exits:
            self._file.seek(0)
            self._file.write(
                header_bytes(
                    size=(self.box, self.box, self.count),
                    mode=MODES[self.dtype],
                    pixel_size_A=self.pixel_size_A,
                    is_stack=True,
                    statistics=self._statistics,
                )
            )
