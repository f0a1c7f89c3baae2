"""One verb run by several processes (`torchrun`): how they find each other, who speaks, and how all end together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.cli.run_folder import CHECKPOINT, EXIT_SIGTERM, RunFolder, open_run
from cryorbit.cli.stop import StopRequest
from cryorbit.errors import BadInput, CryorbitError

if TYPE_CHECKING:
    from cryorbit.inference.ranks import Ranks

SPOKEN = "cryorbit/error"
"""Key under which the first process that fails says that it will tell why."""
PATIENCE = timedelta(hours=2)
"""How long a process waits for another one before it takes it for lost; one that dies is noticed at once."""


@contextmanager
def several_processes() -> Iterator[Ranks]:
    """The processes that a launcher started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are set), or this one alone.

    Inside, only the first process prints. An error in one ends all, and one of them tells it.

    Raises
    ------
    BadInput
        If the variables are not numbers, or the processes do not find each other.
    """
    from cryorbit.inference.ranks import Ranks

    size = _number("WORLD_SIZE", 1)
    if size == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    import torch.distributed as dist

    store = _connect(size)
    ranks = Ranks(_number("RANK", 0), size, _number("LOCAL_WORLD_SIZE", 1))
    try:
        with ExitStack() as silence:
            if not ranks.first:
                nowhere = silence.enter_context(open(os.devnull, "w"))
                silence.enter_context(redirect_stdout(nowhere))
                silence.enter_context(redirect_stderr(nowhere))
            yield ranks
    except (Exception, KeyboardInterrupt) as error:
        if not _speaks(store):
            sys.exit(2 if isinstance(error, CryorbitError) else 1)
        raise
    finally:
        dist.destroy_process_group()


def refuse_several(what: str) -> None:
    """Raise where a launcher started several processes for something that runs in one.

    Raises
    ------
    BadInput
        Naming `what`.
    """
    if "RANK" in os.environ and _number("WORLD_SIZE", 1) > 1:
        raise BadInput(f"{what} runs in one process. Start it without torchrun.")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise BadInput(f"{name}={text!r} in the environment: wanted a number, as torchrun sets it. Unset it.")
    return int(text)


def _connect(size: int) -> Any:
    """Join the other processes: gloo for tensors in memory, NCCL for those on a GPU, of which each process takes its own."""
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, _ = next(iter(rendezvous("env://")))
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"the {size} processes do not find each other ({reason}). Start them with torchrun, or check MASTER_ADDR and "
            "MASTER_PORT."
        ) from error
    return store


def _speaks(store: Any) -> bool:
    """Whether this process is the first that fails: it alone says why."""
    try:
        return store.add(SPOKEN, 1) == 1
    except RuntimeError:  # the one that kept the store has gone, so it has spoken
        return False


@dataclass(frozen=True)
class RunFollower:
    """The folder of a run as the processes see it that do not write there."""

    state: dict[str, Any] | None
    ranks: Ranks

    def follow(self, records: Iterable[Any], *, checkpoint_every_s: float | None) -> Any:
        """As `RunFolder.follow`, whose part this is in the other processes.

        Raises
        ------
        SystemExit
            If any process was asked to stop.
        """
        with StopRequest() as stop:
            for progress in records:
                if progress.result is not None:
                    return progress
                if progress.whole is None:
                    continue
                asked = stop.signal is not None
                stopping = self.ranks.any(asked)
                if self.ranks.any(asked and checkpoint_every_s is not None):
                    progress.whole()
                if stopping:
                    raise SystemExit(stop.exit_code if asked else EXIT_SIGTERM)
        raise RuntimeError("the run ended without a result")

    def abandon(self, outputs: Iterable[str] = ()) -> None:
        """Nothing is taken back here."""


def open_together(
    ranks: Ranks, path: Path, *, verb: str, settings_yaml: str, outputs: Iterable[str], resume: bool = False
) -> RunFolder | RunFollower:
    """`open_run` in the first process; the others read only where it stood, from the same folder.

    Raises
    ------
    BadInput, BadFile
        As `open_run`.
    """
    if ranks.first:
        folder = open_run(path, verb=verb, settings_yaml=settings_yaml, outputs=outputs, resume=resume)
        folder.ranks = ranks
        ranks.agree(folder.state is not None)
        return folder
    if not ranks.agree(False):
        return RunFollower(None, ranks)
    from cryorbit.io.checkpoint import load_state

    tensors, meta = load_state(path / CHECKPOINT)
    return RunFollower({**tensors, **meta["state"]}, ranks)
