"""cryoSPARC `.cs` particles -> `ParticleStack`."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cryorbit.data.ctf import CTF
from cryorbit.data.particles import ImageSource, ParticleStack
from cryorbit.data.pose import Pose
from cryorbit.errors import BadFile
from cryorbit.geometry.conventions import cryosparc_rotvec_to_matrix
from cryorbit.io.cs_file import join_on_uid, passthrough_files, read_cs, to_tables
from cryorbit.io.locate import Images, MissingStack, StackLocator
from cryorbit.io.mrc_stack import MrcImages
from cryorbit.io.notices import PixelSizeWarning, ShiftUnitWarning, UnusedAberrationWarning
from cryorbit.io.sources import AbsentImages, with_sign

CTF_FIELDS = {
    "defocus_u_A": ("ctf/df1_A", None),
    "defocus_v_A": ("ctf/df2_A", None),
    "astigmatism_angle_deg": ("ctf/df_angle_rad", 0.0),
    "voltage_kV": ("ctf/accel_kv", None),
    "cs_mm": ("ctf/cs_mm", None),
    "amplitude_contrast": ("ctf/amp_contrast", None),
    "phase_shift_deg": ("ctf/phase_shift_rad", 0.0),
    "b_factor_A2": ("ctf/bfactor", 0.0),
    "scale": ("ctf/scale", 1.0),
}
"""Field of `CTF`: cryoSPARC's field and what a missing one means (None: the file has no CTF)."""
IN_RADIANS = ("astigmatism_angle_deg", "phase_shift_deg")
_UNUSED = ("ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")
_CLASS_POSE = re.compile(r"alignments_class_?(\d+)/pose")


def read_cryosparc(
    path: str | os.PathLike[str],
    *,
    passthrough: Sequence[str | os.PathLike[str]] | Literal["auto"] = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    pixel_size_A: float | None = None,
    images: Images = "present",
) -> ParticleStack:
    """Read a cryoSPARC particles file, joined with its passthrough files on `uid`.

    Parameters
    ----------
    path
        The `.cs` file of a job's output.
    passthrough
        Files with the slots that `path` lacks; "auto" takes those beside it that know every particle.
    data_dir, pixel_size_A, images
        As in `cryorbit.io.particles.read_particles`.

    Raises
    ------
    BadFile
        With file, row and remedy.
    """
    main = read_cs(path)
    if "uid" not in (main.dtype.names or ()):
        raise BadFile(f"{path}: no field uid. Give a particles .cs file.")
    others = (
        passthrough_files(path, main)
        if passthrough == "auto"
        else [(str(p), read_cs(p)) for p in passthrough]
    )
    array = join_on_uid(main, others)
    if "blob/path" not in (array.dtype.names or ()) or "blob/idx" not in (array.dtype.names or ()):
        raise BadFile(
            f"{path}: no blob/path and blob/idx, so no images (looked for them in {len(others)} "
            "passthrough files "
            "beside it). Put the job's passthrough particles .cs file into the same folder."
        )
    tables = to_tables(array)
    pixel_size = _pixel_size(array, path, pixel_size_A)
    micrographs = tables["particles"].get("location/micrograph_path")
    group = (
        array["ctf/exp_group_id"].astype(np.int64) + 1
        if "ctf/exp_group_id" in (array.dtype.names or ())
        else None
    )
    pose, half_set = _alignments(array, path, pixel_size)
    return ParticleStack(
        images=_images(array, path, data_dir, images),
        pixel_size_A=pixel_size,
        ids=array["uid"].astype(str).astype(object),
        ctf=_ctf(array, path),
        pose=pose,
        half_set=half_set,
        micrograph=None if micrographs is None else micrographs.to_numpy(),
        optics_group=None if group is None else torch.from_numpy(group),
        tables=tables,
        source=str(path),
    )


def _has(array: np.ndarray, field: str) -> bool:
    return field in (array.dtype.names or ())


def _finite(array: np.ndarray, field: str, path: str | os.PathLike[str]) -> np.ndarray:
    values = array[field].astype(np.float64)
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise BadFile(
            f"{path}: row {row + 1} (uid {array['uid'][row]}): {field} is not finite. Remove that particle."
        )
    return values


def _pixel_size(array: np.ndarray, path: str | os.PathLike[str], given_A: float | None) -> float:
    if not _has(array, "blob/psize_A"):
        if given_A is None:
            raise BadFile(f"{path}: no blob/psize_A. State the pixel size (--pixel-size-A).")
        return given_A
    sizes = array["blob/psize_A"]
    # The digits that a float32 stands for: 1.345, not 1.3450000286.
    first = float(str(sizes[0]))
    if given_A is not None:
        if abs(first - given_A) > 1e-3 * given_A:
            warnings.warn(
                f"{path}: pixel size {given_A:g} A as you gave it, though the file says {first:g} A.",
                PixelSizeWarning,
                stacklevel=4,
            )
        return given_A
    differs = np.abs(sizes.astype(np.float64) - first) > 1e-4 * first
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        raise BadFile(
            f"{path}: blob/psize_A is {first:g} A in row 1 but {float(sizes[row]):g} A in row {row + 1}. "
            "Bring all particles to one pixel size, or select one group."
        )
    if first <= 0:
        raise BadFile(
            f"{path}: blob/psize_A is {first:g} A, not positive. State the pixel size (--pixel-size-A)."
        )
    return first


def _images(
    array: np.ndarray,
    path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None,
    images: Images,
) -> ImageSource:
    box = None
    if _has(array, "blob/shape"):
        shapes = array["blob/shape"].reshape(len(array), -1)
        odd = (shapes != shapes[0, 0]).any(1)
        if odd.any():
            row = int(np.flatnonzero(odd)[0])
            raise BadFile(
                f"{path}: row {row + 1}: blob/shape is {shapes[row].tolist()}, but row 1 has "
                f"{shapes[0].tolist()}; all images must be square and of one size. Extract them so."
            )
        box = int(shapes[0, 0])
    sign = np.where(array["blob/sign"] < 0, -1.0, 1.0) if _has(array, "blob/sign") else None
    names, first_rows, file_index = np.unique(array["blob/path"], return_index=True, return_inverse=True)
    texts = [
        (n.decode("utf-8", "surrogateescape") if isinstance(n, bytes) else str(n)).lstrip(">") for n in names
    ]
    section = array["blob/idx"].astype(np.int64)
    absent = with_sign(AbsentImages(str(path), box, tuple(texts), file_index, section), sign)
    if images == "absent":
        return absent
    try:
        paths = StackLocator(path, data_dir=data_dir).find_all(texts, first_rows)
    except MissingStack:
        if images == "if found":
            return absent
        raise
    source = MrcImages(paths, file_index=file_index, section=section, table=str(path))
    if box is not None and source.box != box:
        raise BadFile(
            f"{path}: blob/shape is {box} px, but the images in {paths[0]} have {source.box} px. "
            "Use the stacks that belong to this file."
        )
    return with_sign(source, sign)


def _ctf(array: np.ndarray, path: str | os.PathLike[str]) -> CTF | None:
    if not all(_has(array, name) for name, default in CTF_FIELDS.values() if default is None):
        return None
    used = [f for f in _UNUSED if _has(array, f) and array[f].any()]
    if used:
        warnings.warn(
            f"{path}: {', '.join(used)} are not zero; they are kept in the file but not used.",
            UnusedAberrationWarning,
            stacklevel=4,
        )
    values: dict[str, Tensor] = {}
    for field, (name, default) in CTF_FIELDS.items():
        if _has(array, name):
            numbers = _finite(array, name, path)
        else:
            numbers = np.full(len(array), default)
        if field in IN_RADIANS:
            numbers = np.degrees(numbers)
        values[field] = torch.from_numpy(numbers.astype(np.float32))
    return CTF(**values)


def _alignments(
    array: np.ndarray, path: str | os.PathLike[str], pixel_size_A: float
) -> tuple[Pose | None, Tensor | None]:
    """Poses and half sets: of `alignments3D`, else of each particle's most probable class."""
    if _has(array, "alignments3D/pose"):
        slots = ["alignments3D"]
    else:
        numbers = sorted(int(m.group(1)) for n in array.dtype.names or () if (m := _CLASS_POSE.fullmatch(n)))
        slots = [
            s
            for k in numbers
            for s in (f"alignments_class_{k}", f"alignments_class{k}")
            if _has(array, f"{s}/pose")
        ]
    if not slots:
        return None, None
    choice = np.zeros(len(array), np.int64)
    if len(slots) > 1:
        if not all(_has(array, f"{s}/class_posterior") for s in slots):
            raise BadFile(f"{path}: several classes but no class_posterior to choose by. Export one class.")
        choice = np.argmax(np.stack([array[f"{s}/class_posterior"] for s in slots], 1), 1)
    rows = np.arange(len(array))

    def chosen(field: str) -> np.ndarray:
        return np.stack([_finite(array, f"{s}/{field}", path) for s in slots], 1)[rows, choice]

    rotation = cryosparc_rotvec_to_matrix(torch.from_numpy(chosen("pose"))).to(torch.float32)
    if all(_has(array, f"{s}/psize_A") for s in slots):
        size = chosen("psize_A")
    else:
        warnings.warn(
            f"{path}: the alignments do not say in which pixels their shifts are; those of the images are "
            "assumed.",
            ShiftUnitWarning,
            stacklevel=5,
        )
        size = np.full(len(array), pixel_size_A)
    shift = 0.0 - chosen("shift") * size[:, None]
    half = None
    if all(_has(array, f"{s}/split") for s in slots):
        split = chosen("split").astype(np.int64)
        half = torch.from_numpy(split + 1) if np.isin(split, (0, 1)).all() else None
    return Pose(rotation, torch.from_numpy(shift.astype(np.float32))), half
