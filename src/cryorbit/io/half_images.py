"""Images in one file of half-precision numbers, each with a scale and an offset of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data.particles import ImageSource
from cryorbit.errors import BadFile
from cryorbit.io.mrc_stack import as_rows
from cryorbit.io.open_maps import OpenMaps, mapped

RELATIVE_ERROR = 2.0**-11
"""Half precision rounds a number by at most this part of it; see `to_half`."""
LARGEST = 65504.0
FAR_FROM_ZERO = 4.0
"""An image whose mean is more than so many of its deviations from zero is stored less its mean."""
_ALIGN = 64


@dataclass(frozen=True, eq=False)
class HalfPixels:
    """Images as float16: pixel = half * scale + offset."""

    half: Float[Tensor, "n h w"]
    scale: Float[Tensor, "n"]
    """Powers of two."""
    offset: Float[Tensor, "n"]

    def images(self) -> Float[Tensor, "n h w"]:
        """As float32."""
        out = self.half.float() * self.scale[:, None, None]
        return out.add_(self.offset[:, None, None]) if bool(self.offset.any()) else out


def to_half(images: Float[Tensor, "n h w"]) -> HalfPixels:
    """Images in half precision, without overflow and with errors bounded by

        |stored - x| <= 2^-11 |x - offset| + 2^-25 scale,   scale <= 2^-14 max |x - offset|,

    (beside the float32 rounding of the offset). The offset is 0 unless the mean is far from zero, and scales are powers of
    two: what was half precision before is kept exactly.

    >>> pixels = torch.tensor([[[3.0, 4.0e9], [-1.0e9, 0.5e9]]])
    >>> bool(to_half(pixels).half.isfinite().all()), round(float(to_half(pixels).images()[0, 1, 0]) / -1e9, 3)
    (True, 1.0)
    """
    deviation, mean = torch.std_mean(images.flatten(1), dim=1)
    offset = torch.where(mean.abs() > FAR_FROM_ZERO * deviation, mean, torch.zeros(()))
    moved = images - offset[:, None, None] if bool(offset.any()) else images
    largest = moved.flatten(1).abs().amax(1).clamp_min(2.0**-100)
    # The largest pixel goes to 2^15 .. 65504: as far from the smallest numbers of half precision as can be.
    scale = torch.exp2(torch.floor(torch.log2(largest)) - 15)
    scale = torch.where(largest / scale > LARGEST, 2 * scale, scale)
    return HalfPixels((moved / scale[:, None, None]).half(), scale, offset)


def file_bytes(n: int, box: int) -> int:
    """Length of a file of n images: the pixels, then a scale and an offset of each."""
    return scales_at(n, box) + 8 * n


def scales_at(n: int, box: int) -> int:
    """Where the scales begin."""
    return -(-n * box * box * 2 // _ALIGN) * _ALIGN


class HalfImages:
    """Images of a cache file: an `ImageSource` that stands for another one.

    Parameters
    ----------
    path
        File that `cryorbit.io.image_cache.build_cache` wrote.
    source
        What it is a copy of: where the images come from, for writing tables.

    Raises
    ------
    BadFile
        If the file has another length than these images need.
    """

    def __init__(self, path: str | os.PathLike[str], source: ImageSource) -> None:
        self.path, self.source = Path(path), source
        n, box = len(source), source.box
        found = self.path.stat().st_size if self.path.exists() else 0
        if found != file_bytes(n, box):
            raise BadFile(
                f"{path}: {found} bytes, but {n} images of {box} px need {file_bytes(n, box)}. Delete this cache."
            )
        with self.path.open("rb") as file:
            file.seek(scales_at(n, box))
            known = np.frombuffer(file.read(8 * n), "<f4").reshape(2, n).copy()
        self._scale, self._offset = torch.from_numpy(known)
        self._maps = OpenMaps(self._open)

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        return self.source.box

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Int[Tensor, " n"]) -> Float[Tensor, "n h w"]:
        rows = as_rows(index, len(self))
        order = np.argsort(rows, kind="stable")
        half = torch.from_numpy(self._maps.read(0, rows[order]))
        at = torch.from_numpy(rows[order])
        images = HalfPixels(half, self._scale[at], self._offset[at]).images()
        if (np.diff(order) == 1).all():
            return images
        out = torch.empty_like(images)
        out[torch.from_numpy(order)] = images
        return out

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "source": self.source}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # pyright: ignore[reportArgumentType]

    def _open(self, number: int) -> np.ndarray:
        with self.path.open("rb") as file:
            return mapped(file.fileno(), np.dtype("<f2"), offset=0, shape=(len(self), self.box, self.box))
