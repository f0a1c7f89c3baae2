"""Memory-mapped files kept open: few at a time, little of them resident, each process with its own."""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

MOST_OPEN = 100
"""Maps kept open; a data set may have one stack per micrograph."""
RESIDENT_BYTES = 64 << 20
"""About what stays mapped in after it was read, so that memory does not grow with the stack that is walked through."""
_READ_AROUND = 64 << 10
"""Bytes that the system maps in around a page that is read."""


class OpenMaps:
    """Arrays in files by number, opened when read; by several threads if they like, and anew after a fork.

    Parameters
    ----------
    open_array
        Gives the array of a number, as `mapped` makes it.
    """

    def __init__(self, open_array: Callable[[int], np.ndarray]) -> None:
        self._open = open_array
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._arrays: OrderedDict[int, np.ndarray] = OrderedDict()
        self._touched: set[int] = set()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, number: int, rows: np.ndarray) -> np.ndarray:
        """A copy of some rows of an array.

        Raises
        ------
        BadFile
            If the file cannot be opened any more.
        """
        if os.getpid() != self._process:
            self._forget()
        with self._lock:
            array = self._arrays.pop(number, None)
            if array is None:
                array = self._open(number)
            self._arrays[number] = array  # the last is the one used last
            while len(self._arrays) > MOST_OPEN:
                self._touched.discard(self._arrays.popitem(last=False)[0])
        out = array[rows]
        with self._lock:
            self._touched.add(number)
            self._bytes += _mapped_in(rows, out)
            if self._bytes > RESIDENT_BYTES:
                self._release()
        return out

    def _release(self) -> None:
        """Let go of the pages; the system keeps them in its cache for as long as it has room."""
        for number in self._touched & self._arrays.keys():
            _release_pages(self._arrays[number])
        self._touched.clear()
        self._bytes = 0


def mapped(file: int, dtype: np.dtype, *, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only array of a part of an open file (its descriptor), by memory mapping; the file may be closed then."""
    view = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    count = int(np.prod(shape))
    return np.frombuffer(view, dtype, count=count, offset=offset).reshape(shape)


def _mapped_in(rows: np.ndarray, out: np.ndarray) -> int:
    """Bytes that reading rows has mapped in: the rows, and for every jump what lies around."""
    jumps = int(np.count_nonzero(np.diff(rows) != 1)) + 1
    return out.nbytes + jumps * _READ_AROUND


def _release_pages(array: np.ndarray) -> None:
    base = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
