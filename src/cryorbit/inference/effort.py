"""How often images are compared with a map, counted where it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Effort:
    """Likelihood evaluations: one is one pose of one image compared with the map over the frequencies in use."""

    poses: int = 0
    """Evaluations."""
    coefficients: int = 0
    """The same, each times the Fourier pixels of the half plane that entered it. Of rings, the area of their samples in
    such pixels, so that a grid search and a local one out to the same frequency count alike; not their number, of
    which inner rings have more than there are pixels."""

    def add(self, other: Effort) -> None:
        """Add those of other work, in place."""
        self.poses += other.poses
        self.coefficients += other.coefficients


_ACTIVE: ContextVar[tuple[Effort, ...]] = ContextVar("cryorbit_effort", default=())


@contextmanager
def counted() -> Iterator[Effort]:
    """Count what is evaluated inside, in this thread.

    >>> with counted() as effort:
    ...     count_evaluations(8, frequencies=100)
    >>> effort
    Effort(poses=8, coefficients=800)
    """
    effort = Effort()
    token = _ACTIVE.set((*_ACTIVE.get(), effort))
    try:
        yield effort
    finally:
        _ACTIVE.reset(token)


def count_evaluations(poses: int, *, frequencies: int) -> None:
    """Say that so many poses were compared over so many coefficients each; free where nobody counts."""
    for effort in _ACTIVE.get():
        effort.add(Effort(poses, poses * frequencies))
