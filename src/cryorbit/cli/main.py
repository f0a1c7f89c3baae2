"""The shell's front door: finds the verb, parses its settings, runs it, turns errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from cryorbit import __version__
from cryorbit.errors import CryorbitError

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "simulate a synthetic complex, find its map from nothing, judge it against the truth"),
    "check": ("check", "look a particle file over before any long run"),
    "abinitio": ("abinitio", "from particle images to poses, half maps, FSC and a report, with no start map"),
    "reconstruct": ("reconstruct", "half maps and FSC from particles whose poses are known"),
    "fsc": ("fsc", "Fourier shell correlation of two maps"),
    "evaluate": ("evaluate", "poses and map of a run against the truth of a simulation"),
    "simulate": ("simulate", "a particle stack with known truth, from a structure or a map"),
    "convert": ("convert", "between RELION, cryoSPARC and cryoDRGN files, and between map formats"),
    "report": ("report", "write report.html anew from the files of a run"),
    "doctor": ("doctor", "versions, devices, threads, memory and disk of this installation"),
    "bench": ("bench", "score ab initio runs on simulated stacks, beside chance, oracle and peers"),
}
"""Verb -> (module in this folder, one line for the help)."""

EXIT_BAD_INPUT = 2


def usage() -> str:
    """The help of the program as a whole.

    >>> "abinitio" in usage()
    True
    """
    rows = "\n".join(f"  {verb:12s} {line}" for verb, (_, line) in VERBS.items())
    return (
        f"cryorbit {__version__}: cryo-EM particle images to maps and poses you can trust\n\n"
        f"usage: cryorbit VERB ...        cryorbit VERB --help\n\n{rows}\n\n"
        "Start with `cryorbit demo`, or `cryorbit check particles.star`."
    )


def _verb_module(verb: str) -> ModuleType | None:
    if verb not in VERBS:
        return None
    return importlib.import_module(f"cryorbit.cli.{VERBS[verb][0]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 checks failed, 2 bad input, 143 SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"cryorbit {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        module = _verb_module(verb)
        if module is None:
            raise CryorbitError(f"no verb '{verb}'. Choose one of: {', '.join(VERBS)}.")
        return _run_verb(module, verb, rest)
    except CryorbitError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: not an error, but nothing more may be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run_verb(module: ModuleType, verb: str, arguments: list[str]) -> int:
    from cryorbit.cli.config import parse

    warnings.showwarning = _tell_warning
    settings = parse(module.Settings, arguments, verb=verb)
    if settings is None:
        return 0
    return module.run(settings)


def _tell_warning(message: Warning | str, *about: object, **more: object) -> None:
    """A warning as one line for people, without the line of code it came from."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
