"""`cryorbit relion-external VERB ...`: a verb run by RELION as a job of its type External."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING

from cryorbit.errors import BadInput, CryorbitError

if TYPE_CHECKING:
    from cryorbit.io.relion_job import Ending, NodeType, RelionJob

MODULES = {
    "abinitio": "abinitio",
    "refine": "refine",
    "reconstruct": "reconstruct",
    "postprocess": "postprocess",
}
"""Verbs that can be a job -> module in this folder."""

INPUTS = ("parts", "3dref", "mask", "mics", "movies", "coords")
POLL_S = 1.0
"""How often the request to abort is looked for."""

_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
_BAD_INPUT = 2

USAGE = f"""usage: cryorbit relion-external {"|".join(MODULES)} --o External/jobNNN/ [--in_parts FILE]
       [--in_3dref MAP] [--in_mask MASK] [--j N] [--OPTION VALUE ...]

Runs the verb as RELION's job type External. On the GUI's Input tab give as External executable

    cryorbit relion-external refine

(or abinitio, reconstruct, postprocess), the particles, for refine a 3D reference, for postprocess a half map as 3D
reference and a mask if you have one; on the Params tab any option of the verb without its dashes (symmetry, D2).
--j becomes --threads. Exit marks and RELION_OUTPUT_NODES.star are written, an abort from the GUI saves a checkpoint
where the verb makes them, and Continue goes on from there. Options: cryorbit VERB --help."""


@dataclass(frozen=True)
class JobArguments:
    """What RELION put on the command line."""

    out: Path
    inputs: dict[str, Path] = field(default_factory=dict)
    threads: int | None = None
    others: tuple[str, ...] = ()
    """Everything that is the verb's own."""


def parse_relion(arguments: Sequence[str]) -> JobArguments:
    """Sort RELION's options from the verb's.

    >>> found = parse_relion(["--o", "External/job005/", "--in_parts", "p.star", "--symmetry", "D2", "--j", "4"])
    >>> str(found.inputs["parts"]), found.threads, found.others
    ('p.star', 4, ('--symmetry', 'D2'))

    Raises
    ------
    BadInput
        If there is no --o, or a value is missing or unusable.
    """
    values: dict[str, str] = {}
    others: list[str] = []
    ours = {"--o", "--j", "--pipeline_control", *(f"--in_{kind}" for kind in INPUTS)}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if name not in ours:
            others.append(name)
            continue
        if not rest or rest[0].startswith("--"):
            raise BadInput(f"relion-external: {name} has no value. Give it as RELION does: {name} VALUE.")
        values[name] = rest.pop(0)
    if "--o" not in values:
        raise BadInput("relion-external: no --o. RELION gives the job's folder: --o External/job005/.")
    threads = values.get("--j")
    if threads is not None and not threads.isdecimal():
        raise BadInput(f"relion-external: --j {threads}: wanted a number of threads.")
    inputs = {kind: Path(values[f"--in_{kind}"]) for kind in INPUTS if f"--in_{kind}" in values}
    return JobArguments(Path(values["--o"]), inputs, None if threads is None else int(threads), tuple(others))


def verb_arguments(verb: str, settings: type, job: JobArguments) -> list[str]:
    """The verb's own command line; says which inputs it has no use for.

    Raises
    ------
    BadInput
        If the verb needs an input that was not given.
    """
    from cryorbit.cli.config import flat_fields

    known = flat_fields(settings)
    unused = dict(job.inputs)
    if verb == "postprocess":
        words = [str(p) for p in _both_halves(unused.pop("3dref", None))]
    else:
        particles = unused.pop("parts", None)
        if particles is None:
            raise BadInput(f"relion-external {verb}: no --in_parts. Give the particles on the Input tab.")
        words = [str(particles)]
    for kind, option in (("3dref", "map"), ("mask", "mask")):
        if kind in unused and option in known:
            words += [f"--{option}", str(unused.pop(kind))]
    for kind in unused:
        print(f"{verb} has no use for --in_{kind}: ignored")
    words += ["-o", str(job.out)]
    if job.threads is not None and "threads" in known:
        words += ["--threads", str(job.threads)]
    if "resume" in known and (job.out / "settings.yaml").exists():
        words.append("--resume")
    return [*words, *job.others]


def _both_halves(given: Path | None) -> tuple[Path, Path]:
    """Both half maps from the name of one."""
    if given is None:
        raise BadInput(
            "relion-external postprocess: no --in_3dref. Give one of the half maps as 3D reference."
        )
    name = given.name
    for mine, other in (("half1", "half2"), ("half2", "half1")):
        if mine in name:
            pair = {mine: given, other: given.with_name(name.replace(mine, other))}
            return pair["half1"], pair["half2"]
    raise BadInput(f"{given}: its name has neither half1 nor half2 in it. Give a half map, not a whole one.")


class AbortWatch:
    """While entered, a request to abort in the job's folder becomes SIGTERM, and SIGTERM an exit of 143.

    Runs that save themselves take SIGTERM over; the exit is for what comes before and after.
    """

    def __init__(self, job: RelionJob) -> None:
        self._job = job
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before: signal._HANDLER = None

    def __enter__(self) -> AbortWatch:
        self._before = signal.signal(signal.SIGTERM, self._leave)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        signal.signal(signal.SIGTERM, self._before)

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            if self._job.abort_asked:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _leave(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)


def run_arguments(arguments: Sequence[str]) -> int:
    """Run a verb as RELION asks for it; the exit code is the verb's.

    Raises
    ------
    BadInput
        If there is no job folder to say anything in.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        raise SystemExit(0)
    verb, rest = arguments[0], arguments[1:]
    if verb not in MODULES:
        raise BadInput(f"relion-external: no verb '{verb}'. Choose one of: {', '.join(MODULES)}.")
    from cryorbit.io.relion_job import RelionJob

    asked = parse_relion(rest)
    job = RelionJob(asked.out)
    job.start()
    ending: Ending = "FAILURE"
    try:
        with AbortWatch(job):
            code = _run(importlib.import_module(f"cryorbit.cli.{MODULES[verb]}"), verb, asked)
        if code == 0:
            job.write_nodes(_nodes())
            ending = "SUCCESS"
        return code
    except SystemExit as stop:
        if stop.code in _STOPPED:
            ending = "ABORTED"
        raise
    except CryorbitError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return _BAD_INPUT
    finally:
        job.end(ending)


def _run(module: ModuleType, verb: str, asked: JobArguments) -> int:
    """The verb itself; what it tells of its progress goes to stdout (run.out), only errors to stderr (run.err)."""
    from cryorbit.cli.config import parse

    words = verb_arguments(verb, module.Settings, asked)
    settings = parse(module.Settings, words, verb=verb)
    if settings is None:
        return 0
    with redirect_stderr(sys.stdout):
        return module.run(settings)


def _nodes() -> list[tuple[str, NodeType]]:
    """Every file that some verb leaves and RELION knows a type for."""
    from cryorbit.io import relion_job

    return [
        ("particles.star", relion_job.PARTICLES),
        ("map.mrc", relion_job.MAP),
        ("half1.mrc", relion_job.HALF_MAP),
        ("half2.mrc", relion_job.HALF_MAP),
        ("postprocess.mrc", relion_job.MAP),
        ("mask.mrc", relion_job.MASK),
        ("local_resolution.mrc", relion_job.LOCAL_RESOLUTION),
    ]
