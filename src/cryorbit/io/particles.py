"""Particle files of every dialect <-> `ParticleStack`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cryorbit.data.ctf import CTF
from cryorbit.data.particles import ParticleStack
from cryorbit.data.pose import Pose
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.cryodrgn import write_ctf_pickle, write_pose_pickle
from cryorbit.io.cryosparc import read_cryosparc
from cryorbit.io.cryosparc_write import write_cryosparc
from cryorbit.io.csg import tables_of_csg, write_csg
from cryorbit.io.findings import Finding, duplicate_images, header_disagreements
from cryorbit.io.image_lists import ShiftUnit, read_image_list, with_pickles
from cryorbit.io.jobs import particle_file
from cryorbit.io.locate import Images
from cryorbit.io.mrc_stack import StackWriter
from cryorbit.io.relion import read_relion
from cryorbit.io.relion_fields import Origins
from cryorbit.io.relion_write import ImagePaths, write_relion

__all__ = [
    "Finding",
    "duplicate_images",
    "header_disagreements",
    "match_ids",
    "read_particles",
    "require_ctf",
    "require_pose",
    "write_images",
    "write_particles",
]

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def read_particles(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    origins: Origins = "auto",
    poses: str | os.PathLike[str] | None = None,
    ctf: str | os.PathLike[str] | None = None,
    shifts: ShiftUnit = "auto",
    pixel_size_A: float | None = None,
    passthrough: Sequence[str | os.PathLike[str]] | Literal["auto"] = "auto",
    images: Images = "present",
) -> ParticleStack:
    """Read particles: a .star, .cs, .csg, .mrcs, .mrc or .txt file, or the folder of a RELION or cryoSPARC job.

    Images stay on disk until they are asked for; the headers of all stacks are read and checked.

    Parameters
    ----------
    path
        What to read; files may be compressed (.gz, .bz2, .xz, .zst).
    data_dir
        Where the stacks are, if they are not found from the file's own folder or one above it.
    origins
        Which shift columns of a STAR file count. "auto" does as RELION: angstrom where there is an optics
        table, with a `PixelOriginsWarning` if it has shifts in pixels only; pixels where there is none.
    poses, ctf
        cryoDRGN pickles, joined by position; they replace what the file says.
    shifts
        Unit of the shifts in `poses`; "auto" judges by their size and warns where that is a guess.
    pixel_size_A
        For files that do not say it; if the file does, this one is used, with a `PixelSizeWarning`.
    passthrough
        cryoSPARC files with the slots that the main one lacks; "auto" looks beside it.
    images
        "absent" reads the metadata without looking for the stacks, "if found" opens them if all are
        there: for conversion.

    Raises
    ------
    BadFile
        One line that names the file, the row and the remedy.

    Returns
    -------
    ParticleStack
        `pose` and `ctf` are None where the file has none: see `require_pose` and `require_ctf`.
    """
    target = Path(path)
    if target.is_dir():
        target = particle_file(target)
    if not target.exists():
        raise BadFile(f"{path}: there is no such file. Correct the path.")
    kind = _kind(target)
    if kind == ".star":
        stack = read_relion(
            target, data_dir=data_dir, origins=origins, pixel_size_A=pixel_size_A, images=images
        )
    elif kind == ".cs":
        stack = read_cryosparc(
            target, passthrough=passthrough, data_dir=data_dir, pixel_size_A=pixel_size_A, images=images
        )
    elif kind == ".csg":
        main, others = tables_of_csg(target)
        stack = read_cryosparc(
            main,
            passthrough=others if passthrough == "auto" else passthrough,
            data_dir=data_dir,
            pixel_size_A=pixel_size_A,
            images=images,
        )
    elif kind in (".mrcs", ".mrc", ".txt"):
        stack = read_image_list(target, data_dir=data_dir, ctf=ctf, pixel_size_A=pixel_size_A)
    else:
        raise BadFile(
            f"{path}: not the name of a particle file. Give a .star, .cs, .csg, .mrcs or .txt file, or a job's "
            "folder."
        )
    return with_pickles(stack, poses=poses, ctf=ctf, shifts=shifts)


def write_particles(
    path: str | os.PathLike[str],
    stack: ParticleStack,
    *,
    extra_columns: Mapping[str, np.ndarray | torch.Tensor] | None = None,
    image_paths: ImagePaths = "auto",
) -> None:
    """Write particles in the dialect that the name asks for; images stay where they are.

    `.star`: RELION 3.1. `.cs`: cryoSPARC; `.csg`: the same with the group file that cryoSPARC imports beside it.
    `.pkl`: a cryoDRGN pickle, of the poses if the name has "pose" in it, of the CTF if it has "ctf". Poses, half
    sets and CTF of the stack are written over the columns of the file that it came from; all its other columns
    and tables are kept if it is the same dialect.

    Parameters
    ----------
    path
        Where to.
    stack
        What to write.
    extra_columns
        Further columns, one value per particle.
    image_paths
        How a STAR file names its stacks: see `cryorbit.io.relion_write.write_relion`.

    Raises
    ------
    BadFile
        If the disk refuses, or poses or CTF are missing where they are asked for.
    BadInput
        If the name says no dialect, or the images lie in no file.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind == ".star":
        write_relion(target, stack, extra_columns=extra_columns, image_paths=image_paths)
    elif kind == ".cs":
        write_cryosparc(target, stack, extra_columns=extra_columns)
    elif kind == ".csg":
        table = target.with_suffix(".cs")
        fields = write_cryosparc(table, stack, extra_columns=extra_columns)
        write_csg(target, table.name, fields, particles=len(stack))
    elif kind == ".pkl" and "pose" in target.name:
        write_pose_pickle(target, require_pose(stack), box=stack.box, pixel_size_A=stack.pixel_size_A)
    elif kind == ".pkl" and "ctf" in target.name:
        write_ctf_pickle(target, require_ctf(stack), box=stack.box, pixel_size_A=stack.pixel_size_A)
    else:
        raise BadInput(
            f"{path}: the name says no particle format. Give a name that ends in .star, .cs, .csg, pose.pkl or "
            "ctf.pkl."
        )


def write_images(
    path: str | os.PathLike[str],
    stack: ParticleStack,
    *,
    dtype: Literal["float32", "float16"] = "float32",
    chunk: int = 256,
) -> None:
    """Write all images into one stack, in order and light on dark, `chunk` at a time.

    Raises
    ------
    BadFile
        If an image cannot be read or the disk refuses.
    """
    with StackWriter(path, box=stack.box, pixel_size_A=stack.pixel_size_A, dtype=dtype) as out:
        for start in range(0, len(stack), chunk):
            out.append(stack.images[slice(start, start + chunk)])


def require_pose(stack: ParticleStack) -> Pose:
    """The poses.

    Raises
    ------
    BadFile
        If there are none.
    """
    if stack.pose is None:
        raise BadFile(
            f"{stack.source}: no poses (rlnAngleRot, rlnAngleTilt, rlnAnglePsi of every particle, or "
            "alignments3D), "
            "which are needed here. Give the file of a refinement, or find poses with `cryorbit abinitio`."
        )
    return stack.pose


def require_ctf(stack: ParticleStack) -> CTF:
    """The CTF parameters.

    Raises
    ------
    BadFile
        If there are none.
    """
    if stack.ctf is None:
        raise BadFile(
            f"{stack.source}: no CTF parameters (rlnDefocusU and so on), which are needed here. Estimate "
            "the CTF "
            "first, or say --no-ctf if the images have none."
        )
    return stack.ctf


def match_ids(wanted: np.ndarray, available: np.ndarray) -> torch.Tensor:
    """Row in `available` of each of `wanted`: tables are joined by id, never by position.

    Ids that differ only in the folder of their stack, or in the zeros before an index, are taken for the same
    particle where that leaves no doubt.

    Raises
    ------
    BadInput
        If a particle is not found, or could be more than one.

    >>> match_ids(np.array(["2@b/x.mrcs"]), np.array(["000001@x.mrcs", "000002@x.mrcs"]))
    tensor([1])
    """
    rows = {name: i for i, name in enumerate(available.tolist())}
    found = [rows.get(name, -1) for name in wanted.tolist()]
    if -1 in found:
        short: dict[str, int] = {}
        for i, name in enumerate(available.tolist()):
            key = _short_id(name)
            short[key] = -2 if key in short else i
        found = [short.get(_short_id(name), -1) for name in wanted.tolist()]
    for name, row in zip(wanted.tolist(), found, strict=True):
        if row < 0:
            how = "not found" if row == -1 else "found more than once"
            raise BadInput(
                f"particle {name} is {how} among {len(available)} others (such as {available[0]}). "
                "Give two files of the same particles."
            )
    return torch.tensor(found, dtype=torch.int64)


def _short_id(name: object) -> str:
    index, at, stack = str(name).partition("@")
    return f"{index.lstrip('0')}@{stack.rpartition('/')[2]}" if at else str(name)


def _kind(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""
