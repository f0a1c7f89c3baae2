"""The compiled inner loops of `physics.splat`: built on first use where there is a C++ compiler, else absent.

The library is called through ctypes, so that it depends on no version of torch and is ready within seconds; torch's own
extension loader needs ninja, Python's headers and most of a minute. It is kept in the user's cache folder under a name
made of the source, the flags and the processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from cryorbit.physics.splat_torch import Cloud

MOST_REACH = 63.0
"""Half width of the widest patch that the kernel holds, fine pixels."""

_SOURCE = Path(__file__).with_suffix(".cpp")
# -ffast-math would make the loader flush denormals to zero in the whole process.
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-shared", "-fPIC")
_NAMES = {torch.float32: "float", torch.float64: "double"}


def compiled_holds(cloud: Cloud) -> bool:
    """Whether the kernel can draw these Gaussians where they are; builds it if need be."""
    if cloud.centre.device.type != "cpu" or cloud.centre.dtype not in _NAMES:
        return False
    narrow = cloud.reach.numel() == 0 or float(cloud.reach.max()) < MOST_REACH
    return narrow and kernel_library() is not None


def compiled_splat(cloud: Cloud, size: int) -> Tensor:
    """What `splat_torch.splat` returns, from the kernel; only where `compiled_holds(cloud)`."""
    grid = cloud.centre.new_zeros((cloud.images, *(size,) * cloud.dim))
    _call("splat", cloud, size, [grid])
    return grid


def compiled_gather(cloud: Cloud, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `splat_torch.gather` returns, from the kernel."""
    b, n, d = cloud.centre.shape
    matrix = () if cloud.isotropic else (d, d)
    out = [grid.new_empty((b, n, *tail)) for tail in ((d,), (), matrix)]
    _call("gather", cloud, grid.shape[-1], [grid.contiguous(), *out])
    return out[0], out[1], out[2]


@lru_cache(maxsize=1)
def kernel_library() -> ctypes.CDLL | None:
    """The loaded kernel, built now if need be; None where that fails for whatever reason."""
    compiler = next(
        (c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None
    )
    if compiler is None or os.name != "posix" or not _SOURCE.exists():
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None


def _built(compiler: str) -> Path:
    """Path of the library, compiled unless it is in the cache already."""
    source = _SOURCE.read_bytes()
    machine = f"{compiler} {_FLAGS} {platform.machine()} {_processor()}".encode()
    name = f"splat-{hashlib.sha256(source + machine).hexdigest()[:16]}.so"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "cryorbit"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        folder = Path(tempfile.mkdtemp(prefix="cryorbit-"))
    target = folder / name
    if not target.exists():
        # Under a name of its own first: other processes may be building the same.
        part = folder / f".{name}.{os.getpid()}"
        try:
            for tuned in (("-march=native",), ()):
                done = subprocess.run(
                    [compiler, *_FLAGS, *tuned, str(_SOURCE), "-o", str(part)],
                    capture_output=True,
                    timeout=300,
                )
                if done.returncode == 0:
                    break
            else:
                raise OSError("the compiler refused the kernel")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _processor() -> str:
    """What tells processors with different instructions apart: homes are shared between machines."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return platform.processor()


def _call(name: str, cloud: Cloud, size: int, out: list[Tensor]) -> None:
    library = kernel_library()
    assert library is not None, "compiled_holds() was not asked first"
    function = getattr(library, f"{name}_{_NAMES[cloud.centre.dtype]}")
    function.restype = None
    fields = [t.contiguous() for t in (cloud.centre, cloud.weight, cloud.precision, cloud.reach)]
    steps = (ctypes.c_int64 * 4)(*(0 if t.shape[0] == 1 else t[0].numel() for t in fields))
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in fields]
    results = [ctypes.c_void_p(t.data_ptr()) for t in out]

    def part(first: int, last: int) -> None:
        numbers = [ctypes.c_int64(v) for v in (cloud.centre.shape[1], size, first, last)]
        function(ctypes.c_int(cloud.dim), ctypes.c_int(cloud.isotropic), *numbers, *pointers, steps, *results)

    _spread(part, cloud.images)


def _spread(part: Callable[[int, int], None], count: int) -> None:
    """Images dealt out to as many threads as torch uses; ctypes lets go of the interpreter."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        part(0, count)
        return
    edges = [count * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))
