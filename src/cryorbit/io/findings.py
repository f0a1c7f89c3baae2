"""What is questionable in a stack without being unreadable: for `check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cryorbit.data.expansion import SOURCE_COLUMNS, symmetry_of_expansion
from cryorbit.data.particles import ParticleStack
from cryorbit.io.sources import on_disk

_SAME_PIXEL = 5e-3
"""Relative difference at which two pixel sizes disagree: calibration moves them by less than half a
percent."""


@dataclass(frozen=True)
class Finding:
    """One thing to know about a particle file."""

    severity: Literal["error", "warning"]
    message: str
    file: str
    row: int | None
    """Row of the particle table from 1, or None where no row is meant."""


def header_disagreements(stack: ParticleStack) -> list[Finding]:
    """Stacks whose header has another pixel size than the metadata; the metadata are used.

    An error where the header was plainly meant (another size than 1 A); a warning where it says 1 A, which
    many programs write for want of better; nothing where it says nothing.
    """
    files = on_disk(stack.images)
    if files is None or files.headers is None:
        return []
    findings = []
    index, first = np.unique(files.file_index, return_index=True)
    for file, row in zip(index.tolist(), first.tolist(), strict=True):
        header, path = files.headers[file], files.stacks[file]
        size = header.pixel_size_A
        if size <= 0 or abs(size - stack.pixel_size_A) <= _SAME_PIXEL * stack.pixel_size_A:
            continue
        unset = abs(size - 1) < 1e-6
        remedy = (
            "Many programs write 1 for want of better; the metadata are used."
            if unset
            else "Correct whichever is wrong (the metadata are used)."
        )
        findings.append(
            Finding(
                "warning" if unset else "error",
                f"{path}: two pixel sizes that disagree: {size:g} A in the stack's header, "
                f"{stack.pixel_size_A:g} A in {stack.source} (row {row + 1}). {remedy}",
                path,
                row + 1,
            )
        )
    return findings


def image_keys(stack: ParticleStack) -> np.ndarray:
    """Per row, what is the same for rows of one particle: its source as a symmetry expansion noted it, else the image."""
    table = stack.tables.get("particles")
    for column in SOURCE_COLUMNS:
        if table is not None and column in table.columns:
            return table[column].to_numpy().astype(str)
    files = on_disk(stack.images)
    if files is None:
        return np.array([str(i).partition("#")[0] for i in stack.ids])
    return (files.file_index.astype(np.int64) << 32 | files.section).astype(str)


def duplicate_images(stack: ParticleStack) -> list[Finding]:
    """Images that are listed more than once: a mistake, unless the file was expanded by symmetry on
    purpose, which is told from the poses.
    """
    keys = pd.Series(image_keys(stack))
    again = keys.duplicated().to_numpy()
    if not again.any():
        return []
    row = int(np.flatnonzero(again)[0])
    expanded = None
    if stack.pose is not None:
        expanded = symmetry_of_expansion(stack.pose.rotation, keys.to_numpy())
    if expanded is not None and expanded[1] is not None:
        message = (
            f"{stack.source}: expanded by the symmetry {expanded[1]}: each of {len(stack) // expanded[0]} images is "
            f"listed {expanded[0]} times. Right for local refinement and classification; for everything else "
            "collapse it first (cryorbit particles collapse)."
        )
        return [Finding("warning", message, stack.source, None)]
    first = int(np.flatnonzero((keys == keys.iloc[row]).to_numpy())[0])
    message = (
        f"{stack.source}: {int(again.sum())} images are listed more than once; row {row + 1} repeats row "
        f"{first + 1} "
        f"({stack.ids[first]}). Remove duplicates, unless the file was expanded by symmetry."
    )
    return [Finding("warning", message, stack.source, row + 1)]
