"""What stands beside a prior's weights: its kind, the version of its layout, its sizes and units."""

from __future__ import annotations

from typing import Any

from cryorbit.errors import BadFile

VERSION = 1


def opened_card(card: dict[str, Any], kind: str) -> dict[str, Any]:
    """What a card says beside kind and version.

    Raises
    ------
    BadFile
        If it is of another kind of prior, or of another version.
    """
    given = dict(card)
    found, version = given.pop("kind", None), given.pop("version", None)
    if found != kind or version != VERSION:
        raise BadFile(
            f"A prior of kind {found!r}, version {version}, where one of {kind}, version {VERSION}, was wanted."
        )
    return given
