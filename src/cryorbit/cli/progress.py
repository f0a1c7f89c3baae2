"""How a run tells of itself: a bar on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, cast, runtime_checkable

PLAIN_INTERVAL_S = 5.0
"""Least time between two plain lines of one stage."""


@runtime_checkable
class ProgressLike(Protocol):
    """What the shell reads of a library's progress record."""

    @property
    def stage(self) -> str:
        """What is being done."""
        ...

    @property
    def step(self) -> int:
        """Steps of the stage that are done."""
        ...

    @property
    def steps(self) -> int:
        """Steps of the stage in all."""
        ...

    @property
    def fraction(self) -> float:
        """Share of the whole run that is done, 0 to 1."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Numbers that tell how it goes."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Where text goes: the little of a file that is needed."""

    def write(self, text: str, /) -> Any:
        """Take some text."""
        ...

    def flush(self) -> None:
        """Show it now."""
        ...

    def isatty(self) -> bool:
        """Whether a person is looking."""
        ...


def say(message: str) -> None:
    """One line for people, on stderr, so that stdout stays for results."""
    print(message, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(75), clock(3725.2), clock(float("inf"))
    ('1:15', '1:02:05', '?')
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def number(value: float) -> str:
    """A metric in few characters.

    >>> number(0.123456), number(1234567.0), number(3.0)
    ('0.1235', '1.235e+06', '3')
    """
    return f"{value:.4g}"


class Teller:
    """Shows progress records as they come; use it as a context manager.

    Parameters
    ----------
    stream
        Where to; stderr unless given. A terminal gets a bar, anything else plain lines.
    interval_s
        Least time between two plain lines of one stage.
    resumed
        True if the first record continues a run: then only what comes after it tells the speed.
    """

    def __init__(
        self, *, stream: Stream | None = None, interval_s: float = PLAIN_INTERVAL_S, resumed: bool = False
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._interval = interval_s
        self._start = time.monotonic()
        self._start_fraction = None if resumed else 0.0
        self._last = -math.inf
        self._stage = ""
        self._stage_start = (self._start, 0)
        self._bar = _Bar(self._stream) if self._stream.isatty() else None

    def __enter__(self) -> Teller:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, progress: ProgressLike) -> None:
        """Show one record."""
        now = time.monotonic()
        if self._start_fraction is None:
            self._start_fraction = progress.fraction
        if progress.stage != self._stage:
            self._stage, self._stage_start = progress.stage, (now, progress.step)
            self._last = -math.inf
        if self._bar is None and now - self._last < self._interval and progress.fraction < 1:
            return
        self._last = now
        text = self._line(progress, now)
        if self._bar is not None:
            self._bar.update(progress.fraction, text)
        else:
            print(
                f"{time.strftime('%H:%M:%S')} {min(progress.fraction, 1.0):4.0%} {text}",
                file=self._stream,
                flush=True,
            )

    def _line(self, progress: ProgressLike, now: float) -> str:
        done = progress.fraction - (self._start_fraction or 0.0)
        left = (now - self._start) * max(1 - progress.fraction, 0.0) / done if done > 0 else math.inf
        seconds, steps = now - self._stage_start[0], progress.step - self._stage_start[1]
        rate = f" {number(steps / seconds)}/s" if seconds > 0 and steps > 0 else ""
        metrics = " ".join(f"{name} {number(value)}" for name, value in list(progress.metrics.items())[:4])
        return (
            f"{progress.stage} {progress.step}/{progress.steps}{rate} left {clock(left)}  {metrics}".rstrip()
        )


class _Bar:
    """rich's bar, with our text behind it."""

    def __init__(self, stream: Stream) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._progress = Progress(
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(file=cast(IO[str], stream)),
            transient=False,
        )
        self._task = self._progress.add_task("", total=1.0)

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def update(self, fraction: float, text: str) -> None:
        self._progress.update(self._task, completed=fraction, description=text)


class MetricsFile:
    """`metrics.jsonl`: one JSON object per progress record, appended and flushed at once."""

    def __init__(self, path: Path, *, keep_rows: int = 0) -> None:
        self.path = path
        self.rows = keep_rows
        kept = path.read_text().splitlines(keepends=True)[:keep_rows] if path.exists() and keep_rows else []
        if len(kept) < keep_rows:
            self.rows = len(kept)
        path.write_text("".join(kept))

    def append(self, progress: ProgressLike, *, seconds: float) -> None:
        """Add one record; numbers that JSON cannot hold become null."""
        row = {"stage": progress.stage, "step": progress.step, "steps": progress.steps}
        row |= {"fraction": progress.fraction, "seconds": round(seconds, 3)}
        row |= {name: _finite(value) for name, value in progress.metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows += 1


def _finite(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics file; a last line cut short by a crash is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
