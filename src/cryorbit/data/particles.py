"""`ParticleStack`: particle images and all that is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data.ctf import CTF
from cryorbit.data.pose import Pose
from cryorbit.errors import BadInput


@runtime_checkable
class ImageSource(Protocol):
    """Images that come when asked for, so that memory, disk and simulation look alike."""

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | Int[Tensor, "n"]) -> Float[Tensor, "n h w"]:
        """The chosen images as float32, in the order asked for."""
        ...


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """Images held in memory, shape (n, h, w)."""

    images: Float[Tensor, "n h w"]

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        return self.images.shape[-1]

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        return self.images[index].to(torch.float32)


@dataclass(frozen=True, eq=False)
class SelectedImages:
    """A choice of rows of another source, in the order of `rows`."""

    source: ImageSource
    rows: Int[Tensor, "n"]

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        return self.source.box

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        return self.source[self.rows[index]]


@dataclass(frozen=True, eq=False, kw_only=True)
class ParticleStack:
    """Particle images and all that is known of them; row i of every field is the same particle.

    Parameters
    ----------
    images
        Where the pixels come from; light protein on dark ice unless a reader says otherwise.
    pixel_size_A
        One pixel size for all images, angstrom.
    ids
        A stable name per particle, unique: `index@stack` for RELION (1-based, as written in the file), the `uid` for
        cryoSPARC. Tables are joined by it, never by position.
    ctf, pose
        None where the file has none.
    half_set
        1 or 2 per particle, or None.
    micrograph
        Name of the micrograph per particle, or None.
    optics_group
        Integer per particle, or None.
    tables
        The file's own tables by name, untouched, so that unknown columns survive a round trip. The key
        "particles" has one row per particle, in the order of `ids`.
    source
        Where this came from, for messages.
    """

    images: ImageSource
    pixel_size_A: float
    ids: np.ndarray
    ctf: CTF | None = None
    pose: Pose | None = None
    half_set: Int[Tensor, "n"] | None = None
    micrograph: np.ndarray | None = None
    optics_group: Int[Tensor, "n"] | None = None
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    source: str = "memory"

    def __post_init__(self) -> None:
        n = len(self.images)
        if not self.pixel_size_A > 0:
            raise BadInput(
                f"{self.source}: pixel size {self.pixel_size_A} A is not positive. State the pixel size."
            )
        for name in ("ids", "ctf", "pose", "half_set", "micrograph", "optics_group"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise BadInput(f"{self.source}: {n} images but {len(value)} rows of {name}.")
        table = self.tables.get("particles")
        if table is not None and len(table) != n:
            raise BadInput(f"{self.source}: {n} images but {len(table)} rows in the particles table.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        return self.images.box

    def select(self, rows: Int[Tensor, "m"]) -> ParticleStack:
        """The particles at `rows`, in that order; images stay where they are until asked for."""
        index = rows.cpu().numpy()
        tables = dict(self.tables)
        if "particles" in tables:
            tables["particles"] = tables["particles"].iloc[index].reset_index(drop=True)
        return replace(
            self,
            images=SelectedImages(self.images, rows),
            ids=self.ids[index],
            ctf=None if self.ctf is None else self.ctf[rows],
            pose=None if self.pose is None else self.pose[rows],
            half_set=None if self.half_set is None else self.half_set[rows],
            micrograph=None if self.micrograph is None else self.micrograph[index],
            optics_group=None if self.optics_group is None else self.optics_group[rows],
            tables=tables,
        )
