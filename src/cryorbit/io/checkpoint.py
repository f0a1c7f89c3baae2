"""Checkpoints: named tensors and JSON in one safetensors file."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path

_META = "cryorbit"


def save_state(path: str | os.PathLike[str], tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Save tensors and JSON-able `meta` as one safetensors file, whole or not at all.

    Raises
    ------
    BadInput
        If `meta` cannot be written as JSON.
    BadFile
        If the disk refuses; an earlier checkpoint of that name is then still whole.
    """
    try:
        text = json.dumps(meta)
    except (TypeError, ValueError) as error:
        raise BadInput(f"save_state: meta is not JSON ({error}). Put arrays among the tensors.") from error
    # Tensors that share memory are refused by the format: write each as its own.
    own = {
        name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, t in tensors.items()
    }
    with atomic_path(path) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(own, temporary, metadata={_META: text})
            # The library makes a file of its own that nobody else may read; a group shares its runs.
            temporary.chmod(mode)
        except SafetensorError as error:
            raise OSError(_error_number(error), str(error)) from error


def load_state(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the meta of `save_state`, bit for bit.

    Raises
    ------
    BadFile
        If the file is missing, cut short, or not one of ours.
    """
    try:
        with safe_open(os.fspath(path), framework="pt", device=str(device)) as file:
            text = (file.metadata() or {}).get(_META)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise BadFile(f"{path}: there is no such checkpoint. Start without --resume.") from error
    except (SafetensorError, OSError) as error:
        raise BadFile(f"{path}: not a whole checkpoint ({error}). Remove it and start anew.") from error
    if text is None:
        raise BadFile(
            f"{path}: a safetensors file, but not a Cryorbit checkpoint. Give the one from the run."
        )
    return tensors, json.loads(text)


def _error_number(error: SafetensorError) -> int:
    """The errno that the safetensors library names in its message, `... (os error 28)`."""
    _, _, tail = str(error).rpartition("os error ")
    digits = tail.split(")")[0]
    return int(digits) if digits.isdigit() else 5
