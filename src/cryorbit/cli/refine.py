"""`cryorbit refine PARTICLES [--map MAP] -o DIR`: poses and half maps to the resolution that the images hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.options import ComputeOptions, ConfigOptions, OutFolder, prepare
from cryorbit.cli.reading import ImageOptions, ParticlesFile, absolute, read_images, refuse_bad_images
from cryorbit.errors import BadInput, CryorbitError
from cryorbit.inference.refinement_settings import RefinementSettings

if TYPE_CHECKING:
    from cryorbit.cli.run_folder import RunFolder
    from cryorbit.data import ParticleStack, Volume
    from cryorbit.inference.ranks import Ranks
    from cryorbit.inference.refinement import RefinementResult

OUTPUTS = ("particles.star", "map.mrc", "half1.mrc", "half2.mrc", "fsc.star", "report.html")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Refine poses and half maps: DIR/particles.star, map.mrc, half maps, fsc.star, report.html."""

    particles: tyro.conf.Positional[ParticlesFile | None] = None
    """A .star, .cs, .mrcs or .txt file or a job folder; --resume knows it already."""
    out: OutFolder
    """Folder for the results."""
    map: Annotated[Path | None, tyro.conf.arg(metavar="MAP")] = None
    """Reference to start from, in any grey scale; not needed where the particles have poses."""
    resume: bool = False
    """Go on with the run in DIR, with its settings, after any kind of stop."""
    ctf: bool = True
    """Use the CTF; --no-ctf for images that have none or are corrected for it."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    reading: Annotated[ImageOptions, Flat] = field(default_factory=ImageOptions)
    inference: Annotated[RefinementSettings, Flat] = field(default_factory=RefinementSettings)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Run, or go on with, a refinement."""
    from cryorbit.cli.ranks import several_processes

    with several_processes() as ranks:
        return run_as(ranks, settings)


def run_as(ranks: Ranks, settings: Settings) -> int:
    """The part of one process."""
    from cryorbit.cli.ranks import open_together
    from cryorbit.cli.run_folder import RunFolder, already_finished
    from cryorbit.inference.map_scale import UnusableMap
    from cryorbit.inference.refinement import run_refinement

    if settings.resume and already_finished(settings.out):
        return 0
    if settings.particles is None:
        raise BadInput("no particles given. Name a .star, .cs, .mrcs or .txt file or a job folder.")
    settings = replace(
        settings,
        particles=absolute(settings.particles),
        map=None if settings.map is None else absolute(settings.map),
        reading=settings.reading.absolute(),
    )
    prepare(ComputeOptions(device="cpu", threads=settings.inference.threads or None))
    stack, reference = usable_input(settings, ranks)
    folder = open_together(
        ranks,
        settings.out,
        verb="refine",
        settings_yaml=to_yaml(settings),
        outputs=OUTPUTS,
        resume=settings.resume,
    )
    try:
        records = run_refinement(
            stack, settings.inference, reference=reference, state=folder.state, ranks=ranks
        )
        last = folder.follow(records, checkpoint_every_s=settings.checkpoint_every_s)
        if isinstance(folder, RunFolder):
            write_result(folder, last.result)
    except CryorbitError as error:
        folder.abandon(OUTPUTS)
        if isinstance(error, UnusableMap):
            raise BadInput(f"{settings.map}: {error}") from error
        raise
    return 0


def usable_input(settings: Settings, ranks: Ranks) -> tuple[ParticleStack, Volume | None]:
    """The particles and the map, refused with the reason if they cannot be refined.

    Raises
    ------
    BadFile, BadInput
        If they cannot be read, lack poses and map both, lack a CTF, or hold unusable images.
    """
    from cryorbit.io.mrc import read_map

    assert settings.particles is not None
    stack = read_images(settings.particles, settings.reading, ranks)
    if stack.pose is None and settings.map is None:
        raise BadInput(
            f"{stack.source}: no poses in it, and no --map to find them with. Give a map, or run `cryorbit abinitio` first."
        )
    if settings.ctf and stack.ctf is None:
        raise BadInput(f"{stack.source}: no CTF parameters. Give a file that has them, or --no-ctf.")
    refuse_bad_images(stack, ranks)
    reference = None if settings.map is None else read_map(settings.map)
    return stack if settings.ctf else replace(stack, ctf=None), reference


def write_result(folder: RunFolder, result: RefinementResult) -> None:
    """Poses, maps, curve and report of a finished run."""
    from cryorbit.cli.outputs import FSC, HALF1, HALF2, MAP, PARTICLES, write_fsc
    from cryorbit.cli.report import rebuild_report
    from cryorbit.io.mrc import write_map
    from cryorbit.io.particles import write_particles

    path = folder.path
    for name, volume in zip((MAP, HALF1, HALF2), (result.map, *result.half_maps), strict=True):
        write_map(path / name, volume)
    write_fsc(path / FSC, {"unmasked": result.curve})
    columns = {
        "rlnMaxValueProbDistribution": result.confidence.double().numpy(),
        "rlnLogLikeliContribution": result.log_likelihood.double().numpy(),
        "cryorbitEntropyNats": result.entropy.double().numpy(),
        "cryorbitAngleSdDeg": result.angle_sd_deg.double().numpy(),
        "cryorbitScale": result.scale.double().numpy(),
    }
    write_particles(path / PARTICLES, result.stack, extra_columns=columns)
    folder.record(
        verdict=result.verdict,
        verdict_level="good" if result.converged else "bad",
        converged=result.converged,
        rounds=result.rounds,
        gold_standard=True,
        shared_to_A=result.shared_to_A,
        log_likelihood_mean=float(result.log_likelihood.double().mean()),
        resolution_0143_A=result.curve.resolution_A(0.143),
        particles=len(result.stack),
    )
    rebuild_report(path)
    folder.finish()
