"""The tables of a RELION particle file, and how a value is looked up in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cryorbit.errors import BadFile
from cryorbit.io.star import find_table

_PARTICLE_BLOCKS = ("particles", "images")
_SAME_PIXEL = 1e-4
"""Relative difference below which two pixel sizes are one: STAR files print six decimals."""


@dataclass(frozen=True, eq=False)
class RelionTables:
    """Particles and optics, with the row of the optics table that belongs to each particle.

    `optics` is None in files of RELION 3.0 and before, where everything stands in the particle table.
    """

    path: str
    particles: pd.DataFrame
    optics: pd.DataFrame | None
    optics_row: np.ndarray | None
    others: dict[str, pd.DataFrame]

    @classmethod
    def split(cls, tables: dict[str, pd.DataFrame], path: str) -> RelionTables:
        """Sort the blocks of a STAR file.

        Raises
        ------
        BadFile
            If there is no particle table, it is empty, or an optics group is undefined.
        """
        name = find_table(
            {k: v for k, v in tables.items() if k != "optics"}, _PARTICLE_BLOCKS, "rlnImageName"
        )
        if name is None:
            raise BadFile(
                f"{path}: no table of particles (found: {', '.join('data_' + k for k in tables)}). "
                "Give the STAR file that lists the extracted particles."
            )
        particles = tables[name]
        if len(particles) == 0:
            raise BadFile(f"{path}: the particles table has no rows. Select or extract particles first.")
        optics = tables.get("optics")
        others = {k: v for k, v in tables.items() if k not in (name, "optics")}
        row = None if optics is None else _join_optics(particles, optics, path)
        return cls(path, particles, optics, row, others)

    def __len__(self) -> int:
        return len(self.particles)

    def where(self, label: str) -> str | None:
        """Which table says `label`: "particles", which wins, "optics", or None."""
        if label in self.particles.columns:
            return "particles"
        if self.optics is not None and label in self.optics.columns:
            return "optics"
        return None

    def values(self, label: str) -> np.ndarray | None:
        """One value per particle, from the particle table, else through the optics table, else None."""
        place = self.where(label)
        if place == "particles":
            return self.particles[label].to_numpy()
        if place == "optics" and self.optics is not None and self.optics_row is not None:
            return self.optics[label].to_numpy()[self.optics_row]
        return None

    def numbers(self, label: str, default: float | None = None) -> np.ndarray:
        """`values` as float64.

        Raises
        ------
        BadFile
            If a value is no finite number, or the label is missing and there is no default.
        """
        values = self.values(label)
        if values is None:
            if default is None:
                raise BadFile(
                    f"{self.path}: the particles table has no {label}. Write the file again with it."
                )
            return np.full(len(self), default)
        numbers = np.asarray(pd.to_numeric(pd.Series(values), errors="coerce"), np.float64)
        bad = ~np.isfinite(numbers)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise BadFile(
                f"{self.path}: row {row + 1}: {label} is {str(values[row])!r}, a finite number is wanted. "
                "Correct or remove that row."
            )
        return numbers

    def one_value(self, numbers: np.ndarray, what: str, unit: str) -> float:
        """The value that all particles share.

        Raises
        ------
        BadFile
            If they differ, naming two optics groups or rows and their values.
        """
        first = float(numbers[0])
        differs = np.abs(numbers - first) > _SAME_PIXEL * abs(first)
        if not differs.any():
            return first
        row = int(np.flatnonzero(differs)[0])
        names = [self._group_name(0), self._group_name(row)]
        if names[0] == names[1]:
            names = ["row 1", f"row {row + 1}"]
        raise BadFile(
            f"{self.path}: {names[0]} has {what} {first:g}{unit} but {names[1]} has "
            f"{float(numbers[row]):g}{unit}. "
            "Bring all particles to one size (relion_image_handler --rescale_angpix and --new_box), or "
            "select one."
        )

    def _group_name(self, row: int) -> str:
        if self.optics is None or self.optics_row is None:
            return f"row {row + 1}"
        entry = self.optics.iloc[int(self.optics_row[row])]
        name = entry.get("rlnOpticsGroupName")
        number = entry.get("rlnOpticsGroup", 1)
        return f"optics group {number}" + (f" ({name})" if name is not None else "")


def _join_optics(particles: pd.DataFrame, optics: pd.DataFrame, path: str) -> np.ndarray:
    """Row of the optics table per particle, joined by group number."""
    if len(optics) == 0:
        raise BadFile(f"{path}: the optics table has no rows. Write the file again with its optics groups.")
    if "rlnOpticsGroup" not in optics.columns:
        if len(optics) == 1:
            return np.zeros(len(particles), np.int64)
        raise BadFile(f"{path}: the optics table has no rlnOpticsGroup. Number its groups.")
    groups = pd.Index(optics["rlnOpticsGroup"])
    if groups.has_duplicates:
        twice = groups[groups.duplicated()][0]
        raise BadFile(f"{path}: optics group {twice} is defined twice. Keep one of the two.")
    if "rlnOpticsGroup" not in particles.columns:
        if len(optics) == 1:
            return np.zeros(len(particles), np.int64)
        raise BadFile(
            f"{path}: {len(optics)} optics groups, but the particles table has no rlnOpticsGroup. Add that "
            "column."
        )
    row = np.asarray(groups.get_indexer(pd.Index(particles["rlnOpticsGroup"])), np.int64)
    if (row < 0).any():
        bad = int(np.flatnonzero(row < 0)[0])
        raise BadFile(
            f"{path}: row {bad + 1} belongs to optics group {particles['rlnOpticsGroup'].iloc[bad]}, which "
            "the optics "
            "table does not define. Add the group, or correct the row."
        )
    return row
