"""`cryorbit poses train PARTICLES --map MAP -o MODEL`: a network that tells the poses of a known specimen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.options import ConfigOptions, OutFolder, set_threads
from cryorbit.cli.pose_model_files import OF_A_MODEL
from cryorbit.cli.reading import (
    ParticlesFile,
    ReadOptions,
    absolute,
    read,
    refuse_bad_images,
    with_ctf_or_waived,
)
from cryorbit.errors import BadInput, CryorbitError
from cryorbit.inference.map_scale import UnusableMap
from cryorbit.inference.supervised import SupervisedSettings

if TYPE_CHECKING:
    from cryorbit.data import ParticleStack, Volume
    from cryorbit.inference.pose_model import PoseModel

POOR = 0.7
"""Share of its own power that a map should explain."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train a network on projections of a map, with CTFs and noise as PARTICLES have them; poses are not needed."""

    particles: tyro.conf.Positional[ParticlesFile | None] = None
    """Particles that tell CTFs, noise and scale: a .star, .cs, .mrcs or .txt file or a job folder; --resume knows it."""
    map: Annotated[Path | None, tyro.conf.arg(metavar="MAP.mrc")] = None
    """The specimen's map, of any box, pixel size and scale; --resume knows it already."""
    out: OutFolder
    """Folder of the model."""
    resume: bool = False
    """Go on with the training in MODEL, with its settings, after any kind of stop."""
    ctf: bool = True
    """Use the CTF; --no-ctf for images that have none or are corrected for it."""
    checkpoint_every_s: float = 30.0
    """Seconds between checkpoints."""
    reading: Annotated[ReadOptions, Flat] = field(default_factory=ReadOptions)
    training: Annotated[SupervisedSettings, Flat] = field(default_factory=SupervisedSettings)
    threads: int | None = None
    """CPU threads; all cores unless given. Another number may change the last bits of a resumed training."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Train, or go on with it."""
    from cryorbit.cli.run_folder import already_finished, open_run
    from cryorbit.inference.supervised import train_pose_model
    from cryorbit.io.mrc import read_map

    if settings.resume and already_finished(settings.out):
        return 0
    if settings.particles is None or settings.map is None:
        missing = "no particles" if settings.particles is None else "no --map"
        raise BadInput(f"{missing} given. Name a particle file and, with --map, the specimen's map.")
    settings = replace(
        settings,
        particles=absolute(settings.particles),
        map=absolute(settings.map),
        reading=settings.reading.absolute(),
    )
    assert settings.particles is not None
    assert settings.map is not None
    set_threads(settings.threads)
    stack = with_ctf_or_waived(read(settings.particles, settings.reading), ctf=settings.ctf)
    refuse_bad_images(stack)
    volume = read_map(settings.map, to_cube="pad")
    folder = open_run(
        settings.out,
        verb="poses train",
        settings_yaml=to_yaml(settings),
        outputs=OF_A_MODEL,
        resume=settings.resume,
    )
    try:
        records = train_pose_model(stack, volume, settings.training, state=folder.state)
        last = folder.follow(records, checkpoint_every_s=settings.checkpoint_every_s)
        write(folder.path, last.result, settings, stack, volume)
    except CryorbitError as error:
        folder.abandon(OF_A_MODEL)
        if isinstance(error, UnusableMap):
            raise BadInput(f"{settings.map}: {error}") from error
        raise
    facts = last.result.facts
    tell_fit(facts.fit)
    folder.record(
        particles=len(stack),
        scale=facts.scale,
        scale_standard_error=facts.scale_standard_error,
        particle_diameter_A=facts.particle_diameter_A,
        shift_sd_A=facts.shift_sd_A,
        **facts.fit,
        images=facts.training["images"],
        loss=facts.training["loss"],
    )
    folder.finish()
    return 0


def tell_fit(fit: dict[str, float]) -> None:
    """Say how well the map explains the images that were searched, and warn if it hardly does."""
    from cryorbit.cli.progress import say

    if not fit:
        return
    say(
        f"The map explains {fit['explained']:.0%} of its own power in {fit['searched_for_fit']:.0f} searched images; their "
        f"poses have a mean probability of {fit['confidence']:.2f}."
    )
    if fit["explained"] < POOR:
        say(
            "warning: that is little. Is it this specimen's map, in the right hand, with the right pixel size?"
        )


def write(path: Path, model: PoseModel, settings: Settings, stack: ParticleStack, volume: Volume) -> None:
    """The model's files."""
    from cryorbit import __version__
    from cryorbit.cli.pose_model_files import write_model, write_training_table
    from cryorbit.cli.progress import read_metrics
    from cryorbit.cli.run_folder import METRICS

    sources = {
        "map": {"file": str(settings.map), "box": volume.box, "pixel_size_A": volume.pixel_size_A},
        "particles": {"file": stack.source, "count": len(stack), "box": stack.box, "ctf": settings.ctf},
        "cryorbit": __version__,
    }
    write_training_table(path, read_metrics(path / METRICS))
    write_model(path, model, sources=sources)
