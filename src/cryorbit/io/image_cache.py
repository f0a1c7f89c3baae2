"""A copy of the images in one half-precision file, made once: for stacks that are many, compressed or on a slow disk.

Beside the pixels (`NAME.f16`) stands what they were made of (`NAME.json`): stacks with sizes and times, rows and signs. A
cache is used only while all of that is as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryorbit.data.particles import ImageSource
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path, write_failure
from cryorbit.io.half_images import HalfImages, file_bytes, scales_at, to_half
from cryorbit.io.sources import FileImages, on_disk

FORMAT = 1
_CHUNK_BYTES = 64 << 20


class ImageCache:
    """The cache of one set of images in a folder that may hold those of others too.

    Parameters
    ----------
    folder
        Where; made if it is not there.
    source
        Images that lie in files.

    Raises
    ------
    BadInput
        If they do not.
    """

    def __init__(self, folder: str | os.PathLike[str], source: ImageSource) -> None:
        files = on_disk(source)
        if files is None or files.headers is None:
            raise BadInput("a cache of images is a copy of stacks on disk, and these images lie in none.")
        self.folder, self.source, self.files = Path(folder), source, files
        self.key = _key(files, source.box)
        self.name = _digest(np.array(files.stacks), files.file_index, files.section, files.sign)[:16]

    @property
    def path(self) -> Path:
        """File of the pixels."""
        return self.folder / f"{self.name}.f16"

    @property
    def bytes(self) -> int:
        """Length of that file."""
        return file_bytes(len(self.source), self.source.box)

    def why_not(self) -> str | None:
        """Why the cache cannot be used, in words; None if it can."""
        known = self.path.with_suffix(".json")
        try:
            found = json.loads(known.read_text())
        except FileNotFoundError:
            return "there is none yet"
        except (OSError, json.JSONDecodeError):
            return f"{known.name} cannot be read"
        for name, wanted in self.key.items():
            if found.get(name) != wanted:
                return _difference(name, found.get(name), wanted)
        length = self.path.stat().st_size if self.path.exists() else 0
        return None if length == self.bytes else f"{self.path.name} is not whole"

    def open(self) -> HalfImages:
        """The cached images.

        Raises
        ------
        BadFile
            If the cache cannot be used.
        """
        reason = self.why_not()
        if reason is not None:
            raise BadFile(f"{self.folder}: no usable cache of these images: {reason}. Build it again.")
        return HalfImages(self.path, self.source)

    def build(self) -> None:
        """Copy all images, stack by stack; the files are there whole or not at all.

        Raises
        ------
        BadFile
            If an image cannot be read or the disk refuses.
        """
        known = self.path.with_suffix(".json")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            known.unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(self.folder, error) from error
        n, box = len(self.source), self.source.box
        numbers = np.zeros((2, n), "<f4")
        with atomic_path(self.path) as part, part.open("r+b") as file:
            file.truncate(self.bytes)
            for rows in self._rows():
                stored = to_half(self.source[torch.from_numpy(rows)])
                numbers[:, rows] = stored.scale.numpy(), stored.offset.numpy()
                _write_rows(file.fileno(), rows, stored.half.numpy().astype("<f2", copy=False), box)
            os.pwrite(file.fileno(), numbers.tobytes(), scales_at(n, box))
        with atomic_path(known) as part:
            part.write_text(json.dumps(self.key))

    def _rows(self) -> Iterator[np.ndarray]:
        """All rows in chunks, in the order in which they lie in the stacks, so that each is opened once."""
        order = np.lexsort((self.files.section, self.files.file_index))
        step = max(1, _CHUNK_BYTES // (4 * self.source.box**2))
        for start in range(0, len(order), step):
            yield np.sort(order[start : start + step])


def _write_rows(file: int, rows: np.ndarray, pixels: np.ndarray, box: int) -> None:
    """Runs of neighbouring rows at once. Written, not mapped: a full disk is an error then, not a crash."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    for places in np.split(np.arange(len(rows)), cuts):
        at, data = int(rows[places[0]]) * box * box * 2, memoryview(pixels[places].tobytes())
        while data:
            done = os.pwrite(file, data, at)
            at, data = at + done, data[done:]


def _key(files: FileImages, box: int) -> dict[str, Any]:
    stacks = [[path, *_size_and_time(path)] for path in files.stacks]
    rows = _digest(files.file_index, files.section, files.sign)
    return {"format": FORMAT, "box": box, "preprocessing": "none", "rows": rows, "stacks": stacks}


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        about = os.stat(path)
    except OSError as error:
        raise BadFile(f"{path}: cannot be looked at ({error.strerror}). Correct the path.") from error
    return about.st_size, about.st_mtime_ns


def _digest(*arrays: np.ndarray) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _difference(name: str, found: Any, wanted: Any) -> str:
    if name == "stacks" and isinstance(found, list):
        changed = [new[0] for old, new in zip(found, wanted, strict=False) if old != new]
        if changed:
            return f"{changed[0]} has changed since it was made"
    return f"it was made with another {name}"
