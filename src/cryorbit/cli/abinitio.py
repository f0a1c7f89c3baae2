"""`cryorbit abinitio PARTICLES -o DIR`: from images to poses and maps, with no start map."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.network_options import Method, NetworkOptions, network_settings
from cryorbit.cli.options import ComputeOptions, ConfigOptions, Device, OutFolder, prepare
from cryorbit.cli.reading import (
    ImageOptions,
    ParticlesFile,
    absolute,
    read_images,
    refuse_bad_images,
    refuse_for_abinitio,
)
from cryorbit.errors import BadInput, CryorbitError
from cryorbit.inference.abinitio_settings import AbinitioSettings

if TYPE_CHECKING:
    import torch

    from cryorbit.cli.run_folder import RunFolder
    from cryorbit.data import ParticleStack
    from cryorbit.inference.abinitio import AbinitioResult
    from cryorbit.inference.ranks import Ranks

OUTPUTS = ("particles.star", "map.mrc", "half1.mrc", "half2.mrc", "fsc.star", "report.html")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Find poses and a map from nothing: DIR/particles.star, map.mrc, half maps, fsc.star, report.html."""

    particles: tyro.conf.Positional[ParticlesFile | None] = None
    """A .star, .cs, .mrcs or .txt file or a job folder; --resume knows it already."""
    out: OutFolder
    """Folder for the results."""
    resume: bool = False
    """Go on with the run in DIR, with its settings, after any kind of stop."""
    ctf: bool = True
    """Use the CTF; --no-ctf for images that have none or are corrected for it."""
    checkpoint_every_s: float = 30.0
    """Seconds between checkpoints."""
    method: Method = "search"
    """Exhaustive search; a network alone; or a network that learns from the search and takes over."""
    reading: Annotated[ImageOptions, Flat] = field(default_factory=ImageOptions)
    network: Annotated[NetworkOptions, Flat] = field(default_factory=NetworkOptions)
    inference: Annotated[AbinitioSettings, Flat] = field(default_factory=AbinitioSettings)
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Run, or go on with, ab initio."""
    from cryorbit.cli.ranks import refuse_several, several_processes

    if settings.method != "search":
        refuse_several(f"--method {settings.method}")
    with several_processes() as ranks:
        return run_as(ranks, settings)


def run_as(ranks: Ranks, settings: Settings) -> int:
    """The part of one process."""
    from cryorbit.cli.run_folder import already_finished

    if settings.resume and already_finished(settings.out):
        return 0
    if settings.particles is None:
        raise BadInput("no particles given. Name a .star, .cs, .mrcs or .txt file or a job folder.")
    settings = replace(settings, particles=absolute(settings.particles), reading=settings.reading.absolute())
    device = prepare(compute_options(settings))
    stack = usable_particles(settings, ranks)
    run_in_folder(stack, settings, device=device, outputs=OUTPUTS, ranks=ranks)
    return 0


def compute_options(settings: Settings) -> ComputeOptions:
    """Device and threads; `--threads` is the inference's own, which shares the work out itself."""
    return ComputeOptions(device=settings.device, threads=settings.inference.threads or None)


def usable_particles(settings: Settings, ranks: Ranks | None = None) -> ParticleStack:
    """The particles, refused with the reason if no map can come of them.

    Raises
    ------
    BadFile, BadInput
        If they cannot be read, are too few, lack a CTF or hold unusable images.
    """
    assert settings.particles is not None
    stack = read_images(settings.particles, settings.reading, ranks)
    refuse_for_abinitio(stack, ctf=settings.ctf)
    refuse_bad_images(stack, ranks)
    return stack if settings.ctf else replace(stack, ctf=None)


def run_in_folder(
    stack: ParticleStack,
    settings: Settings,
    *,
    device: torch.device,
    outputs: tuple[str, ...],
    ranks: Ranks | None = None,
) -> AbinitioResult:
    """Ab initio of `stack` with progress, checkpoints and all outputs in the settings' folder."""
    from cryorbit.cli.contrast import warn_of_dark_protein
    from cryorbit.cli.pose_snapshots import with_snapshots
    from cryorbit.cli.progress import say
    from cryorbit.cli.ranks import open_together
    from cryorbit.cli.run_folder import RunFolder
    from cryorbit.inference.abinitio import run_abinitio
    from cryorbit.inference.network import run_network
    from cryorbit.inference.ranks import Ranks

    ranks = ranks or Ranks()
    if device.type != "cpu":
        searching = (
            "The search computes on the CPU in this version; a GPU serves networks, reconstruct and evaluate."
        )
        both = "The network computes on the GPU; its map, likelihoods and the refinement on the CPU."
        say(searching if settings.method == "search" else both)
    if settings.inference.contrast == "auto":
        warn_of_dark_protein(stack)
    folder = open_together(
        ranks,
        settings.out,
        verb="abinitio",
        settings_yaml=to_yaml(settings),
        outputs=outputs,
        resume=settings.resume,
    )
    try:
        if settings.method == "search":
            records = run_abinitio(stack, settings.inference, state=folder.state, ranks=ranks)
        else:
            network = network_settings(
                settings.method, settings.network, settings.inference, device=device.type
            )
            records = run_network(stack, settings.inference, network, state=folder.state)
        if isinstance(folder, RunFolder):
            records = with_snapshots(records, folder.path, resumed=settings.resume)
        last = folder.follow(records, checkpoint_every_s=settings.checkpoint_every_s)
        if isinstance(folder, RunFolder):
            write_result(folder, stack, last.result)
    except CryorbitError:
        folder.abandon(outputs)
        raise
    return last.result


def write_result(folder: RunFolder, stack: ParticleStack, result: AbinitioResult) -> None:
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
        "rlnMaxValueProbDistribution": result.confidence.double().cpu().numpy(),
        "rlnLogLikeliContribution": result.log_likelihood.double().cpu().numpy(),
        "cryorbitEntropyNats": result.entropy.double().cpu().numpy(),
        "cryorbitAngleSdDeg": result.angle_sd_deg.double().cpu().numpy(),
    }
    solved = replace(stack, pose=result.pose, half_set=result.half_set)
    write_particles(path / PARTICLES, solved, extra_columns=columns)
    folder.record(
        verdict=result.verdict,
        verdict_level="good" if result.converged else "bad",
        converged=result.converged,
        log_likelihood_mean=float(result.log_likelihood.double().mean()),
        resolution_0143_A=result.curve.resolution_A(0.143),
        particles=len(stack),
    )
    rebuild_report(path)
    folder.finish()
