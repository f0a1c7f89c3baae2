"""The folder of one run: who may write into it, its checkpoint, its metrics, and how it goes on after a stop.

`settings.yaml` says what was asked, `run.json` what became of it, `metrics.jsonl` how it went, and
`checkpoint.safetensors` is there only while the run is unfinished.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit import __version__
from cryorbit.cli.progress import MetricsFile, Teller, say
from cryorbit.cli.stop import StopRequest
from cryorbit.errors import BadFile, BadInput, CryorbitError

if TYPE_CHECKING:
    from cryorbit.inference.ranks import Ranks

SETTINGS, RUN, METRICS = "settings.yaml", "run.json", "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
EXIT_SIGTERM = 143
OF_A_RUN = (SETTINGS, RUN, METRICS, CHECKPOINT)


def command_line() -> str:
    """The command as it was typed, for run.json and the report."""
    return shlex.join(["cryorbit", *sys.argv[1:]])


def write_text(path: Path, text: str) -> None:
    """Write a small file at once or not at all."""
    from cryorbit.io.atomic import atomic_path

    with atomic_path(path) as part:
        part.write_text(text)


def write_json(path: Path, values: object) -> None:
    """Write JSON at once or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} where there is none.

    Raises
    ------
    BadFile
        If it is there and cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError) as error:
        raise BadFile(f"{path}: unreadable ({error}). Delete it if the run does not matter.") from error


def read_metrics_of(path: Path, name: str) -> float | None:
    """The last value of a metric in the folder of a run; None if it was never written."""
    from cryorbit.cli.progress import read_metrics

    return next(
        (row[name] for row in reversed(read_metrics(path / METRICS)) if row.get(name) is not None), None
    )


def refuse_occupied(path: Path, names: Iterable[str]) -> None:
    """Raise if `path` holds any of `names`, or is no folder.

    Raises
    ------
    BadInput
        Naming what was found.
    """
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path}: is a file, wanted an output folder. Choose another name with -o.")
    held = [name for name in names if (path / name).exists()]
    if held:
        found = ", ".join(held[:3])
        raise BadInput(f"{path}: holds another run ({found}). Choose another folder with -o, or move it.")


def refuse_nothing_to_resume(path: Path) -> None:
    """Raise if `path` holds no run that was begun: for verbs that could begin one without being told of any input.

    Other verbs begin with `--resume` too, so that one script serves the first start and all later ones; of a mistyped folder
    they say that their input is missing.

    Raises
    ------
    BadInput
        Saying so.
    """
    if not (path / SETTINGS).exists():
        raise BadInput(
            f"{path}: there is no run to go on with (no {SETTINGS}). Correct -o, or leave out --resume to begin one."
        )


@dataclass
class RunFolder:
    """A folder in use by one run.

    Parameters
    ----------
    path
        The folder.
    made, fresh
        True if this run made the folder, and if this is its first start: then a failure leaves nothing.
    state
        What the checkpoint holds, or None at the beginning.
    ranks
        The processes of the run, of which this is the first; None for this one alone.
    """

    path: Path
    made: bool
    fresh: bool
    state: dict[str, Any] | None
    facts: dict[str, Any]
    metrics: MetricsFile
    ranks: Ranks | None = None
    _seconds_before: float = 0.0
    _start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall time of this run so far, earlier parts of a resumed run included."""
        return self._seconds_before + time.monotonic() - self._start

    def follow(self, records: Iterable[Any], *, checkpoint_every_s: float | None) -> Any:
        """Show and record progress until a record carries a result, and return that record.

        Saves a checkpoint every `checkpoint_every_s` seconds, and on SIGTERM or Ctrl-C before leaving. With
        None there are no checkpoints, and a stop takes back a fresh folder.

        Raises
        ------
        SystemExit
            With 143 after SIGTERM, 130 after Ctrl-C; a run with checkpoints can be resumed.
        """
        saved = time.monotonic()
        stopping = False
        with StopRequest() as stop, Teller(resumed=self.state is not None) as teller:
            for progress in records:
                self.metrics.append(progress, seconds=self.seconds)
                teller.tell(progress)
                visits = progress.metrics.get("image_visits")
                if visits is not None:
                    self.facts["image_visits"] = int(visits)
                if progress.result is not None:
                    return progress
                together = self.ranks is not None and self.ranks.size > 1
                if together and progress.whole is None:
                    continue
                stopping = stop.signal is not None
                due = checkpoint_every_s is not None and (
                    stopping or time.monotonic() - saved >= checkpoint_every_s
                )
                if self.ranks is not None:
                    stopping, due = self.ranks.any(stopping), self.ranks.any(due)
                if due:
                    self.save(progress.whole() if together else progress.state)
                    saved = time.monotonic()
                if stopping:
                    break
        if not stopping:
            raise RuntimeError("the run ended without a result")
        if checkpoint_every_s is None:
            self.abandon()
        else:
            say(f"Stopped and saved. Go on with: cryorbit {self.facts['verb']} -o {self.path} --resume")
        raise SystemExit(stop.exit_code if stop.signal else EXIT_SIGTERM)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the checkpoint, in place of the last one."""
        import torch

        from cryorbit.io.checkpoint import save_state

        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in state.items() if name not in tensors}
        shell = {"rows": self.metrics.rows, "seconds": self.seconds, "facts": self.facts}
        save_state(self.path / CHECKPOINT, tensors, {"state": rest, "shell": shell})

    def record(self, **facts: Any) -> None:
        """Add to what run.json says of this run."""
        self.facts |= {name: _json_able(value) for name, value in facts.items()}
        self.facts |= {"seconds": round(self.seconds, 3)}
        write_json(self.path / RUN, self.facts)

    def finish(self) -> None:
        """Mark the run as finished and drop the checkpoint."""
        self.record(finished=True)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def abandon(self, outputs: Iterable[str] = ()) -> None:
        """Take back `outputs`, files or folders, and the run's own files too if there is nothing to resume."""
        for name in outputs:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name, ignore_errors=True)
            else:
                (self.path / name).unlink(missing_ok=True)
        if (self.path / CHECKPOINT).exists() or not self.fresh:
            return
        for name in OF_A_RUN:
            (self.path / name).unlink(missing_ok=True)
        if self.made:
            with suppress(OSError):
                self.path.rmdir()


def _json_able(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def already_finished(path: Path) -> bool:
    """Whether the run in `path` has come to its end; says so."""
    if not read_json(path / RUN).get("finished"):
        return False
    say(f"{path}: this run is finished.")
    return True


def open_run(
    path: Path, *, verb: str, settings_yaml: str, outputs: Iterable[str], resume: bool = False
) -> RunFolder:
    """Make or re-enter the folder of a run.

    Raises
    ------
    BadInput
        If it holds another run and `resume` is not asked for.
    BadFile
        If it cannot be made or written.
    """
    going_on = resume and (path / SETTINGS).exists()
    if not going_on:
        refuse_occupied(path, (*OF_A_RUN, *outputs))
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"{path}: cannot be made ({error.strerror}). Choose another folder with -o.") from error
    if going_on:
        return _reopen(path, verb=verb)
    facts = {
        "verb": verb,
        "version": __version__,
        "command": command_line(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "finished": False,
    }
    run = RunFolder(
        path=path, made=made, fresh=True, state=None, facts=facts, metrics=MetricsFile(path / METRICS)
    )
    try:
        write_text(path / SETTINGS, settings_yaml)
        write_json(path / RUN, facts)
    except CryorbitError:
        run.abandon()
        raise
    return run


def _reopen(path: Path, *, verb: str) -> RunFolder:
    facts = read_json(path / RUN) or {"verb": verb, "version": __version__, "command": command_line()}
    if facts.get("verb", verb) != verb:
        raise BadInput(
            f"{path}: holds a run of `{facts['verb']}`, not `{verb}`. Choose another folder with -o."
        )
    for part in path.glob(".*.part"):
        part.unlink(missing_ok=True)
    if not (path / CHECKPOINT).exists():
        return RunFolder(
            path=path, made=False, fresh=False, state=None, facts=facts, metrics=MetricsFile(path / METRICS)
        )
    from cryorbit.io.checkpoint import load_state

    tensors, meta = load_state(path / CHECKPOINT)
    shell = meta["shell"]
    say(f"Resuming after {shell['seconds']:.0f} s of work.")
    return RunFolder(
        path=path,
        made=False,
        fresh=False,
        state={**tensors, **meta["state"]},
        facts=shell["facts"],
        metrics=MetricsFile(path / METRICS, keep_rows=shell["rows"]),
        _seconds_before=shell["seconds"],
    )
