"""`cryorbit poses predict PARTICLES --model MODEL -o DIR`: poses of new particles of a known specimen."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cryorbit.cli.config import Flat, to_yaml
from cryorbit.cli.options import ConfigOptions, OutFolder
from cryorbit.cli.reading import (
    ParticlesFile,
    ReadOptions,
    absolute,
    read,
    refuse_bad_images,
    with_ctf_or_waived,
)
from cryorbit.errors import CryorbitError
from cryorbit.inference.predict_poses import PredictSettings

if TYPE_CHECKING:
    from cryorbit.cli.run_folder import RunFolder
    from cryorbit.data import ParticleStack
    from cryorbit.inference.predict_poses import PredictedPoses

PARTICLES, POSTERIOR, POSTERIOR_ABOUT = "particles.star", "posterior.safetensors", "posterior.json"
OUTPUTS = (PARTICLES, POSTERIOR, POSTERIOR_ABOUT)
UNKNOWN = "; NaN where there was one hypothesis and none to compare it with, and then not in " + PARTICLES


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Poses by a trained network, refined against its map: DIR/particles.star posterior.safetensors posterior.json."""

    particles: tyro.conf.Positional[ParticlesFile]
    """A .star, .cs, .mrcs or .txt file or a job folder; any box and pixel size that cover the model's field of view."""
    model: Annotated[Path, tyro.conf.arg(metavar="MODEL")]
    """Folder that `cryorbit poses train` made."""
    out: OutFolder
    """Folder for the results."""
    ctf: bool = True
    """Use the CTF; --no-ctf for images that have none or are corrected for it."""
    reading: Annotated[ReadOptions, Flat] = field(default_factory=ReadOptions)
    prediction: Annotated[PredictSettings, Flat] = field(default_factory=PredictSettings)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Predict and write."""
    from cryorbit.cli.options import set_threads
    from cryorbit.cli.pose_model_files import read_model
    from cryorbit.cli.run_folder import open_run
    from cryorbit.inference.predict_poses import predict_poses

    settings = replace(
        settings,
        particles=absolute(settings.particles) or settings.particles,
        model=absolute(settings.model) or settings.model,
        reading=settings.reading.absolute(),
    )
    model = read_model(settings.model)
    set_threads(settings.prediction.threads or None)
    stack = with_ctf_or_waived(read(settings.particles, settings.reading), ctf=settings.ctf)
    refuse_bad_images(stack)
    folder = open_run(settings.out, verb="poses predict", settings_yaml=to_yaml(settings), outputs=OUTPUTS)
    try:
        records = predict_poses(stack, model, settings.prediction)
        last = folder.follow(records, checkpoint_every_s=None)
        write_result(folder, stack, last.result)
    except CryorbitError:
        folder.abandon(OUTPUTS)
        raise
    return 0


def write_result(folder: RunFolder, stack: ParticleStack, found: PredictedPoses) -> None:
    """Poses, posterior and the run's facts."""
    from cryorbit.cli.run_folder import write_json
    from cryorbit.io.checkpoint import save_state
    from cryorbit.io.particles import write_particles

    posterior = found.posterior
    columns = particle_columns(found)
    write_particles(folder.path / PARTICLES, replace(stack, pose=found.pose), extra_columns=columns)
    about: dict[str, Any] = {
        "rotation": "RELION's matrix A of each hypothesis, most probable first: x_lab = A x_particle + shift",
        "log_probability": "of the network, over all its hypotheses, nats",
        "shift_A": "x, y in angstrom",
        "entropy": "of all hypotheses, nats, 0 when nothing is known",
        "mode_probability": "of all hypotheses within 15 degrees of the first",
        "confidence": "probability of the chosen pose among those that it was compared with",
        "searched": "1 where all poses were searched",
        "particles": [str(i) for i in stack.ids],
    }
    tensors = {f.name: getattr(posterior, f.name) for f in fields(posterior)}
    tensors |= {"confidence": found.confidence, "searched": found.searched.long()}
    for name in ("entropy", "mode_probability", "confidence"):
        if bool(tensors[name].isnan().any()):
            about[name] += UNKNOWN
    save_state(folder.path / POSTERIOR, tensors, {"count": len(stack)})
    write_json(folder.path / POSTERIOR_ABOUT, about)
    n = len(stack)
    tell(found, seconds=folder.seconds)
    folder.record(
        particles=n,
        doubted=int(found.doubted.sum()),
        searched=int(found.searched.sum()),
        confidence_mean=float(found.confidence.double().mean()),
        entropy_mean=float(posterior.entropy.double().mean()),
        evaluations_per_image=(found.proposing.poses + found.searching.poses) / n,
        coefficients_per_image=(found.proposing.coefficients + found.searching.coefficients) / n,
    )
    folder.finish()


def particle_columns(found: PredictedPoses) -> dict[str, Any]:
    """What particles.star tells beside the poses. Columns with gaps are left out: other programs might read them as 0."""
    columns = {
        "rlnMaxValueProbDistribution": found.confidence,
        "cryorbitEntropyNats": found.posterior.entropy,
    }
    if found.refined is not None:
        columns |= {
            "rlnLogLikeliContribution": found.refined.log_likelihood,
            "cryorbitAngleSdDeg": found.refined.angle_sd_deg,
        }
    known = {name: v.double().numpy() for name, v in columns.items() if not bool(v.isnan().any())}
    searched = {} if found.refined is None else {"cryorbitSearched": found.searched.long().numpy()}
    return known | searched


def tell(found: PredictedPoses, *, seconds: float) -> None:
    """How it went, in a line; and what is left in doubt."""
    from cryorbit.cli.progress import say

    n, doubted, searched = len(found.searched), int(found.doubted.sum()), int(found.searched.sum())
    median = float(found.confidence.median())  # NaN if one is
    sure = "probabilities unknown" if isnan(median) else f"median probability {median:.3f}"
    say(f"{n} particles, {n / max(seconds, 1e-9):.0f}/s; {sure}; {searched} searched.")
    if doubted > searched:
        say(
            f"{doubted - searched} more poses are in doubt and were not searched: raise --most-searched, or train longer "
            "(--max-images)."
        )
