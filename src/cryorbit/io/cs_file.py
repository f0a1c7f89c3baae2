"""cryoSPARC `.cs` files <-> tables: a NumPy structured array, one row per particle."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from cryorbit.errors import BadFile
from cryorbit.io.atomic import atomic_path
from cryorbit.io.compressed import read_plain

FIELDS = "fields"
"""Key of the table that remembers each field's type: columns name, type, width (0 for a plain number)."""


def read_cs(path: str | os.PathLike[str]) -> np.ndarray:
    """The structured array of a `.cs` file, plain or compressed from outside (.cs.gz).

    Raises
    ------
    BadFile
        If the file is missing or broken, empty, holds Python objects, or is one of cryoSPARC's compressed
        streams.
    """
    raw = read_plain(path)
    if raw.startswith(b"\x94CSDAT"):
        raise BadFile(
            f"{path}: written in cryoSPARC's compressed CSDAT format, which only cryosparc-tools reads. "
            "Convert it: "
            "pip install cryosparc-tools, then in Python: from cryosparc.dataset import Dataset; "
            "Dataset.load(FILE).save(NEW_FILE)."
        )
    if not raw.startswith(b"\x93NUMPY"):
        raise BadFile(f"{path}: not a .cs file (it begins with {raw[:6]!r}). Export the particles again.")
    try:
        array = np.load(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadFile(f"{path}: a broken .cs file ({error}). Export the particles again.") from error
    if array.dtype.names is None:
        raise BadFile(f"{path}: a plain array, no .cs table of named fields. Give a particles .cs file.")
    if array.ndim != 1 or len(array) == 0:
        raise BadFile(f"{path}: the .cs file lists no particles. Select or extract particles first.")
    return array


def write_cs(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write a structured array as a plain `.cs` file, whole or not at all.

    Raises
    ------
    BadFile
        If the disk refuses.
    """
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(buffer.getbuffer())


def join_on_uid(main: np.ndarray, others: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """`main` with the fields that only the passthrough files have, joined on `uid`, whatever the order of
    rows.

    Raises
    ------
    BadFile
        If a particle is missing from a passthrough file, or a `uid` stands there twice.
    """
    joined = main
    for name, other in others:
        new = [f for f in other.dtype.names or () if f not in (joined.dtype.names or ())]
        if not new:
            continue
        order = np.argsort(other["uid"], kind="stable")
        uids = other["uid"][order]
        if (uids[1:] == uids[:-1]).any():
            twice = uids[1:][uids[1:] == uids[:-1]][0]
            raise BadFile(f"{name}: uid {twice} stands there twice. Export the particles again.")
        place = np.minimum(np.searchsorted(uids, main["uid"]), len(uids) - 1)
        absent = uids[place] != main["uid"]
        if absent.any():
            row = int(np.flatnonzero(absent)[0])
            raise BadFile(
                f"{name}: {int(absent.sum())} particles are missing, the first being uid {main['uid'][row]} "
                f"(row {row + 1} of the main file). Give the passthrough file of the same job."
            )
        rows = order[place]
        wide = np.empty(len(joined), dtype=[*_described(joined), *_described(other, new)])
        for field in joined.dtype.names or ():
            wide[field] = joined[field]
        for field in new:
            wide[field] = other[field][rows]
        joined = wide
    return joined


def passthrough_files(path: str | os.PathLike[str], main: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The passthrough files beside `path` that know every one of its particles."""
    found = []
    for candidate in sorted(Path(path).parent.glob("*passthrough_particles*.cs")):
        if candidate == Path(path):
            continue
        array = read_cs(candidate)
        if "uid" in (array.dtype.names or ()) and np.isin(main["uid"], array["uid"]).all():
            found.append((str(candidate), array))
    return found


def to_tables(array: np.ndarray) -> dict[str, pd.DataFrame]:
    """One column per number: field `ctf/tilt_A` of two numbers becomes `ctf/tilt_A[0]` and
    `ctf/tilt_A[1]`.
    """
    columns: dict[str, np.ndarray] = {}
    rows = []
    for field in array.dtype.names or ():
        values = array[field]
        width = 0 if values.ndim == 1 else int(np.prod(values.shape[1:]))
        rows.append((field, values.dtype.str, width))
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "surrogateescape")
        if values.dtype.kind == "U":
            values = _shared_texts(values)
        if width == 0:
            columns[field] = np.ascontiguousarray(values)
            continue
        flat = values.reshape(len(array), width)
        columns.update({f"{field}[{i}]": np.ascontiguousarray(flat[:, i]) for i in range(width)})
    fields = pd.DataFrame(rows, columns=["name", "type", "width"])
    return {"particles": pd.DataFrame(columns, copy=False), FIELDS: fields}


def from_tables(tables: dict[str, pd.DataFrame]) -> np.ndarray:
    """The structured array of `to_tables`; columns that it does not know become fields of their own type."""
    frame = tables["particles"]
    described: list[tuple] = []
    sources: list[tuple[str, list[str]]] = []
    known: set[str] = set()
    for name, kind, width in tables[FIELDS].itertuples(index=False):
        columns = [f"{name}[{i}]" for i in range(width)] if width else [name]
        if not all(c in frame.columns for c in columns):
            continue
        known.update(columns)
        if np.dtype(kind).kind in "SU":
            needed = np.dtype(_text_type(frame[columns[0]], np.dtype(kind).kind))
            kind = max(needed, np.dtype(kind), key=lambda t: t.itemsize).str
        described.append((name, kind, (width,)) if width else (name, kind))
        sources.append((name, columns))
    for column in frame.columns:
        if column not in known:
            values = frame[column].to_numpy()
            kind = _text_type(frame[column], "S") if values.dtype.kind in "OUT" else values.dtype.str
            described.append((column, kind))
            sources.append((column, [column]))
    array = cast(Any, np.zeros(len(frame), dtype=described))
    for name, columns in sources:
        field = array[name]  # a view into the rows
        values = [_encoded(frame[c], field.dtype) for c in columns]
        field[...] = values[0] if field.ndim == 1 else np.stack(values, 1)
    return array


def _described(array: np.ndarray, names: Iterable[str] | None = None) -> list[tuple]:
    return [(n, array.dtype[n]) for n in (names if names is not None else array.dtype.names or ())]


def _shared_texts(values: np.ndarray) -> np.ndarray:
    shared: dict[str, str] = {}
    out = np.empty(values.shape, dtype=object)
    out.reshape(-1)[:] = [shared.setdefault(v, v) for v in values.reshape(-1).tolist()]
    return out


def _text_type(column: Any, kind: str) -> str:
    texts = set(column.astype(str))
    size = max((len(t.encode("utf-8", "surrogateescape") if kind == "S" else t) for t in texts), default=1)
    return f"{kind}{max(size, 1)}"


def _encoded(column: Any, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "S":
        return np.array([str(t).encode("utf-8", "surrogateescape") for t in column], dtype=dtype)
    if dtype.kind == "U":
        return np.array([str(t) for t in column], dtype=dtype)
    return column.to_numpy().astype(dtype)
