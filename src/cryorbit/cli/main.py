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
    "refine": ("refine", "poses and half maps to the resolution the images hold, from poses or from a map"),
    "poses": ("poses_train", "known specimen: train a network on its map, predict poses of new particles"),
    "flex": ("flex_train", "molecules that move or come and go, as 3D Gaussians: fit, train, analyze"),
    "prior": ("prior_train", "a learned prior of structure: train, sample, reconstruct with it, denoise"),
    "reconstruct": ("reconstruct", "half maps and FSC from particles whose poses are known"),
    "postprocess": ("postprocess", "half maps to a sharpened map: mask, corrected FSC, local resolution"),
    "fsc": ("fsc", "Fourier shell correlation of two maps"),
    "map": (
        "map_align",
        "tools for maps: align, fsc, mask, resample, crop, flip, symmetrise, filter, diff, render",
    ),
    "evaluate": ("evaluate", "poses and map of a run against the truth of a simulation"),
    "simulate": ("simulate", "a particle stack with known truth, from a structure or a map"),
    "convert": ("convert", "between RELION, cryoSPARC and cryoDRGN files, and between map formats"),
    "particles": ("particles_expand", "expand particle files by symmetry, and collapse them again"),
    "relion-external": ("relion_external", "a verb as a job of RELION's type External"),
    "report": ("report", "write report.html anew from the files of a run"),
    "doctor": ("doctor", "versions, devices, threads, memory and disk of this installation"),
    "bench": (
        "bench",
        "score runs on simulated stacks, beside chance, oracle and peers; also `bench flex`, `bench prior`",
    ),
}
"""Verb -> (module in this folder, one line for the help)."""

SUBVERBS: dict[str, dict[str, tuple[str, str]]] = {
    "poses": {
        "train": ("poses_train", "a network for a known map and images like the given ones"),
        "predict": ("poses_predict", "poses of new particles with a trained network"),
    },
    "flex": {
        "fit": ("flex_fit", "a map as 3D Gaussians: .ply, .safetensors or pseudo-atoms"),
        "train": ("flex_train", "learn motions and compositions from particles with poses"),
        "analyze": (
            "flex_analyze",
            "what a run found: groups, maps along axes and paths, motions, film, report",
        ),
        "reconstruct": ("flex_reconstruct", "one sharper map of all images, the motion taken out"),
    },
    "prior": {
        "train": (
            "prior_train",
            "learn maps, chains or tri-planes from procedural proteins and a folder of structures",
        ),
        "sample": (
            "prior_sample",
            "draw maps (.mrc) or chains (.pdb) of no protein in particular, with scores",
        ),
        "reconstruct": (
            "prior_reconstruct",
            "posterior maps of particles with poses, their spread, a report",
        ),
        "denoise": ("prior_denoise", "two half maps to the posterior mean and its spread"),
    },
    "particles": {
        "expand": ("particles_expand", "one row per symmetric copy of each particle"),
        "collapse": ("particles_collapse", "an expanded file back to one row per particle"),
    },
    "map": {
        "align": ("map_align", "rotation, shift and hand that bring one map onto another"),
        "fsc": ("fsc", "Fourier shell correlation of two maps, with or without a mask"),
        "mask": ("map_mask", "a soft mask, automatic or from a threshold"),
        "resample": ("map_resample", "another voxel size or box, in Fourier space"),
        "crop": ("map_crop", "cut a map or pad it with zeros"),
        "flip": ("map_flip", "the other hand, of the map and of the poses"),
        "symmetrise": ("map_symmetrise", "the mean over a point group"),
        "filter": ("map_filter", "low-pass, high-pass, B-factor"),
        "diff": ("map_diff", "one map less another, scaled shell by shell"),
        "render": ("map_render", "a picture of the surface, no display needed"),
    },
}
"""Verbs of two words: the second one -> (module in this folder, one line for the help)."""

OWN_SETTINGS: dict[str, str] = {"bench flex": "bench_flex", "bench prior": "bench_prior"}
"""Second words that have options of their own, of verbs that read them as an argument -> module in this folder."""

OWN_ARGUMENTS = ("relion-external",)
"""Verbs whose module reads its arguments itself, since another program chose their form."""

EXIT_BAD_INPUT = 2


def usage() -> str:
    """The help of the program as a whole.

    >>> "abinitio" in usage()
    True
    """
    rows = "\n".join(f"  {verb:15s} {line}" for verb, (_, line) in VERBS.items())
    return (
        f"cryorbit {__version__}: cryo-EM particle images to maps and poses you can trust\n\n"
        f"usage: cryorbit VERB ...        cryorbit VERB --help\n\n{rows}\n\n"
        "Start with `cryorbit demo`, or `cryorbit check particles.star`."
    )


def usage_of(verb: str) -> str:
    """The help of a verb of two words.

    >>> "poses train" in usage_of("poses")
    True
    """
    rows = "\n".join(f"  {verb} {second:10s} {line}" for second, (_, line) in SUBVERBS[verb].items())
    choice = "|".join(SUBVERBS[verb])
    return f"usage: cryorbit {verb} {choice} ...        cryorbit {verb} {choice} --help\n\n{rows}"


def _found(arguments: list[str]) -> tuple[str, ModuleType, list[str]] | None:
    """The verb in one or two words, its module, and the arguments that are its own; None if help was all that was asked.

    Raises
    ------
    CryorbitError
        If there is no such verb.
    """
    verb, rest = arguments[0], arguments[1:]
    both = " ".join(arguments[:2])
    if both in OWN_SETTINGS:
        verb, name, rest = both, OWN_SETTINGS[both], rest[1:]
    elif verb in SUBVERBS:
        if not rest or rest[0] in ("-h", "--help", "help"):
            return None
        second, rest = rest[0], rest[1:]
        if second not in SUBVERBS[verb]:
            raise CryorbitError(f"no verb '{verb} {second}'. Choose one of: {', '.join(SUBVERBS[verb])}.")
        name, verb = SUBVERBS[verb][second][0], f"{verb} {second}"
    elif verb in VERBS:
        name = VERBS[verb][0]
    else:
        raise CryorbitError(f"no verb '{verb}'. Choose one of: {', '.join(VERBS)}.")
    return verb, importlib.import_module(f"cryorbit.cli.{name}"), rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 checks failed, 2 bad input, 143 SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"cryorbit {__version__}")
        return 0
    try:
        found = _found(arguments)
        if found is None:
            print(usage_of(arguments[0]))
            return 0
        verb, module, rest = found
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
    if verb in OWN_ARGUMENTS:
        return module.run_arguments(arguments)
    settings = parse(module.Settings, arguments, verb=verb)
    if settings is None:
        return 0
    return module.run(settings)


def _tell_warning(message: Warning | str, *about: object, **more: object) -> None:
    """A warning as one line for people, without the line of code it came from."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
