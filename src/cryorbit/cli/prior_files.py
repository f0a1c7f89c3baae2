"""Priors as the shell reads and writes them: a file of one's own, or the one that comes with the program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cryorbit.errors import BadFile, BadInput

if TYPE_CHECKING:
    from cryorbit.inference.prior import Prior
    from cryorbit.models.volume_prior import VolumePrior

PRIOR = "prior.safetensors"
PriorFile = Annotated[Path | None, tyro.conf.arg(metavar="PRIOR")]
"""The prior.safetensors of `prior train`, or its folder; None: the shipped prior of maps."""


def load_prior(path: Path | None) -> Prior:
    """A prior ready to sample with.

    Raises
    ------
    BadFile
        If the file cannot be read or is no prior.
    """
    from cryorbit.io.weights import load_weights, shipped_weights
    from cryorbit.models.point_prior import PointPrior
    from cryorbit.models.triplane_prior import TriplanePrior
    from cryorbit.models.volume_prior import VolumePrior

    if path is None:
        tensors, card = shipped_weights()
    else:
        path = path / PRIOR if path.is_dir() else path
        tensors, card = load_weights(path)
    kinds: dict[str, type[Prior]] = {p.KIND: p for p in (VolumePrior, PointPrior, TriplanePrior)}
    try:
        return kinds.get(str(card.get("kind")), VolumePrior).from_state(tensors, card)
    except BadFile as error:
        raise BadFile(f"{path or 'the shipped prior'}: {error}") from error


def load_volume_prior(path: Path | None) -> VolumePrior:
    """A prior of maps.

    Raises
    ------
    BadFile, BadInput
        If it cannot be read, or is one of chains or of tri-planes.
    """
    from cryorbit.models.triplane_prior import TriplanePrior
    from cryorbit.models.volume_prior import VolumePrior

    prior = load_prior(path)
    if isinstance(prior, TriplanePrior):
        raise BadInput(
            f"{path}: a prior of tri-planes, which knows molecules along their principal axes only and can be sampled, "
            "but not be put under data in any pose. Give one of --kind volumes, or leave it out for the shipped one."
        )
    if not isinstance(prior, VolumePrior):
        raise BadInput(f"{path}: a prior of chains, but maps are wanted. Give one of --kind volumes.")
    return prior


def save_prior(path: Path, prior: Prior, about: dict[str, Any]) -> None:
    """Write a prior, whole or not at all."""
    from cryorbit.io.weights import save_weights

    save_weights(path, prior.tensors(), prior.card(), about=about)
