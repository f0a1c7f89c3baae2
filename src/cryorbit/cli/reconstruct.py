"""`cryorbit reconstruct PARTICLES -o DIR`: half maps and FSC from particles whose poses are known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.options import ComputeOptions, ConfigOptions, OutFolder, prepare
from cryorbit.cli.progress import say
from cryorbit.cli.reading import ImageOptions, ParticlesFile, absolute, read_images
from cryorbit.errors import BadInput, CryorbitError
from cryorbit.inference.reconstruct import ReconstructSettings

if TYPE_CHECKING:
    from cryorbit.cli.run_folder import RunFolder
    from cryorbit.data import ParticleStack
    from cryorbit.inference.ranks import Ranks
    from cryorbit.inference.reconstruct import ReconstructResult

OUTPUTS = ("map.mrc", "half1.mrc", "half2.mrc", "fsc.star", "report.html")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Reconstruct from known poses: DIR/map.mrc, half1.mrc, half2.mrc, fsc.star, report.html."""

    particles: tyro.conf.Positional[ParticlesFile]
    """A .star, .cs, .mrcs or .txt file or a job folder, with poses."""
    out: OutFolder
    """Folder for the results."""
    ctf: bool = True
    """Use the CTF; --no-ctf for images that have none or are corrected for it."""
    reading: Annotated[ImageOptions, Flat] = field(default_factory=ImageOptions)
    inference: Annotated[ReconstructSettings, Flat] = field(default_factory=ReconstructSettings)
    compute: Annotated[ComputeOptions, Flat] = field(default_factory=ComputeOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Reconstruct and write."""
    from cryorbit.cli.ranks import open_together, several_processes
    from cryorbit.cli.run_folder import RunFolder
    from cryorbit.inference.reconstruct import reconstruct

    settings = replace(settings, particles=absolute(settings.particles), reading=settings.reading.absolute())
    with several_processes() as ranks:
        device = prepare(settings.compute)
        stack = posed_particles(settings, ranks)
        folder = open_together(
            ranks, settings.out, verb="reconstruct", settings_yaml=to_yaml(settings), outputs=OUTPUTS
        )
        try:
            records = reconstruct(stack, settings.inference, device=device, ranks=ranks)
            # One pass over the images: shorter than it takes to make a checkpoint worth its while.
            last = folder.follow(records, checkpoint_every_s=None)
            if isinstance(folder, RunFolder):
                write_result(folder, stack, last.result)
        except CryorbitError:
            folder.abandon(OUTPUTS)
            raise
    return 0


def posed_particles(settings: Settings, ranks: Ranks) -> ParticleStack:
    """The particles, refused if their poses or CTF are not known.

    Raises
    ------
    BadFile, BadInput
        If they cannot be read or lack what is needed.
    """
    stack = read_images(settings.particles, settings.reading, ranks)
    if stack.pose is None:
        raise BadInput(
            f"{stack.source}: no poses in it. Refine them first, or find them with `cryorbit abinitio`."
        )
    if settings.ctf and stack.ctf is None:
        raise BadInput(f"{stack.source}: no CTF parameters. Give a file that has them, or --no-ctf.")
    return stack if settings.ctf else replace(stack, ctf=None)


def write_result(folder: RunFolder, stack: ParticleStack, result: ReconstructResult) -> None:
    """Maps, curve and report."""
    from cryorbit.cli.outputs import FSC, HALF1, HALF2, MAP, write_fsc
    from cryorbit.cli.report import rebuild_report
    from cryorbit.io.mrc import write_map

    for name, volume in zip((MAP, HALF1, HALF2), (result.map, *result.half_maps), strict=True):
        write_map(folder.path / name, volume)
    write_fsc(folder.path / FSC, {"unmasked": result.curve})
    resolution = result.curve.resolution_A(0.143)
    folder.record(resolution_0143_A=resolution, particles=len(stack))
    rebuild_report(folder.path, stack=stack)
    folder.finish()
    say(f"{folder.path}: {resolution:.2f} A at FSC 0.143")
