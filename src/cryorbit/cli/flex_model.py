"""A fitted atomic model carried along by `cryorbit flex analyze --model`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cryorbit.errors import BadInput

if TYPE_CHECKING:
    from cryorbit.cli.flex_analysis_files import Job
    from cryorbit.data import Gaussians

DOUBTFUL = 0.05
"""Share of a model's atoms that may sit in what comes and goes without a word."""
INSIDE = 0.6
"""Least share of a model's atoms that must lie in density: below it the model is not fitted, or in another frame."""


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A model's atoms in the particle's frame, and the Gaussians that it was fitted to."""

    path: Path
    position_A: torch.Tensor
    shift_A: torch.Tensor
    home: Gaussians


def read_model(job: Job) -> FittedModel | None:
    """The atoms of --model.

    Raises
    ------
    BadInput
        If they do not lie in the map that they are said to be fitted to.
    """
    from cryorbit.inference.flex_decode import decode_gaussians
    from cryorbit.io.atoms import read_atoms
    from cryorbit.physics.gaussian_transfer import share_inside

    settings = job.settings
    if settings.model is None:
        return None
    groups = job.analysis.groups
    if not 0 <= settings.model_group <= len(groups.latent):
        raise BadInput(f"--model-group {settings.model_group}: there are groups 1 to {len(groups.latent)}.")
    number = settings.model_group
    home = (
        job.mean_gaussians() if number == 0 else decode_gaussians(job.result.model, groups.latent)[number - 1]
    )
    position = read_atoms(settings.model, waters="keep").position_A.double()
    frames = {"viewer": job.centre_A, "particle": torch.zeros(3, dtype=torch.float64)}
    shift = frames.pop(settings.model_frame)
    share = share_inside(position - shift, home)
    if share < INSIDE:
        ((other, elsewhere),) = frames.items()
        better = share_inside(position - elsewhere, home) >= INSIDE
        remedy = f"give --model-frame {other}" if better else "fit it into that map first, in ChimeraX say"
        name = "mean.mrc" if number == 0 else f"{job.groups_name}/vol_{number:03d}.mrc"
        raise BadInput(f"{settings.model}: only {100 * share:.0f} % of its atoms lie in {name}; {remedy}.")
    return FittedModel(settings.model, position, shift, home)


def write_model(path: Path, gaussians: list[Gaussians], model: FittedModel) -> str | None:
    """The model in each conformation of a series, in the frame it came in; a remark where its motion is in doubt."""
    from cryorbit.inference.flex_decode import motion_of
    from cryorbit.io.atoms import write_model_frames
    from cryorbit.physics.gaussian_transfer import carry_points

    moved = torch.stack([g.position_A for g in gaussians])
    frames = carry_points(model.position_A - model.shift_A, model.home, moved) + model.shift_A
    write_model_frames(model.path, path, frames)
    fading = motion_of(gaussians).fade > 0.5
    if not bool(fading.any()):
        return None
    lost = share_at(model.position_A - model.shift_A, model.home, fading)
    if lost < DOUBTFUL:
        return None
    return (
        f"{path.name}: {100 * lost:.0f} % of the atoms sit where Gaussians come or go along the series. The model describes "
        "that part by fading, not by moving, and where those atoms go is not known."
    )


def share_at(points_A: torch.Tensor, gaussians: Gaussians, chosen: torch.Tensor) -> float:
    """Share of points whose nearest Gaussian is among those chosen."""
    nearest = torch.cdist(points_A, gaussians.position_A.to(points_A)).argmin(1)
    return float(chosen[nearest].double().mean())
