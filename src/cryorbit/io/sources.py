"""Image sources that a reader needs besides stacks on disk, and the way back from a source to its files."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data.particles import ImageSource, SelectedImages
from cryorbit.errors import BadFile
from cryorbit.io.half_images import HalfImages
from cryorbit.io.mrc_header import MrcHeader
from cryorbit.io.mrc_stack import MrcImages


@dataclass(frozen=True, eq=False)
class SignedImages:
    """Images of another source times +1 or -1 each, so that protein is light."""

    source: ImageSource
    sign: Float[Tensor, " n"]

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        return self.source.box

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Int[Tensor, " n"]) -> Float[Tensor, "n h w"]:
        return self.source[index] * self.sign[index][:, None, None]


@dataclass(frozen=True, eq=False)
class AbsentImages:
    """Images whose table was read without looking for the stacks: for conversion of metadata."""

    listed_in: str
    known_box: int | None
    stacks: tuple[str, ...]
    """Names of the stacks as the table has them."""
    file_index: np.ndarray
    section: np.ndarray

    @property
    def box(self) -> int:
        """Edge of an image in pixels; 0 where the table does not say and the stacks were not opened."""
        return self.known_box or 0

    def __len__(self) -> int:
        return len(self.section)

    def __getitem__(self, index: slice | Int[Tensor, " n"]) -> Float[Tensor, "n h w"]:
        raise BadFile(
            f"{self.listed_in}: read without its images, so there are no pixels. Read with the stacks "
            "present."
        )


@dataclass(frozen=True, eq=False)
class FileImages:
    """Where the images of a source lie on disk."""

    stacks: tuple[str, ...]
    headers: tuple[MrcHeader, ...] | None
    """One per stack; None where the stacks were not looked for and `stacks` are names as a table has them."""
    file_index: np.ndarray
    """Per image, which of `stacks` holds it."""
    section: np.ndarray
    """Per image, its number in the stack, from 0."""
    sign: np.ndarray
    """Per image, +1 or -1: what the stored pixels are multiplied by."""


def on_disk(source: ImageSource) -> FileImages | None:
    """The files behind a source, seen through selections and signs; None where the pixels are not in
    files.
    """
    if isinstance(source, MrcImages):
        stacks = tuple(str(p.absolute()) for p in source.paths)
        ones = np.ones(len(source), np.float32)
        return FileImages(stacks, source.headers, source.file_index, source.section, ones)
    if isinstance(source, AbsentImages):
        ones = np.ones(len(source), np.float32)
        return FileImages(source.stacks, None, source.file_index, source.section, ones)
    if isinstance(source, HalfImages):
        return on_disk(source.source)
    if isinstance(source, SelectedImages):
        inner = on_disk(source.source)
        if inner is None:
            return None
        rows = source.rows.cpu().numpy()
        index, section, sign = inner.file_index[rows], inner.section[rows], inner.sign[rows]
        return replace(inner, file_index=index, section=section, sign=sign)
    if isinstance(source, SignedImages):
        inner = on_disk(source.source)
        return None if inner is None else replace(inner, sign=inner.sign * source.sign.cpu().numpy())
    return None


def with_sign(source: ImageSource, sign: np.ndarray | None) -> ImageSource:
    """`source` itself where every sign is +1."""
    if sign is None or (sign == 1).all():
        return source
    return SignedImages(source, torch.from_numpy(sign.astype(np.float32)))
