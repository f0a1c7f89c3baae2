"""`ParticleStack` -> RELION 3.1 tables."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from cryorbit.data.particles import ParticleStack
from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import matrix_to_relion_angles, relion_angles_to_matrix
from cryorbit.io.locate import StackLocator
from cryorbit.io.notices import ContrastSignWarning, OddBoxWarning
from cryorbit.io.relion_fields import ANGLES, CTF_LABELS, MAGNIFICATION, ORIGINS_A, ORIGINS_PX, SIGN
from cryorbit.io.relion_table import RelionTables
from cryorbit.io.sources import AbsentImages, FileImages, on_disk
from cryorbit.io.star import write_star

ImagePaths = Literal["auto", "as given", "relative", "absolute"]
_OPTICS_FIELDS = ("voltage_kV", "cs_mm", "amplitude_contrast")
_DIGITS = 6
_SAME_ROTATION = 1e-6
"""Largest element difference at which a table's angles still say the same rotation: float32."""


def write_relion(
    path: str | os.PathLike[str],
    stack: ParticleStack,
    *,
    extra_columns: Mapping[str, np.ndarray | torch.Tensor] | None = None,
    image_paths: ImagePaths = "auto",
) -> None:
    """Write a stack as a RELION 3.1 STAR file (`# version 30001`).

    Columns and tables of a RELION file that the stack came from are kept; poses, half sets and CTF of the
    stack are written over them, and a value that did not change keeps its digits. Shifts are in angstrom;
    pixel origins, which would contradict them, are dropped.

    Parameters
    ----------
    path
        Where to.
    stack
        What to write.
    extra_columns
        Further columns of the particle table, one value per particle.
    image_paths
        How stacks are named: "as given" in the file the stack came from; "relative" to the new file's folder;
        "absolute"; "auto": as given where that name finds the same stack from the new file, else relative.

    Raises
    ------
    BadFile
        If the disk refuses.
    BadInput
        If the images lie in no file, or an extra column has another length.
    """
    tables = relion_tables(stack, path, image_paths=image_paths)
    for label, values in (extra_columns or {}).items():
        column = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        if column.shape != (len(stack),):
            raise BadInput(
                f"{path}: column {label} has shape {column.shape}, but there are {len(stack)} particles."
            )
        tables["particles"][label] = column
    if stack.box % 2:
        warnings.warn(
            f"{path}: the images have {stack.box} pixels, and RELION refuses odd boxes. Crop them for it.",
            OddBoxWarning,
            stacklevel=3,
        )
    write_star(path, tables)


def relion_tables(
    stack: ParticleStack, path: str | os.PathLike[str], *, image_paths: ImagePaths = "auto"
) -> dict[str, pd.DataFrame]:
    """The tables that `write_relion` writes: "optics", "particles", then the others."""
    known = stack.tables.get("particles")
    from_relion = known is not None and "rlnImageName" in known.columns
    particles = known.copy() if known is not None and from_relion else pd.DataFrame(index=range(len(stack)))
    given_optics = stack.tables.get("optics") if from_relion else None
    names = _image_names(stack, path, particles.get("rlnImageName"), image_paths)
    if "rlnImageName" in particles.columns:
        particles["rlnImageName"] = names
    else:
        particles.insert(0, "rlnImageName", names)
    if stack.micrograph is not None and "rlnMicrographName" not in particles.columns:
        particles["rlnMicrographName"] = stack.micrograph
    if given_optics is None:
        optics = _new_optics(stack, particles)
    else:
        optics = given_optics.copy()
        _write_size(stack, optics)
    tables = RelionTables.split({"particles": particles, "optics": optics}, str(path))
    _write_ctf(stack, tables)
    _write_pose(stack, tables)
    if stack.half_set is not None:
        particles["rlnRandomSubset"] = stack.half_set.cpu().numpy()
    _write_sign(stack, particles, path)
    if "uid" in getattr(known, "columns", ()) and not from_relion:
        particles["cryosparcUid"] = stack.tables["particles"]["uid"].to_numpy().astype(str)
    others = (
        {k: v for k, v in stack.tables.items() if k not in ("particles", "optics")} if from_relion else {}
    )
    return {"optics": optics, "particles": particles, **others}


def _image_names(
    stack: ParticleStack, path: str | os.PathLike[str], given: pd.Series | None, image_paths: ImagePaths
) -> np.ndarray:
    """The rlnImageName of each particle, with `:mrcs` behind names that RELION would not take for stacks."""
    files = on_disk(stack.images)
    if files is None or (given is not None and image_paths == "as given"):
        names = given.to_numpy() if given is not None else stack.ids
        if not all("@" in str(name) for name in names[:1]):
            raise BadInput(
                f"{path}: the images lie in no file that it could name. Write them as a stack first."
            )
        return np.array([_as_stack(str(n)) for n in names], dtype=object)
    folder = Path(path).absolute().parent
    locator = StackLocator(path)
    shown: dict[int, str] = {}
    for file, row in zip(*np.unique(files.file_index, return_index=True), strict=True):
        actual = files.stacks[file]
        if files.headers is None or image_paths == "absolute":
            shown[int(file)] = actual
            continue
        old = None if given is None else str(given.iloc[row]).partition("@")[2].removesuffix(":mrcs")
        found = locator.find(old) if old and image_paths == "auto" else None
        same = found is not None and os.path.realpath(found) == os.path.realpath(actual)
        shown[int(file)] = old if old and same else os.path.relpath(actual, folder)
    return _keep_or_build(given, files.file_index, files.section, shown)


def _keep_or_build(
    given: pd.Series | None, index: np.ndarray, section: np.ndarray, shown: dict[int, str]
) -> np.ndarray:
    """Names as they were where the stack's name did not change (so that ids stay), else new ones."""
    names = np.empty(len(index), dtype=object)
    old = given.tolist() if given is not None else None
    for row, (file, s) in enumerate(zip(index.tolist(), section.tolist(), strict=True)):
        if old is not None and old[row].partition("@")[2].removesuffix(":mrcs") == shown[file]:
            names[row] = _as_stack(old[row])
        else:
            names[row] = _as_stack(f"{s + 1:06d}@{shown[file]}")
    return names


def _as_stack(name: str) -> str:
    return f"{name}:mrcs" if name.endswith(".mrc") and "@" in name else name


def _new_optics(stack: ParticleStack, particles: pd.DataFrame) -> pd.DataFrame:
    """An optics table for a stack that has none: one group per group number and microscope setting."""
    n = len(stack)
    number = np.ones(n, np.int64) if stack.optics_group is None else stack.optics_group.cpu().numpy()
    keys = pd.DataFrame({"group": number})
    settings = _microscope(stack, RelionTables(str(stack.source), particles, None, None, {}))
    for label, values in settings.items():
        keys[label] = values
    groups = keys.drop_duplicates().sort_values("group", kind="stable").reset_index(drop=True)
    row = groups.reset_index().merge(keys.reset_index(), on=list(keys.columns), suffixes=("_new", "_old"))
    joined = np.empty(n, np.int64)
    joined[row["index_old"].to_numpy()] = row["index_new"].to_numpy()
    unique = not groups["group"].duplicated().any()
    numbers = groups["group"].to_numpy() if unique else np.arange(1, len(groups) + 1)
    particles["rlnOpticsGroup"] = numbers[joined]
    optics = pd.DataFrame(
        {"rlnOpticsGroup": numbers, "rlnOpticsGroupName": [f"opticsGroup{k}" for k in numbers]}
    )
    for label in settings:
        optics[label] = groups[label].to_numpy()
    _forget(particles, settings)
    optics["rlnImagePixelSize"] = round(stack.pixel_size_A, _DIGITS)
    if stack.box > 0:
        optics["rlnImageSize"] = stack.box
    optics["rlnImageDimensionality"] = 2
    return _with_aberrations(stack, optics, joined)


def _write_size(stack: ParticleStack, optics: pd.DataFrame) -> None:
    """Box and pixel size of the images as they are now, where they were looked at."""
    if isinstance(stack.images, AbsentImages):
        return
    if "rlnImageSize" in optics.columns and not (optics["rlnImageSize"].to_numpy() == stack.box).all():
        optics["rlnImageSize"] = stack.box
    if "rlnImagePixelSize" in optics.columns:
        old = optics["rlnImagePixelSize"].to_numpy(np.float64)
        if (np.abs(old - stack.pixel_size_A) > 1e-4 * stack.pixel_size_A).any():
            optics["rlnImagePixelSize"] = round(stack.pixel_size_A, _DIGITS)


def _microscope(stack: ParticleStack, tables: RelionTables) -> dict[str, np.ndarray]:
    """Voltage, Cs and amplitude contrast per particle, with the digits of the old table where they are the
    same.
    """
    out: dict[str, np.ndarray] = {}
    for field in _OPTICS_FIELDS:
        label, default = CTF_LABELS[field]
        old = tables.numbers(label, default)
        new = None if stack.ctf is None else getattr(stack.ctf, field)
        out[label] = old if new is None else _kept(old, new)
    return out


def _with_aberrations(stack: ParticleStack, optics: pd.DataFrame, joined: np.ndarray) -> pd.DataFrame:
    ctf = stack.ctf
    if ctf is None:
        return optics
    first = np.unique(joined, return_index=True)[1]
    for field in ("beam_tilt_mrad", "odd_zernike", "even_zernike", "magnification"):
        tensor = getattr(ctf, field)
        if tensor is None:
            continue
        values = tensor.detach().cpu().double().flatten(1).numpy()
        if not np.array_equal(values, values[first][joined]):
            raise BadInput(
                f"CTF: {field} differs within an optics group. Give each value a group of its own."
            )
        columns = {"beam_tilt_mrad": ("rlnBeamTiltX", "rlnBeamTiltY"), "magnification": MAGNIFICATION}.get(
            field
        )
        if columns is not None:
            for i, label in enumerate(columns):
                optics[label] = _short(values[first][:, i])
        else:
            label = "rlnOddZernike" if field == "odd_zernike" else "rlnEvenZernike"
            optics[label] = ["[" + ",".join(f"{v:.9g}" for v in row) + "]" for row in values[first]]
    return optics


def _write_ctf(stack: ParticleStack, tables: RelionTables) -> None:
    if stack.ctf is None:
        return
    for field, (label, default) in CTF_LABELS.items():
        new = getattr(stack.ctf, field)
        place = tables.where(label)
        fallback = 0.0 if default is None else default
        if place is None and field not in ("defocus_u_A", "defocus_v_A", "astigmatism_angle_deg"):
            old = np.full(len(stack), fallback)
            if np.array_equal(old, new.detach().cpu().numpy()):
                continue
        values = _kept(tables.numbers(label, fallback), new) if place else _short(_array(new))
        if place == "optics" and np.array_equal(values, tables.numbers(label)):
            continue
        tables.particles[label] = values


def _write_pose(stack: ParticleStack, tables: RelionTables) -> None:
    if stack.pose is None:
        return
    particles = tables.particles
    rotation = stack.pose.rotation.detach().cpu().double()
    angles = np.round(matrix_to_relion_angles(rotation).numpy(), _DIGITS) + 0.0
    if all(label in particles.columns for label in ANGLES):
        old = np.stack(
            [np.asarray(pd.to_numeric(particles[c], errors="coerce"), np.float64) for c in ANGLES], 1
        )
        usable = np.isfinite(old).all(1) & (old != -999.0).all(1)
        was = relion_angles_to_matrix(torch.from_numpy(np.where(usable[:, None], old, 0.0)))
        same = usable & ((was - rotation).abs().flatten(1).max(1).values <= _SAME_ROTATION).numpy()
        angles = np.where(same[:, None], old, angles)
    for i, label in enumerate(ANGLES):
        particles[label] = angles[:, i]
    origin = 0.0 - stack.pose.shift_A
    for i, label in enumerate(ORIGINS_A):
        place = tables.where(label)
        particles[label] = (
            _kept(tables.numbers(label), origin[:, i]) if place else _short(_array(origin[:, i]))
        )
    _forget(particles, ORIGINS_PX)


def _write_sign(stack: ParticleStack, particles: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    files: FileImages | None = on_disk(stack.images)
    if files is None:
        return
    if (files.sign == 1).all():
        _forget(particles, [SIGN])
        return
    particles[SIGN] = files.sign.astype(np.int64)
    warnings.warn(
        f"{path}: the stored images are dark on light. Cryorbit reads that from the column {SIGN}; other "
        "programs do "
        "not, so for them write the images too, light on dark.",
        ContrastSignWarning,
        stacklevel=5,
    )


def _forget(frame: pd.DataFrame, labels: Iterable[str]) -> None:
    for label in labels:
        if label in frame.columns:
            del frame[label]


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64)


def _short(values: np.ndarray) -> np.ndarray:
    """Six decimals, as RELION prints."""
    return np.round(values, _DIGITS) + 0.0


def _kept(old: np.ndarray, new: torch.Tensor) -> np.ndarray:
    """The old numbers where the new ones, in their own precision, are the same; else the new ones,
    shortened.
    """
    dtype = new.detach().cpu().numpy().dtype
    fresh = _array(new)
    return np.where(old.astype(dtype).astype(np.float64) == fresh, old, _short(fresh))
