"""RELION particle tables (3.0, 3.1, 4, 5) -> `ParticleStack`."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pandas as pd
import torch

from cryorbit.data.particles import ImageSource, ParticleStack
from cryorbit.errors import BadFile
from cryorbit.io.locate import Images, MissingStack, StackLocator
from cryorbit.io.mrc_stack import MrcImages
from cryorbit.io.notices import PixelSizeWarning
from cryorbit.io.relion_fields import (
    SIGN,
    Origins,
    ctf_from_relion,
    half_set_from_relion,
    pixel_size_from_relion,
    pose_from_relion,
)
from cryorbit.io.relion_table import RelionTables
from cryorbit.io.sources import AbsentImages, with_sign
from cryorbit.io.star import read_star


def read_relion(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    origins: Origins = "auto",
    pixel_size_A: float | None = None,
    images: Images = "present",
) -> ParticleStack:
    """Read a RELION STAR file of particles.

    Parameters are those of `cryorbit.io.particles.read_particles`.

    Raises
    ------
    BadFile
        With file, row and remedy.
    """
    tables = RelionTables.split(read_star(path), str(path))
    _refuse_what_we_cannot_use(tables)
    names = tables.values("rlnImageName")
    if names is None:
        raise BadFile(
            f"{path}: the particles table has no rlnImageName. Give the file of extracted particles."
        )
    pixel_size = pixel_size_from_relion(tables, pixel_size_A)
    source = _images(tables, names, data_dir, images)
    if pixel_size is None:
        pixel_size = _pixel_size_from_header(tables, source)
    groups = tables.particles.get("rlnOpticsGroup")
    micrographs = tables.values("rlnMicrographName")
    shown = {"particles": tables.particles, **({} if tables.optics is None else {"optics": tables.optics})}
    return ParticleStack(
        images=with_sign(source, tables.values(SIGN)),
        pixel_size_A=pixel_size,
        ids=image_ids(names),
        ctf=ctf_from_relion(tables),
        pose=pose_from_relion(tables, pixel_size, origins),
        half_set=half_set_from_relion(tables),
        micrograph=None if micrographs is None else micrographs.astype(object),
        optics_group=None if groups is None else torch.from_numpy(groups.to_numpy().astype(np.int64)),
        tables={**shown, **tables.others},
        source=str(path),
    )


def image_ids(names: np.ndarray) -> np.ndarray:
    """Stable, unique names: `index@stack` as the file has it, `#2`, `#3` ... for images listed again."""
    ids = np.array([n.removesuffix(":mrcs") for n in names.tolist()], dtype=object)
    series = pd.Series(ids, dtype=object)
    if series.duplicated().any():
        seen = series.groupby(series).cumcount().to_numpy()
        ids = np.array([f"{i}#{k + 1}" if k else i for i, k in zip(ids, seen, strict=True)], dtype=object)
    return ids


def _refuse_what_we_cannot_use(tables: RelionTables) -> None:
    path = tables.path
    for label, what in (
        ("rlnCtfDataAreCtfPremultiplied", "multiplied by their CTF"),
        ("rlnCtfDataArePhaseFlipped", "phase-flipped"),
    ):
        if tables.where(label) and tables.numbers(label).any():
            row = int(np.flatnonzero(tables.numbers(label))[0])
            raise BadFile(
                f"{path}: row {row + 1}: the images are {what} ({label} is 1), which is not supported. "
                "Extract the particles again without that option."
            )
    general = tables.others.get("general")
    label = "rlnTomoSubTomosAre2DStacks"
    if general is not None and label in general.columns and 1 in general[label].to_numpy():
        raise BadFile(
            f"{path}: particles are stacks of tilted images (rlnTomoSubTomosAre2DStacks), which is not "
            "supported. Give single-particle images."
        )
    if tables.where("rlnImageDimensionality") and (tables.numbers("rlnImageDimensionality") != 2).any():
        raise BadFile(
            f"{path}: particles are subtomograms (rlnImageDimensionality is not 2), which is not supported. "
            "Give single-particle images."
        )


def _images(
    tables: RelionTables,
    names: np.ndarray,
    data_dir: str | os.PathLike[str] | None,
    images: Images,
) -> ImageSource:
    stacks, file_index, section = split_image_names(names, tables.path)
    box = None
    if tables.where("rlnImageSize"):
        box = int(tables.one_value(tables.numbers("rlnImageSize"), "an image size of", " px"))
    absent = AbsentImages(tables.path, box, tuple(stacks), file_index, section)
    if images == "absent":
        return absent
    first_rows = np.unique(file_index, return_index=True)[1]
    try:
        paths = StackLocator(tables.path, data_dir=data_dir).find_all(stacks, first_rows)
    except MissingStack:
        if images == "if found":
            return absent
        raise
    source = MrcImages(paths, file_index=file_index, section=np.maximum(section, 0), table=tables.path)
    for row in np.flatnonzero(section < 0)[:1]:
        header = source.headers[int(file_index[row])]
        if header.size[2] > 1:
            raise BadFile(
                f"{tables.path}: row {row + 1}: {names[row]} is a file of {header.size[2]} sections and the "
                "row does not say which (index@stack). Give single-particle images."
            )
    if box is not None and box != source.box:
        raise BadFile(
            f"{tables.path}: rlnImageSize is {box} px, but the images in {paths[0]} have {source.box} px. "
            "Use the stacks that belong to this file, or correct the optics table."
        )
    return source


def split_image_names(names: np.ndarray, path: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The distinct stacks, the stack of each image, and its section from 0 (-1 where no index is given)."""
    stacks: dict[str, int] = {}
    file_index = np.empty(len(names), np.int32)
    section = np.empty(len(names), np.int32)
    for row, name in enumerate(names.tolist()):
        number, at, stack = name.partition("@")
        if not at:
            number, stack = "0", name
        elif not number.isdecimal() or int(number) < 1 or not stack:
            raise BadFile(
                f"{path}: row {row + 1}: rlnImageName is {name!r}, wanted like 000001@stack.mrcs, counted "
                "from 1. Correct or remove that row."
            )
        section[row] = int(number) - 1
        file_index[row] = stacks.setdefault(stack.removesuffix(":mrcs"), len(stacks))
    return list(stacks), file_index, section


def _pixel_size_from_header(tables: RelionTables, source: ImageSource) -> float:
    header = source.headers[0].pixel_size_A if isinstance(source, MrcImages) else 0.0
    if header <= 0:
        raise BadFile(
            f"{tables.path}: no pixel size, neither in the tables nor in the stack. State the pixel size "
            "(--pixel-size-A)."
        )
    warnings.warn(
        f"{tables.path}: no pixel size in the tables; {header:g} A is taken from the stack's header.",
        PixelSizeWarning,
        stacklevel=4,
    )
    return header
