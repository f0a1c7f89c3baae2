"""`cryorbit flex train PARTICLES -o DIR`: molecules that move and come and go, as Gaussians, from particles with poses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.options import ComputeOptions, ConfigOptions, OutFolder, prepare
from cryorbit.cli.reading import ImageOptions, ParticlesFile, absolute, read_images, refuse_bad_images
from cryorbit.errors import BadInput, CryorbitError
from cryorbit.inference.flex_settings import FlexSettings

if TYPE_CHECKING:
    from cryorbit.cli.run_folder import RunFolder
    from cryorbit.data import Gaussians, ParticleStack, Volume
    from cryorbit.inference.flex import FlexResult

GAUSSIANS = "gaussians.safetensors"
OUTPUTS = ("model.safetensors", "latents.safetensors", "encoder.safetensors", GAUSSIANS, "particles.star")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Learn how the molecule moves: DIR/model.safetensors, latents.safetensors, gaussians.safetensors, particles.star."""

    particles: tyro.conf.Positional[ParticlesFile | None] = None
    """A .star, .cs, .mrcs or .txt file (with --pose-pkl) or a job folder, with poses; --resume knows it already."""
    out: OutFolder
    """Folder for the results."""
    map: Annotated[Path | None, tyro.conf.arg(metavar="MAP")] = None
    """Map to fit Gaussians to, in any grey scale; without it one is made of the particles."""
    gaussians: Annotated[Path | None, tyro.conf.arg(metavar="G")] = None
    """Gaussians to begin with: a .safetensors, or GaussianEM's .ply beside its cfg.json."""
    half_sets: bool = False
    """Train on each half of the particles too, and say to what resolution the two agree on each conformation; twice the
    time. Poses stay common to both."""
    resume: bool = False
    """Go on with the run in DIR, with its settings, after any kind of stop."""
    ctf: bool = True
    """Use the CTF; --no-ctf for images that have none or are corrected for it."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    reading: Annotated[ImageOptions, Flat] = field(default_factory=ImageOptions)
    inference: Annotated[FlexSettings, Flat] = field(default_factory=FlexSettings)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Run, or go on with, a training."""
    from cryorbit.cli.flex_halves import TABLE, refuse_shared_start, train_halves
    from cryorbit.cli.run_folder import already_finished

    finished = settings.resume and already_finished(settings.out)
    if finished and (not settings.half_sets or (settings.out / TABLE).exists()):
        return 0
    if settings.particles is None:
        raise BadInput("no particles given. Name a .star, .cs, .mrcs or .txt file or a job folder.")
    if settings.map is not None and settings.gaussians is not None:
        raise BadInput(
            "both --map and --gaussians given. Give one of them: either says where Gaussians begin."
        )
    if settings.half_sets:
        refuse_shared_start(settings)
    settings = replace(
        settings,
        particles=absolute(settings.particles),
        map=None if settings.map is None else absolute(settings.map),
        gaussians=None if settings.gaussians is None else absolute(settings.gaussians),
        reading=settings.reading.absolute(),
    )
    prepare(ComputeOptions(device="cpu", threads=settings.inference.threads or None))
    stack, gaussians, volume = usable_input(settings)
    if not finished:
        train(settings, stack, gaussians, volume)
    if settings.half_sets:
        train_halves(settings, stack)
    return 0


def train(
    settings: Settings, stack: ParticleStack, gaussians: Gaussians | None, volume: Volume | None
) -> None:
    """Run, or go on with, one training in its folder."""
    from cryorbit.cli.run_folder import open_run
    from cryorbit.inference.flex_start import train_flex

    folder = open_run(
        settings.out,
        verb="flex train",
        settings_yaml=to_yaml(settings),
        outputs=OUTPUTS,
        resume=settings.resume,
    )
    try:
        records = train_flex(
            stack, settings.inference, gaussians=gaussians, volume=volume, state=folder.state
        )
        last = folder.follow(records, checkpoint_every_s=settings.checkpoint_every_s)
        write_result(folder, last.result, stack, settings)
    except CryorbitError:
        folder.abandon(OUTPUTS)
        raise


def usable_input(settings: Settings) -> tuple[ParticleStack, Gaussians | None, Volume | None]:
    """Particles, Gaussians and map, refused with the reason if they are of no use.

    Raises
    ------
    BadFile, BadInput
        If they cannot be read, lack poses or a CTF, or hold unusable images.
    """
    from cryorbit.io.gaussians import read_gaussians
    from cryorbit.io.mrc import read_map

    assert settings.particles is not None  # refused by the caller
    stack = read_images(settings.particles, settings.reading)
    if stack.pose is None:
        raise BadInput(
            f"{stack.source}: no poses in it. Run `cryorbit refine` (or abinitio) first and give its particles."
        )
    if settings.ctf and stack.ctf is None:
        raise BadInput(f"{stack.source}: no CTF parameters. Give a file that has them, or --no-ctf.")
    refuse_bad_images(stack)
    gaussians = None if settings.gaussians is None else read_gaussians(settings.gaussians)
    volume = None if settings.map is None else read_map(settings.map)
    return stack if settings.ctf else replace(stack, ctf=None), gaussians, volume


def write_result(folder: RunFolder, result: FlexResult, stack: ParticleStack, settings: Settings) -> None:
    """Model, latent vectors, anchors and particles of a finished run."""
    from cryorbit.cli.flex_files import save_flex
    from cryorbit.io.gaussians import save_gaussians
    from cryorbit.io.particles import write_particles

    save_flex(folder.path, result, settings.inference)
    anchors = result.model.anchors()
    frame = {"box": result.box, "pixel_size_A": result.pixel_size_A}
    save_gaussians(folder.path / GAUSSIANS, anchors, frame)
    columns = {f"cryorbitLatent{k + 1}": z.double().numpy() for k, z in enumerate(result.z.T)}
    columns["rlnLogLikeliContribution"] = (-result.misfit).double().numpy()
    write_particles(folder.path / "particles.star", replace(stack, pose=result.pose), extra_columns=columns)
    folder.record(
        particles=len(stack),
        gaussians=len(anchors),
        chi_square_per_number=float(2 * result.misfit.mean() / result.numbers),
    )
    folder.finish()
