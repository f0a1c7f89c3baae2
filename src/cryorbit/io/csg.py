"""cryoSPARC group files (`.csg`): YAML that says which `.cs` file holds which slot of a group of particles.

Import of results in cryoSPARC takes the group file, not the table. Layout as its exports have it: `created`, `group`
(name, title, description, type), `results` (slot -> metafile, num_items, type), `version`; a leading `>` on a
metafile means the group file's own folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from cryorbit.errors import BadFile
from cryorbit.io.atomic import atomic_path

_VERSION = "v4.4.1"
"""The cryoSPARC release whose layout this is."""

_NOT_SLOTS = ("uid",)


def write_csg(path: str | os.PathLike[str], table: str, fields: Sequence[str], *, particles: int) -> None:
    """Write a group file for one particle table beside it.

    Parameters
    ----------
    path
        Where to.
    table
        Name of the `.cs` file in the same folder.
    fields
        Its fields, `slot/name` each; every slot becomes a result.
    particles
        Number of rows.

    Raises
    ------
    BadFile
        If the disk refuses.
    """
    slots = sorted({f.partition("/")[0] for f in fields} - set(_NOT_SLOTS))
    group = {
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "group": {
            "description": "Particles written by Cryorbit",
            "name": "particles",
            "title": "Particles",
            "type": "particle",
        },
        "results": {
            slot: {"metafile": f">{table}", "num_items": particles, "type": f"particle.{slot}"}
            for slot in slots
        },
        "version": _VERSION,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(group, sort_keys=True, allow_unicode=True), encoding="utf-8")


def tables_of_csg(path: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """The `.cs` file with the images of a group, and the others that hold more slots of it.

    Raises
    ------
    BadFile
        If it is no group of particles, or names a file that is not there.
    """
    try:
        group = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        results = {slot: str(entry["metafile"]) for slot, entry in group["results"].items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise BadFile(
            f"{path}: not a readable cryoSPARC group file ({reason}). Export the particles again."
        ) from error
    if "blob" not in results:
        raise BadFile(
            f"{path}: the group has no images (no result named blob, but {', '.join(results) or 'nothing'}). "
            "Give the group file of particles."
        )
    folder = Path(path).parent
    places = {slot: folder / name.lstrip(">") for slot, name in results.items()}
    for slot, place in places.items():
        if not place.exists():
            raise BadFile(
                f"{path}: the file of its slot {slot}, {place}, is not there. Put them into one folder."
            )
    main = places["blob"]
    return main, sorted({place for place in places.values() if place != main})
