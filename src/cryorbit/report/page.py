"""The parts of a page, before they are HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A figure with its title and caption."""

    title: str
    caption: str
    addresses: tuple[str, ...] = ()
    views: tuple[tuple[str, str], ...] = ()
    tag: str = ""
    tag_kind: str = ""
    plot: bool = True
    """Whether it is a graph, which needs no more than half a page, and not a picture."""


@dataclass(frozen=True)
class Row:
    """Figures side by side; `columns` is the page's class for how many."""

    figures: tuple[Picture, ...]
    columns: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with figures and perhaps a table."""

    key: str
    title: str
    lead: str = ""
    rows: tuple[Row, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    table_head: tuple[str, ...] = ()


def text_of(value: object) -> str:
    """A value as a reader wants it: short numbers, words for yes and no, lists with commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ("∞" if value > 0 else str(value))
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10000 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {text_of(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text_of(v) for v in value)
    return str(value)
