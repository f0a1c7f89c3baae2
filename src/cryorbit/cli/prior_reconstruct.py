"""`cryorbit prior reconstruct PARTICLES -o DIR`: posterior maps of particles with poses, given a prior of maps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.options import ConfigOptions, OutFolder, set_threads
from cryorbit.cli.prior_files import PriorFile
from cryorbit.cli.reading import ImageOptions, ParticlesFile, absolute, read_images, refuse_bad_images
from cryorbit.errors import BadInput, CryorbitError
from cryorbit.inference.half_posteriors import PriorReconstructionSettings
from cryorbit.inference.posterior import PosteriorSettings

if TYPE_CHECKING:
    from cryorbit.data import ParticleStack


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Reconstruct with a learned prior: DIR/posterior.mrc, spread.mrc, samples, data_only.mrc, fsc.star, report.html."""

    particles: tyro.conf.Positional[ParticlesFile | None] = None
    """A .star, .cs, .mrcs or .txt file or a job folder, with poses; --resume knows it already."""
    out: OutFolder
    """Folder for the results."""
    prior: PriorFile = None
    """The prior.safetensors of `prior train`; the shipped prior of maps unless given."""
    resume: bool = False
    """Go on with the run in DIR, with its settings, after any kind of stop."""
    ctf: bool = True
    """Use the CTF; --no-ctf for images that have none or are corrected for it."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    reading: Annotated[ImageOptions, Flat] = field(default_factory=ImageOptions)
    inference: Annotated[PriorReconstructionSettings, Flat] = field(
        default_factory=PriorReconstructionSettings
    )
    sampling: Annotated[PosteriorSettings, Flat] = field(default_factory=lambda: PosteriorSettings(steps=50))
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Run, or go on with, a reconstruction."""
    from cryorbit.cli.prior_files import load_volume_prior
    from cryorbit.cli.prior_reconstruct_files import OUTPUTS, write_reconstruction
    from cryorbit.cli.run_folder import already_finished, open_run
    from cryorbit.inference.prior_reconstruction import reconstruct_with_prior

    if settings.resume and already_finished(settings.out):
        return 0
    if settings.particles is None:
        raise BadInput("no particles given. Name a .star, .cs, .mrcs or .txt file or a job folder.")
    settings = replace(
        settings,
        particles=absolute(settings.particles),
        prior=absolute(settings.prior),
        reading=settings.reading.absolute(),
    )
    set_threads(settings.threads)
    prior = load_volume_prior(settings.prior)
    stack = usable_input(settings)
    folder = open_run(
        settings.out,
        verb="prior reconstruct",
        settings_yaml=to_yaml(settings),
        outputs=OUTPUTS,
        resume=settings.resume,
    )
    try:
        records = reconstruct_with_prior(
            stack, prior, settings.inference, settings.sampling, state=folder.state
        )
        last = folder.follow(records, checkpoint_every_s=settings.checkpoint_every_s)
        write_reconstruction(folder, last.result, settings)
        folder.finish()
    except CryorbitError:
        folder.abandon(OUTPUTS)
        raise
    return 0


def usable_input(settings: Settings) -> ParticleStack:
    """The particles, refused with the reason if they are of no use.

    Raises
    ------
    BadFile, BadInput
        If they cannot be read, lack poses or a CTF, or hold unusable images.
    """
    assert settings.particles is not None  # refused by the caller
    stack = read_images(settings.particles, settings.reading)
    if stack.pose is None:
        raise BadInput(
            f"{stack.source}: no poses in it. Run `cryorbit refine` (or abinitio) first and give its particles."
        )
    if settings.ctf and stack.ctf is None:
        raise BadInput(f"{stack.source}: no CTF parameters. Give a file that has them, or --no-ctf.")
    refuse_bad_images(stack)
    return stack if settings.ctf else replace(stack, ctf=None)
