"""`ParticleStack` -> cryoSPARC `.cs`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cryorbit.data.particles import ParticleStack
from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import cryosparc_rotvec_to_matrix, matrix_to_cryosparc_rotvec
from cryorbit.io.cryosparc import CTF_FIELDS, IN_RADIANS
from cryorbit.io.cs_file import FIELDS, from_tables, write_cs
from cryorbit.io.locate import StackLocator
from cryorbit.io.sources import on_disk

_SAME_ROTATION = 1e-6
"""Largest element difference at which a stored rotation vector still says the same rotation: float32."""


def write_cryosparc(
    path: str | os.PathLike[str],
    stack: ParticleStack,
    *,
    extra_columns: Mapping[str, np.ndarray | torch.Tensor] | None = None,
) -> tuple[str, ...]:
    """Write a stack as a `.cs` file; returns the names of its fields.

    A stack that came from cryoSPARC keeps every field, its type and its rows; poses, half sets and CTF are
    written over, and what did not change keeps its bits. A stack from elsewhere gets the slots blob, ctf and
    alignments3D, and a `uid` made from its id. Further columns get the slot `cryorbit` unless their name has
    one.

    Raises
    ------
    BadFile
        If the disk refuses.
    BadInput
        If the images lie in no file, or an extra column has another length.
    """
    known = stack.tables.get("particles")
    if known is not None and FIELDS in stack.tables:
        tables = {"particles": known.copy(), FIELDS: stack.tables[FIELDS]}
        _write_blob(stack, tables["particles"], path)
    else:
        tables = _new_tables(stack, path)
    frame = tables["particles"]
    frame["uid"] = _unique(frame["uid"].to_numpy(np.uint64), stack.ids)
    _write_ctf(stack, frame)
    tables = _write_pose(stack, tables)
    for name, values in (extra_columns or {}).items():
        column = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        if column.shape != (len(stack),):
            raise BadInput(
                f"{path}: column {name} has shape {column.shape}, but there are {len(stack)} particles."
            )
        frame[name if "/" in name else f"cryorbit/{name}"] = column
    array = from_tables(tables)
    write_cs(path, array)
    return array.dtype.names or ()


def _new_tables(stack: ParticleStack, path: str | os.PathLike[str]) -> dict[str, pd.DataFrame]:
    files = on_disk(stack.images)
    if files is None:
        raise BadInput(f"{path}: the images lie in no file that it could name. Write them as a stack first.")
    n = len(stack)
    folder = Path(path).absolute().parent
    shown = [os.path.relpath(s, folder) if files.headers is not None else s for s in files.stacks]
    names = np.array(shown, dtype=object)
    frame = pd.DataFrame({"uid": _uids(stack)})
    frame["blob/path"] = names[files.file_index]
    frame["blob/idx"] = files.section.astype(np.uint32)
    frame["blob/shape[0]"] = frame["blob/shape[1]"] = np.full(n, stack.box, np.uint32)
    frame["blob/psize_A"] = np.full(n, stack.pixel_size_A, np.float32)
    frame["blob/sign"] = files.sign.astype(np.float32)
    rows = [("uid", "<u8", 0), ("blob/path", "|S1", 0), ("blob/idx", "<u4", 0), ("blob/shape", "<u4", 2)]
    rows += [("blob/psize_A", "<f4", 0), ("blob/sign", "<f4", 0)]
    if stack.micrograph is not None:
        frame["location/micrograph_path"] = stack.micrograph.astype(str).astype(object)
        rows.append(("location/micrograph_path", "|S1", 0))
    if stack.ctf is not None:
        frame["ctf/type"] = np.full(n, "imported", dtype=object)
        group = torch.ones(n) if stack.optics_group is None else stack.optics_group
        frame["ctf/exp_group_id"] = (group.cpu().numpy().astype(np.int64) - 1).astype(np.uint32)
        rows += [("ctf/type", "|S9", 0), ("ctf/exp_group_id", "<u4", 0)]
    return {"particles": frame, FIELDS: pd.DataFrame(rows, columns=["name", "type", "width"])}


def _write_blob(stack: ParticleStack, frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Where the images are now; a name that still finds its stack from the new file stays."""
    files = on_disk(stack.images)
    if files is None or files.headers is None:
        return
    locator, folder = StackLocator(path), Path(path).absolute().parent
    names = frame["blob/path"].to_numpy().copy()
    index = files.file_index
    for file, row in zip(*np.unique(index, return_index=True), strict=True):
        found = locator.find(str(names[row]).lstrip(">"))
        if found is None or os.path.realpath(found) != os.path.realpath(files.stacks[file]):
            names[index == file] = os.path.relpath(files.stacks[file], folder)
    frame["blob/path"] = names
    frame["blob/idx"] = files.section.astype(frame["blob/idx"].to_numpy().dtype)
    if "blob/sign" in frame.columns:
        frame["blob/sign"] = files.sign.astype(frame["blob/sign"].to_numpy().dtype)
    for i in range(2):
        if f"blob/shape[{i}]" in frame.columns:
            frame[f"blob/shape[{i}]"] = np.full(len(stack), stack.box, np.uint32)
    if "blob/psize_A" in frame.columns:
        old = frame["blob/psize_A"].to_numpy()
        same = np.abs(old - stack.pixel_size_A) <= 1e-4 * stack.pixel_size_A
        frame["blob/psize_A"] = np.where(same, old, np.float32(stack.pixel_size_A)).astype(old.dtype)


def _uids(stack: ParticleStack) -> np.ndarray:
    """The uids that the particles once had in cryoSPARC, else 64 bits of a hash of their ids."""
    known = stack.tables.get("particles")
    if known is not None and "cryosparcUid" in known.columns:
        return known["cryosparcUid"].astype(str).to_numpy().astype(np.uint64)
    return _hashed(stack.ids)


def _unique(uids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The same, with new ones for rows that repeat an earlier row's: `uid` is what cryoSPARC joins by."""
    again = pd.Series(uids).duplicated().to_numpy()
    if not again.any():
        return uids
    out = uids.copy()
    out[again] = _hashed(ids[again])
    return out


def _hashed(ids: np.ndarray) -> np.ndarray:
    """64 bits of a hash of each id."""
    digests = (hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in ids)
    return np.array([int.from_bytes(d, "little") for d in digests], dtype=np.uint64)


def _write_ctf(stack: ParticleStack, frame: pd.DataFrame) -> None:
    if stack.ctf is None:
        return
    for field, (name, default) in CTF_FIELDS.items():
        new = getattr(stack.ctf, field).detach().cpu().numpy().astype(np.float64)
        if name not in frame.columns:
            if default is not None and name == "ctf/bfactor" and not new.any():
                continue
            frame[name] = (np.radians(new) if field in IN_RADIANS else new).astype(np.float32)
            continue
        old = frame[name].to_numpy()
        as_read = np.degrees(old.astype(np.float64)) if field in IN_RADIANS else old
        same = as_read.astype(np.float32) == new.astype(np.float32)
        stored = np.radians(new) if field in IN_RADIANS else new
        frame[name] = np.where(same, old, stored.astype(old.dtype))


def _write_pose(stack: ParticleStack, tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Poses and half sets into the slot alignments3D; a stored value that says the same stays."""
    frame = tables["particles"]
    added: list[tuple[str, str, int]] = []

    def put(name: str, values: np.ndarray, kind: str) -> None:
        columns = [f"{name}[{i}]" for i in range(values.shape[1])] if values.ndim == 2 else [name]
        if columns[0] not in frame.columns:
            added.append((name, kind, values.shape[1] if values.ndim == 2 else 0))
        for i, column in enumerate(columns):
            frame[column] = (values[:, i] if values.ndim == 2 else values).astype(kind)

    if stack.pose is not None:
        rotation = stack.pose.rotation.detach().cpu().double()
        vector = matrix_to_cryosparc_rotvec(rotation).numpy()
        wanted = 0.0 - stack.pose.shift_A.detach().cpu().double().numpy()
        size = np.full(len(stack), stack.pixel_size_A)
        if "alignments3D/psize_A" in frame.columns:
            size = frame["alignments3D/psize_A"].to_numpy().astype(np.float64)
        shift = wanted / size[:, None]
        if "alignments3D/pose[0]" in frame.columns:
            old = np.stack([frame[f"alignments3D/pose[{i}]"].to_numpy() for i in range(3)], 1)
            was = cryosparc_rotvec_to_matrix(torch.from_numpy(old.astype(np.float64)))
            same = ((was - rotation).abs().flatten(1).max(1).values <= _SAME_ROTATION).numpy()
            vector = np.where(same[:, None], old, vector)
        if "alignments3D/shift[0]" in frame.columns:
            old = np.stack([frame[f"alignments3D/shift[{i}]"].to_numpy() for i in range(2)], 1)
            as_read = (old.astype(np.float64) * size[:, None]).astype(np.float32)
            shift = np.where(as_read == wanted.astype(np.float32), old, shift)
        put("alignments3D/shift", shift, "<f4")
        put("alignments3D/pose", vector, "<f4")
        put("alignments3D/psize_A", size, "<f4")
    if stack.half_set is not None:
        put("alignments3D/split", stack.half_set.cpu().numpy().astype(np.int64) - 1, "<u4")
    fields = pd.concat(
        [tables[FIELDS], pd.DataFrame(added, columns=["name", "type", "width"])], ignore_index=True
    )
    return {**tables, FIELDS: fields if added else tables[FIELDS]}
