"""Find the particle file of a RELION or cryoSPARC job folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cryorbit.errors import BadFile

_FINAL_STARS = ("run_data.star", "particles.star", "shiny.star", "particles_ctf_refine.star")
_ITERATION_STAR = re.compile(r"run(?:_ct\d+)?_it(\d+)_data\.star")
_CS_NUMBER = re.compile(r"_(\d{3,})_")
_LOOKED_FOR = (*_FINAL_STARS, "run_itNNN_data.star", "*particles*.cs")


def particle_file(folder: str | os.PathLike[str]) -> Path:
    """The newest particle file in a job's folder.

    RELION: run_data.star, particles.star, shiny.star or particles_ctf_refine.star; else the
    run_itNNN_data.star of the highest iteration. cryoSPARC: the *particles*.cs of the highest iteration, all
    classes together before single ones; passthrough files are joined to it later.

    Raises
    ------
    BadFile
        If there is none, or only files of several single classes; it lists what was looked for.
    """
    home = Path(folder)
    finals = [home / name for name in _FINAL_STARS if (home / name).is_file()]
    if finals:
        return max(finals, key=lambda p: (p.name == "run_data.star", p.stat().st_mtime))
    steps = [
        (int(m.group(1)), p) for p in home.glob("run*_data.star") if (m := _ITERATION_STAR.fullmatch(p.name))
    ]
    if steps:
        return max(steps, key=lambda s: (s[0], s[1].stat().st_mtime))[1]
    tables = [
        p for p in home.glob("*particles*.cs") if "passthrough" not in p.name and "excluded" not in p.name
    ]
    whole = [p for p in tables if "class_" not in p.name or "all_classes" in p.name]
    if whole:
        return max(whole, key=lambda p: (_cs_iteration(p), p.stat().st_mtime))
    if tables:
        newest = max(map(_cs_iteration, tables))
        last = sorted(p.name for p in tables if _cs_iteration(p) == newest)
        if len(last) == 1:
            return home / last[0]
        raise BadFile(f"{home}: one particle file per class ({', '.join(last)}). Give one of them by name.")
    raise BadFile(
        f"{home}: no particle file in this folder (looked for {', '.join(_LOOKED_FOR)}). "
        "Give the folder of a RELION or cryoSPARC job that makes particles, or the file itself."
    )


def _cs_iteration(path: Path) -> int:
    numbers = _CS_NUMBER.findall(path.name)
    return int(numbers[-1]) if numbers else -1
