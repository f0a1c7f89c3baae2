"""Find the stacks that a particle file names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from cryorbit.errors import BadFile

Images = Literal["present", "absent", "if found"]
"""Whether the stacks must be there, are not looked for, or are opened if all of them are found."""


class MissingStack(BadFile):
    """A particle file names a stack that is nowhere to be found."""


class StackLocator:
    """Turn the stack names of a particle file into files.

    Tried in this order: an absolute name; relative to `data_dir`; to the file's folder; to each folder above
    it (one of them is the project's root); the base name inside `data_dir`.
    """

    def __init__(
        self, listed_in: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self.listed_in = Path(listed_in)
        self.data_dir = None if data_dir is None else Path(data_dir)
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise BadFile(f"{data_dir}: there is no such folder of stacks. Correct the data folder.")
        home = self.listed_in.absolute().parent
        self.folders = [home, *home.parents]

    def find(self, name: str) -> Path | None:
        """The file that `name` stands for, or None."""
        plain = Path(name)
        tries = [plain] if plain.is_absolute() else []
        if self.data_dir is not None:
            tries.append(self.data_dir / plain)
        if not plain.is_absolute():
            tries += [folder / plain for folder in self.folders]
        if self.data_dir is not None:
            tries.append(self.data_dir / plain.name)
        return next((path for path in tries if path.is_file()), None)

    def find_all(self, names: list[str], first_rows: np.ndarray) -> list[Path]:
        """The files of all `names`; `first_rows` are the rows (from 0) that name them first.

        Raises
        ------
        MissingStack
            If a stack is not found.
        BadFile
            If two names in different folders come to one file.
        """
        found = [self.find(name) for name in names]
        missing = [i for i, path in enumerate(found) if path is None]
        if missing:
            i = missing[0]
            more = f" (and {len(missing) - 1} more stacks)" if len(missing) > 1 else ""
            places = ", ".join(str(p) for p in [self.data_dir, *self.folders[:2]] if p is not None)
            raise MissingStack(
                f"{self.listed_in}: row {int(first_rows[i]) + 1} names the stack {names[i]}, which was not "
                f"found{more}; "
                f"looked in {places} and the folders above. Give the folder that holds it (--data-dir, in "
                "Python data_dir)."
            )
        paths = [path for path in found if path is not None]
        seen: dict[str, int] = {}
        for i, path in enumerate(paths):
            other = seen.setdefault(os.path.realpath(path), i)
            if other != i and Path(names[other]).name == Path(names[i]).name and names[other] != names[i]:
                raise BadFile(
                    f"{self.listed_in}: {names[other]} (row {int(first_rows[other]) + 1}) and {names[i]} "
                    f"(row {int(first_rows[i]) + 1}) both come to {path}. Give a data folder with the same "
                    "folders in it."
                )
        return paths
