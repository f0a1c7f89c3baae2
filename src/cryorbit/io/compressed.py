"""Compressed files: .gz, .bz2, .xz, .zst, by their first bytes rather than their names."""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import os
import shutil
import tempfile
from typing import Any

from cryorbit.errors import BadFile

_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}


def compression(path: str | os.PathLike[str]) -> str | None:
    """One of "gz", "bz2", "xz", "zst"; None for a file that is not compressed.

    Raises
    ------
    BadFile
        If the file is missing or unreadable.
    """
    try:
        with open(path, "rb") as file:
            first = file.read(6)
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    return next((kind for magic, kind in _MAGIC.items() if first.startswith(magic)), None)


def open_plain(path: str | os.PathLike[str]) -> Any:
    """Open for reading, decompressing on the way where needed."""
    kind = compression(path)
    if kind == "gz":
        return gzip.open(path, "rb")
    if kind == "bz2":
        return bz2.open(path, "rb")
    if kind == "xz":
        return lzma.open(path, "rb")
    if kind == "zst":
        return _open_zst(path)
    return open(path, "rb")


def read_plain(path: str | os.PathLike[str], size: int = -1) -> bytes:
    """The first `size` bytes (all by default) of the file's plain content.

    Raises
    ------
    BadFile
        If the file is missing, or its compressed stream is broken.
    """
    try:
        with open_plain(path) as file:
            return file.read(size)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _broken(path, error) from error


def decompress_to_temporary(path: str | os.PathLike[str]) -> Any:
    """The plain content in an unnamed temporary file, for memory mapping; it vanishes when closed.

    Raises
    ------
    BadFile
        If the compressed stream is broken, or the temporary folder is full (set TMPDIR to a larger one).
    """
    target = tempfile.TemporaryFile()
    try:
        with open_plain(path) as source:
            shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
    except (OSError, EOFError, lzma.LZMAError) as error:
        target.close()
        raise _broken(path, error) from error
    return target


def _broken(path: str | os.PathLike[str], error: Exception) -> BadFile:
    if isinstance(error, OSError) and error.errno is not None:
        return BadFile(
            f"{path}: cannot be unpacked ({error.strerror}). Set TMPDIR to a roomy folder, or unpack it."
        )
    return BadFile(f"{path}: the compressed data are broken ({error}). Copy the file again.")


def _open_zst(path: str | os.PathLike[str]) -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        return module.open(path, "rb")
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError:
        raise BadFile(
            f"{path}: compressed with zstd, which this Python cannot read. "
            "Run `pip install zstandard`, or unpack it with `zstd -d`."
        ) from None
    return zstandard.open(path, "rb")
