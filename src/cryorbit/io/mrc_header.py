"""The 1024-byte header of an MRC2014 file, read permissively and written strictly."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryorbit.errors import BadFile, BadInput
from cryorbit.io.compressed import compression, read_plain

HEADER_BYTES = 1024
DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
"""Modes that can be read. Mode 0 is signed."""
MODES = {"float32": 2, "float16": 12}
"""Modes that can be written."""


@dataclass(frozen=True)
class MrcHeader:
    """What the readers need of an MRC header, in the file's own axis order (column, row, section)."""

    size: tuple[int, int, int]
    """NX, NY, NZ: columns, rows, sections."""
    mode: int
    nstart: tuple[int, int, int]
    grid: tuple[int, int, int]
    """MX, MY, MZ along x, y, z."""
    cell_A: tuple[float, float, float]
    cell_angles_deg: tuple[float, float, float]
    axes: tuple[int, int, int]
    """MAPC, MAPR, MAPS: 1, 2, 3 for x, y, z."""
    space_group: int
    extended_bytes: int
    origin_A: tuple[float, float, float]
    byte_order: str
    """"<" or ">"."""

    @property
    def dtype(self) -> np.dtype:
        """Type of a stored pixel."""
        return np.dtype(self.byte_order + DTYPES[self.mode])

    @property
    def data_offset(self) -> int:
        """First byte of the data."""
        return HEADER_BYTES + self.extended_bytes

    @property
    def data_bytes(self) -> int:
        """Bytes that the data should have."""
        return int(np.prod(self.size, dtype=np.int64)) * self.dtype.itemsize

    @property
    def pixel_size_A(self) -> float:
        """CELLA.x / MX, or 0 where the header has none."""
        return self.cell_A[0] / self.grid[0] if self.grid[0] > 0 else 0.0


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read and check the header of a plain or compressed MRC file.

    Raises
    ------
    BadFile
        If the file is missing, too short, of an unknown mode, or shorter than its header says.
    """
    raw = read_plain(path, HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise BadFile(
            f"{path}: {len(raw)} bytes, too short for an MRC header of {HEADER_BYTES}. Copy the file again."
        )
    header = _parse(path, raw)
    if compression(path) is None:
        check_length(path, header, os.path.getsize(path))
    return header


def check_length(path: str | os.PathLike[str], header: MrcHeader, actual: int) -> None:
    """Refuse a file that ends before its header says.

    Raises
    ------
    BadFile
        Naming the expected and the actual number of bytes.
    """
    expected = header.data_offset + header.data_bytes
    if actual < expected:
        whole = max(0, actual - header.data_offset) // max(1, header.data_bytes // max(1, header.size[2]))
        raise BadFile(
            f"{path}: truncated: the header promises {header.size[2]} sections of {header.size[0]} x "
            f"{header.size[1]} = {expected} bytes, the file has {actual} ({whole} whole sections). "
            "Copy or extract it again."
        )


def _parse(path: str | os.PathLike[str], raw: bytes) -> MrcHeader:
    for order in "<>":
        whole = struct.unpack(order + "10i", raw[:40])
        if whole[3] in DTYPES and all(0 < n < 1 << 24 for n in whole[:3]):
            break
    else:
        little = struct.unpack("<4i", raw[:16])
        raise BadFile(
            f"{path}: not an MRC file that can be read (size {little[:3]}, mode {little[3]}; modes 0, 1, "
            "2, 6 and "
            "12 can). Convert it to mode 2."
        )
    cell = struct.unpack(order + "6f", raw[40:64])
    axes = struct.unpack(order + "3i", raw[64:76])
    group, extended = struct.unpack(order + "2i", raw[88:96])
    origin = struct.unpack(order + "3f", raw[196:208])
    if not 0 <= extended < 1 << 40:
        raise BadFile(
            f"{path}: extended header of {extended} bytes. The header is broken; copy the file again."
        )
    return MrcHeader(
        size=whole[:3],
        mode=whole[3],
        nstart=whole[4:7],
        grid=whole[7:10],
        cell_A=_finite(cell[:3]),
        cell_angles_deg=_finite(cell[3:]),
        axes=(1, 2, 3) if axes == (0, 0, 0) else axes,
        space_group=group,
        extended_bytes=extended,
        origin_A=_finite(origin),
        byte_order=order,
    )


def _finite(values: tuple[float, ...]) -> tuple[float, float, float]:
    a, b, c = (v if np.isfinite(v) else 0.0 for v in values)
    return a, b, c


@dataclass
class PixelStatistics:
    """Minimum, maximum, mean and deviation of pixels that pass by in chunks."""

    count: int = 0
    total: float = 0.0
    total_of_squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, pixels: Tensor) -> None:
        """Count a chunk in."""
        self.count += pixels.numel()
        self.total += float(pixels.sum(dtype=torch.float64))
        self.total_of_squares += float(pixels.square().sum(dtype=torch.float64))
        low, high = torch.aminmax(pixels)
        self.low = min(self.low, float(low))
        self.high = max(self.high, float(high))

    def as_header(self) -> tuple[float, float, float, float]:
        """DMIN, DMAX, DMEAN, RMS."""
        if self.count == 0:
            return 0.0, -1.0, -2.0, -1.0  # MRC2014's way to say "not known"
        mean = self.total / self.count
        return self.low, self.high, mean, max(0.0, self.total_of_squares / self.count - mean**2) ** 0.5


def header_bytes(
    *,
    size: tuple[int, int, int],
    mode: int,
    pixel_size_A: float,
    is_stack: bool,
    statistics: PixelStatistics,
    origin_A: tuple[float, float, float] = (0.0, 0.0, 0.0),
    nstart: tuple[int, int, int] = (0, 0, 0),
) -> bytes:
    """An MRC2014 header: a volume has ISPG 1 and MZ = NZ, a stack ISPG 0 and MZ = 1.

    Raises
    ------
    BadInput
        If a size is not positive or too large for the format.
    """
    if not all(0 < n < 1 << 31 for n in size):
        raise BadInput(f"MRC: size {size} cannot be stored. Sizes run from 1 to 2^31 - 1.")
    grid = (size[0], size[1], 1 if is_stack else size[2])
    low, high, mean, deviation = statistics.as_header()
    raw = bytearray(HEADER_BYTES)
    struct.pack_into("<10i", raw, 0, *size, mode, *nstart, *grid)
    struct.pack_into("<6f", raw, 40, *(n * pixel_size_A for n in grid), 90.0, 90.0, 90.0)
    struct.pack_into("<3i3f", raw, 64, 1, 2, 3, low, high, mean)
    struct.pack_into("<2i", raw, 88, 0 if is_stack else 1, 0)
    struct.pack_into("<i", raw, 108, 20140)
    struct.pack_into("<3f4s4sf", raw, 196, *origin_A, b"MAP ", b"\x44\x44\x00\x00", deviation)
    label = b"cryorbit"
    struct.pack_into("<i80s", raw, 220, 1, label.ljust(80))
    return bytes(raw)
