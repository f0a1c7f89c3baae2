"""What every long run shares: progress that is yielded, work spread over cores, chance that can be resumed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from cryorbit.inference.ranks import Ranks

Item = TypeVar("Item")
Out = TypeVar("Out")


@dataclass(frozen=True, eq=False)
class Progress:
    """One step of a run: where it stands, what was measured, and all that is needed to go on from here.

    Parameters
    ----------
    stage
        Name of the present stage, in words for a user.
    step, steps
        Steps done of this stage, of how many.
    fraction
        Share of the whole run that is done, 0 to 1, by expected time.
    metrics
        Numbers for the log; "image_visits" counts images compared with a map so far.
    state
        Tensors and plain values by name; giving it back to the run continues it to the same result. The tensors are
        those of the running loop: save or copy them before asking for the next record.
    result
        Set in the last record only.
    whole
        In a run of several processes: makes the state of all of them, to be called by all or none. None where they do not
        meet; then `state` may be empty.
    """

    stage: str
    step: int
    steps: int
    fraction: float
    metrics: dict[str, float]
    state: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    whole: Callable[[], dict[str, Any]] | None = None


class Workers:
    """Python threads that each run single-threaded tensor code: torch lets go of the interpreter inside its operators.

    Results come in the order of the items whatever the order of work, so sums taken over them are reproducible. `ranks`
    are the processes that the run is spread over, each with workers of its own.
    """

    def __init__(self, pool: ThreadPoolExecutor | None, count: int, ranks: Ranks | None = None) -> None:
        self._pool = pool
        self.count = count
        self.ranks = ranks or Ranks()

    def map(self, function: Callable[[Item], Out], items: Iterable[Item]) -> list[Out]:
        """`function` of every item, in order."""
        if self._pool is None:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))


@contextmanager
def workers(count: int, ranks: Ranks | None = None) -> Iterator[Workers]:
    """`count` workers, with torch's own threads off meanwhile; `count` = 1 works in the caller's thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _keep_freed_memory()
    try:
        if count <= 1:
            yield Workers(None, 1, ranks)
        else:
            with ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1)) as pool:
                yield Workers(pool, count, ranks)
    finally:
        torch.set_num_threads(before)


def generator_from(state: Tensor | None, *, seed: int) -> torch.Generator:
    """A generator at a saved state, or a new one from the seed."""
    generator = torch.Generator().manual_seed(seed)
    if state is not None:
        generator.set_state(state)
    return generator


def _keep_freed_memory() -> None:
    """Ask glibc to keep what is freed for the next array of the same size.

    Its default gives arrays above 128 kB back to the system, and the next one is paid for page by page: a third of the time
    of the search went there. Elsewhere than on glibc nothing happens.
    """
    try:
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold, arena_max = -1, -3, -8
        libc.mallopt(arena_max, 1)
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 512 << 20)
    except (OSError, AttributeError):
        return
