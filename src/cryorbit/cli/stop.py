"""SIGTERM and Ctrl-C as a request, so that a run can save itself first."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopRequest:
    """While entered, SIGTERM and the first SIGINT only set `signal`; a second SIGINT interrupts at once.

    >>> with StopRequest() as stop:
    ...     stop.signal is None
    True
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: then the caller keeps its own handling
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def exit_code(self) -> int:
        """What the shell returns for the signal: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + (self.signal or 0)
