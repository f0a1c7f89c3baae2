"""Gaussians in files: our own `.safetensors`, and any known format by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cryorbit.data import Gaussians
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.checkpoint import load_state, save_state
from cryorbit.io.ply import Origin, read_gaussianem

_KIND = "gaussians"
_FIELDS = ("position_A", "amplitude", "width_A")


def save_gaussians(
    path: str | os.PathLike[str], gaussians: Gaussians, meta: dict[str, Any] | None = None
) -> None:
    """Save positions, amplitudes and widths bit for bit, conformations and covariances included.

    Parameters
    ----------
    meta
        What else is known, JSON-able: box and pixel size of the map they came from, say.

    Raises
    ------
    BadInput
        If `meta` is not JSON.
    BadFile
        If the disk refuses.
    """
    tensors = {name: getattr(gaussians, name) for name in _FIELDS}
    save_state(path, tensors, {"kind": _KIND, "version": 1, "about": meta or {}})


def load_gaussians(path: str | os.PathLike[str]) -> tuple[Gaussians, dict[str, Any]]:
    """The Gaussians and the meta of `save_gaussians`.

    Raises
    ------
    BadFile
        If the file is missing, broken, holds something else, or a row of it is impossible.
    """
    tensors, meta = load_state(path)
    if meta.get("kind") != _KIND or set(tensors) != set(_FIELDS):
        raise BadFile(f"{path}: a checkpoint, but not of Gaussians. Give a file that flex fit wrote.")
    try:
        return Gaussians(**tensors), meta.get("about", {})
    except BadInput as error:
        raise BadFile(f"{path}: {error}") from error


def read_gaussians(
    path: str | os.PathLike[str], *, cfg: str | os.PathLike[str] | None = None, origin: Origin = "voxels"
) -> Gaussians:
    """Read a `.safetensors` of ours, or a GaussianEM `.ply` with its cfg.

    Parameters
    ----------
    cfg
        The cfg of a `.ply`; None: `cfg.json` in the same folder.

    Raises
    ------
    BadFile
        If the name is of neither kind, or the file cannot be read.
    """
    names = [s.lower() for s in Path(path).suffixes]
    if ".ply" in names:
        return read_gaussianem(
            path, cfg if cfg is not None else Path(path).with_name("cfg.json"), origin=origin
        )
    if names[-1:] == [".safetensors"]:
        return load_gaussians(path)[0]
    raise BadFile(f"{path}: not the name of a file of Gaussians. Give a .safetensors or a .ply file.")
