"""The files a run leaves, written and read again: maps, the FSC table, the particles with their poses."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cryorbit.errors import BadFile, BadInput

if TYPE_CHECKING:
    import pandas as pd

    from cryorbit.analysis.fsc import ShellCorrelation

MAP, HALF1, HALF2, FSC, PARTICLES, REPORT = (
    "map.mrc",
    "half1.mrc",
    "half2.mrc",
    "fsc.star",
    "particles.star",
    "report.html",
)

TRUTH_CURVE = "fsc_truth.star"
"""What `evaluate` leaves for the report."""

_RELION_NAMES = {
    "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "masked": "rlnFourierShellCorrelationMaskedMaps",
    "randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
    "corrected": "rlnFourierShellCorrelationCorrected",
}


@contextmanager
def making_folder(path: Path, names: Iterable[str]) -> Iterator[None]:
    """Make `path`; if what follows fails, remove the files `names` again, and the folder if it is empty.

    Raises
    ------
    BadFile
        If the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"{path}: cannot be made ({error.strerror}). Choose another folder with -o.") from error
    try:
        yield
    except BaseException:
        for name in names:
            (path / name).unlink(missing_ok=True)
        with suppress(OSError):
            path.rmdir()
        raise


def fsc_table(curves: dict[str, ShellCorrelation]) -> pd.DataFrame:
    """Curves as RELION's FSC table; keys are unmasked, masked, randomised, corrected."""
    import pandas as pd

    frequency = next(iter(curves.values())).frequency_per_A.tolist()
    return pd.DataFrame(
        {
            "rlnSpectralIndex": range(len(frequency)),
            "rlnResolution": frequency,
            "rlnAngstromResolution": [999.0 if f == 0 else 1.0 / f for f in frequency],
            **{_RELION_NAMES[key]: curve.correlation.tolist() for key, curve in curves.items()},
        }
    )


def refuse_existing(path: Path | None, *, overwrite: bool) -> None:
    """Raise before any work if the output is there and may not be replaced.

    Raises
    ------
    BadInput
        Naming it.
    """
    if path is not None and path.exists() and not overwrite:
        raise BadInput(f"{path}: is there already. Choose another name, or give --overwrite.")


def refuse_foreign(folder: Path, own: Callable[[str], bool], *, verb: str) -> None:
    """Raise before any work if a folder that is to be replaced holds what the command does not write.

    Parameters
    ----------
    own
        Whether a file of this name is the command's.

    Raises
    ------
    BadInput
        Naming the first other file.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file, wanted an output folder. Choose another name with -o.")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_file() or not own(path.name):
            raise BadInput(f"{path}: no {verb} wrote it. Choose another folder with -o, or move it.")


def refuse_no_folder(path: Path) -> None:
    """Raise before any work if a file cannot be written where it is to be.

    Raises
    ------
    BadInput
        If `path` is a folder, or its folder is missing or may not be written into.
    """
    if path.is_dir():
        raise BadInput(f"{path}: is a folder, wanted the name of a file. Name one with -o.")
    if not path.parent.is_dir():
        raise BadInput(f"{path}: there is no folder {path.parent}. Create it first, or correct -o.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f"{path}: you may not write into {path.parent}. Choose another place with -o.")


def write_fsc(path: Path, curves: dict[str, ShellCorrelation], *, name: str = "fsc") -> None:
    """Write curves as RELION's FSC table; keys are unmasked, masked, randomised, corrected."""
    from cryorbit.io.star import write_star

    write_star(path, {name: fsc_table(curves)})


def read_fsc(path: Path) -> dict[str, ShellCorrelation]:
    """The curves that `write_fsc` wrote.

    Raises
    ------
    BadFile
        If the file has no such table.
    """
    import torch

    from cryorbit.analysis.fsc import ShellCorrelation
    from cryorbit.io.star import read_star

    table = next((t for t in read_star(path).values() if "rlnResolution" in t), None)
    if table is None:
        raise BadFile(f"{path}: no FSC table (a column rlnResolution). Run the reconstruction again.")

    def column(name: str) -> torch.Tensor:
        return torch.tensor(table[name].to_numpy(float))

    found = {key: name for key, name in _RELION_NAMES.items() if name in table}
    return {key: ShellCorrelation(column("rlnResolution"), column(name)) for key, name in found.items()}


def resolution_or_none(curve: ShellCorrelation, threshold: float) -> float | None:
    """The resolution in angstrom, None where nothing is resolved (JSON has no infinity)."""
    value = curve.resolution_A(threshold)
    return value if math.isfinite(value) else None
