"""A trained pose model: an encoder, the map that it learned from, and what its images must be like.

`describe` and `rebuild` turn it into named tensors and plain values and back; files are the shell's business.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from jaxtyping import Complex
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.inference.amortised_data import Prefilter
from cryorbit.inference.lattice import Lattice
from cryorbit.models.pose_encoder import PoseEncoder, make_encoder

FORMAT = 1
"""Version of what `describe` gives."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model says of itself, all plain values."""

    encoder: dict[str, Any]
    """Name and settings of the encoder: arguments of `make_encoder`."""
    box_px: int
    """Edge of the images that the encoder sees."""
    field_of_view_A: float
    """Edge of the images, angstrom."""
    prefilter: Prefilter
    particle_diameter_A: float
    shift_sd_A: float
    """Spread of the particles' shifts per axis."""
    scale: float
    """Of the training stack's signal over the map; see `map_scale`."""
    scale_standard_error: float
    noise_power: list[float]
    """Of the training stack's images per shell of the field of view, up to the encoder's Nyquist frequency."""
    contrast: str
    """Protein in the training stack's files: "light" or "dark"."""
    fit: dict[str, float] = field(default_factory=dict)
    """How well the map explains some images of the training stack; see `map_fit.MapFit`. Empty if not asked."""
    training: dict[str, Any] = field(default_factory=dict)
    """Images seen, seconds, last loss, seed, and so on; for people."""

    def __post_init__(self) -> None:
        if self.prefilter not in get_args(Prefilter):
            raise BadInput(f"prefilter {self.prefilter!r} is not one of {', '.join(get_args(Prefilter))}.")
        for name in ("field_of_view_A", "particle_diameter_A", "shift_sd_A", "scale"):
            if not float(getattr(self, name)) > 0:
                raise BadInput(f"{name} is {getattr(self, name)}, wanted a positive number.")

    @property
    def coarsest_pixel_A(self) -> float:
        """Pixel size of the images that the encoder sees: particles must be sampled at least as finely."""
        return self.field_of_view_A / self.box_px


@dataclass(frozen=True, eq=False)
class PoseModel:
    """An encoder with its map and facts.

    Parameters
    ----------
    map
        On an even box over the field of view, on the scale of the training stack's images.

    Raises
    ------
    BadInput
        If encoder, map and facts do not fit each other.
    """

    encoder: PoseEncoder
    map: Volume
    facts: ModelFacts

    def __post_init__(self) -> None:
        f = self.facts
        if self.encoder.box != f.box_px or self.map.box < f.box_px or self.map.box % 2:
            raise BadInput(
                f"encoder of {self.encoder.box} px and map of {self.map.box} px: wanted an encoder of {f.box_px} px and an "
                "even map not smaller."
            )
        if abs(self.map.box * self.map.pixel_size_A / f.field_of_view_A - 1) > 1e-3:
            raise BadInput(
                f"the map spans {self.map.box * self.map.pixel_size_A:.1f} A, wanted {f.field_of_view_A:.1f} A."
            )

    def half(self) -> Complex[Tensor, "p p h"]:
        """Transform of the map, ready for trilinear reads."""
        return Lattice(self.map.box).to_half(self.map.values)


def describe(model: PoseModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's weights by name, and the facts with the format's version; the map is kept apart."""
    weights = {name: value.detach().clone() for name, value in model.encoder.state_dict().items()}
    return weights, {"format": FORMAT, **dataclasses.asdict(model.facts)}


def rebuild(weights: dict[str, Tensor], facts: dict[str, Any], volume: Volume) -> PoseModel:
    """The reverse of `describe`.

    Raises
    ------
    BadInput
        If the version is another, a fact is missing or unknown, or weights and settings do not fit.
    """
    version = facts.get("format")
    if version != FORMAT:
        raise BadInput(
            f"a model of format {version}, this version of Cryorbit reads format {FORMAT}. Train it again, or use the "
            "version that made it."
        )
    known = {f.name: f for f in dataclasses.fields(ModelFacts)}
    given = {name: value for name, value in facts.items() if name != "format"}
    missing = [n for n, f in known.items() if n not in given and f.default_factory is dataclasses.MISSING]
    unknown = sorted(set(given) - set(known))
    if missing or unknown:
        words = ", ".join([*(f"{n} missing" for n in missing), *(f"{n} unknown" for n in unknown)])
        raise BadInput(f"not the facts of a pose model ({words}). Train it again.")
    try:
        about = ModelFacts(**given)
        generator = torch.Generator().manual_seed(0)  # its weights are replaced at once
        encoder = make_encoder(**about.encoder, generator=generator)
        encoder.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"the encoder cannot be made again ({reason}). Train it again.") from error
    encoder.eval()
    return PoseModel(encoder, volume, about)
