"""The files of a flex run: the model, what is known of every image, and an encoder, in one safetensors file each."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.errors import BadFile

if TYPE_CHECKING:
    from cryorbit.inference.flex import FlexResult
    from cryorbit.inference.flex_encoder import FlexEncoder
    from cryorbit.inference.flex_settings import FlexSettings

MODEL, LATENTS, ENCODER = "model.safetensors", "latents.safetensors", "encoder.safetensors"
_KIND, _VERSION = "flex", 1
_SHAPING = ("deformation", "latent", "rank", "parts", "nodes", "width", "gates")


def save_flex(folder: Path, result: FlexResult, settings: FlexSettings) -> None:
    """Write `model.safetensors` and `latents.safetensors` into a folder, each whole or not at all.

    A result that has an encoder leaves it in `encoder.safetensors`.

    Raises
    ------
    BadFile
        If the disk refuses.
    """
    from cryorbit.io.checkpoint import save_state

    shell = {
        "kind": _KIND,
        "version": _VERSION,
        "settings": asdict(settings),
        "box": result.box,
        "pixel_size_A": result.pixel_size_A,
        "numbers": result.numbers,
    }
    save_state(folder / MODEL, dict(result.model.state_dict()), shell)
    tensors = {
        "z": result.z,
        "precision": result.precision,
        "rotation": result.pose.rotation,
        "shift_A": result.pose.shift_A,
        "misfit": result.misfit,
    }
    if result.linear is not None:
        tensors |= {"linear.z": result.linear.z, "linear.precision": result.linear.precision}
    save_state(folder / LATENTS, tensors, {"kind": _KIND + " latents", "version": _VERSION})
    if result.encoder is not None:
        _save_encoder(folder / ENCODER, result.encoder)


def load_flex(folder: Path) -> tuple[FlexResult, FlexSettings]:
    """What `save_flex` wrote.

    Raises
    ------
    BadFile
        If a file is missing, broken, or of something else.
    """
    from cryorbit.data import Pose
    from cryorbit.inference.flex import FlexResult
    from cryorbit.inference.flex_result import LatentPosterior
    from cryorbit.inference.flex_settings import FlexSettings
    from cryorbit.io.checkpoint import load_state

    weights, shell = load_state(folder / MODEL)
    known, about = load_state(folder / LATENTS)
    if shell.get("kind") != _KIND or about.get("kind") != _KIND + " latents":
        raise BadFile(
            f"{folder}: not the folder of a flex run. Give the one that `cryorbit flex train` wrote."
        )
    names = {f.name for f in fields(FlexSettings)}
    settings = FlexSettings(**{k: v for k, v in shell["settings"].items() if k in names})
    model = _model_of(weights, settings, shell, folder)
    result = FlexResult(
        model=model,
        z=known["z"],
        precision=known["precision"],
        pose=Pose(known["rotation"], known["shift_A"]),
        misfit=known["misfit"],
        numbers=shell["numbers"],
        box=shell["box"],
        pixel_size_A=shell["pixel_size_A"],
        encoder=_load_encoder(folder / ENCODER) if (folder / ENCODER).exists() else None,
        linear=LatentPosterior(known["linear.z"], known["linear.precision"]) if "linear.z" in known else None,
    )
    return result, settings


def _save_encoder(path: Path, encoder: FlexEncoder) -> None:
    """The network's weights, and what it looks at."""
    from cryorbit.io.checkpoint import save_state

    features = encoder.features.state()
    shell = {"kind": _KIND + " encoder", "version": _VERSION, "features": encoder.features.name}
    tensors = {f"network.{name}": value for name, value in encoder.network.state_dict().items()}
    save_state(path, tensors | {f"features.{name}": value for name, value in features.items()}, shell)


def _load_encoder(path: Path) -> FlexEncoder:
    """What `_save_encoder` wrote."""
    from cryorbit.inference.flex_encoder import FlexEncoder
    from cryorbit.inference.image_features import features_of_state
    from cryorbit.io.checkpoint import load_state
    from cryorbit.models.latent_encoder import LatentEncoder

    values, shell = load_state(path)
    if shell.get("kind") != _KIND + " encoder":
        raise BadFile(f"{path}: not the encoder of a flex run. Remove it, or train anew.")
    parts: dict[str, dict[str, Any]] = {"network": {}, "features": {}}
    for name, value in values.items():
        first, rest = name.split(".", 1)
        parts[first][rest] = value
    weights = parts["network"]
    width, features = weights["first.weight"].shape
    network = LatentEncoder(
        features, len(weights["about_mean"]), latent=len(weights["last.bias"]) // 2, width=width
    )
    network.load_state_dict(weights)
    return FlexEncoder(network.eval(), features_of_state(shell["features"], parts["features"]))


def _model_of(weights: dict[str, Any], settings: FlexSettings, shell: dict[str, Any], folder: Path) -> Any:
    """A model of the saved shape with the saved weights."""
    from cryorbit.data import Gaussians
    from cryorbit.models.deformation import make_gaussian_model

    unit = shell["pixel_size_A"]
    place = weights["position"] * unit
    anchors = Gaussians(place, weights["log_amplitude"].exp(), weights["log_width"].exp() * unit)
    shape = {name: getattr(settings, name) for name in _SHAPING}
    model = make_gaussian_model(anchors, shape.pop("deformation"), unit_A=unit, **shape)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BadFile(f"{folder / MODEL}: weights and settings do not fit ({error}). Train anew.") from error
    return model.eval()
