"""Weights of trained priors: one safetensors file with its card, and those that come with the package."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryorbit.errors import BadFile
from cryorbit.io.checkpoint import load_state, save_state

SHIPPED = "volumes-32.safetensors"
"""Prior of maps of 32 voxels, made by `cryorbit prior train --preset shipped-32`."""
_KIND = "prior"


def save_weights(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    card: dict[str, Any],
    *,
    about: dict[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write a prior's tensors and card, whole or not at all.

    Parameters
    ----------
    about
        What else a reader may want to know: how it was trained, how well it did.
    half
        Store in half precision; `load_weights` gives single precision all the same.

    Raises
    ------
    BadFile
        If the disk refuses.
    """
    stored = {
        name: t.to(torch.float16) if half and t.is_floating_point() else t for name, t in tensors.items()
    }
    save_state(path, stored, {"kind": _KIND, "card": card, "about": about or {}})


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in single precision and the card, for `from_state` of the prior that the card's kind names.

    Raises
    ------
    BadFile
        If the file is missing, broken or of something else.
    """
    if not Path(path).is_file():
        raise BadFile(
            f"{path}: there is no such prior. Give the prior.safetensors of `cryorbit prior train`, or leave it out for "
            "the one that comes with the program."
        )
    tensors, meta = load_state(path)
    if meta.get("kind") != _KIND:
        raise BadFile(f"{path}: not a prior. Give the prior.safetensors that `cryorbit prior train` wrote.")
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, meta["card"]


def shipped_weights() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of the prior of maps that comes with the package.

    Raises
    ------
    BadFile
        If this installation has none.
    """
    with as_file(files("cryorbit") / "weights" / SHIPPED) as path:
        if not path.is_file():
            raise BadFile(
                f"{path}: this installation lacks its prior. Install the package anew, or make it: "
                "`cryorbit prior train --preset shipped-32 -o DIR`."
            )
        return load_weights(path)
