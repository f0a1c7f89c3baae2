"""STAR files <-> tables. Nothing is interpreted here; what the labels mean stands in `relion`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import gemmi
import numpy as np
import pandas as pd

from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path
from cryorbit.io.compressed import compression, read_plain

SIMPLE = "simple"
"""`frame.attrs[SIMPLE]` is True for a block of label-value pairs, kept as a table of one row."""

_CHUNK_ROWS = 100_000
_NUMBER_STARTS = frozenset("0123456789+-.nNiI")
_TEXT_ENDINGS = ("Name", "File", "Label", "Type", "Metadata")
"""Labels that end so hold text even where every value looks like a number (micrograph "0003")."""


def read_star(path: str | os.PathLike[str]) -> dict[str, pd.DataFrame]:
    """Every block of a STAR file as a table, in the file's order; labels without the leading underscore.

    Columns of numbers become int64 or float64, all others stay text. A block of label-value pairs becomes
    one row with `attrs["simple"]` set.

    Raises
    ------
    BadFile
        If the file is missing, empty, or not STAR.
    """
    document = _parse(path)
    tables: dict[str, pd.DataFrame] = {}
    for block in document:
        name = block.name.strip()
        if name in tables:
            raise BadFile(f"{path}: two tables are called data_{name}. Rename or remove one.")
        frame = _block_to_frame(block)
        if frame is not None:
            tables[name] = frame
    if not tables:
        raise BadFile(f"{path}: the STAR file has no table. Give the file that lists the particles.")
    return tables


def write_star(
    path: str | os.PathLike[str], tables: dict[str, pd.DataFrame], *, version: int | None = 30001
) -> None:
    """Write tables as a STAR file, whole or not at all; numbers so that reading gives them back exactly.

    Parameters
    ----------
    path
        Where to.
    tables
        By block name; a table with `attrs["simple"]` is written as label-value pairs.
    version
        Goes above each table as `# version 30001`, RELION's sign of a 3.1 file. None: no such line.

    Raises
    ------
    BadFile
        If the disk refuses.
    BadInput
        If a text cannot be written in a STAR table (line ends, or both kinds of quotes).
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for name, frame in tables.items():
            head = "\n" if version is None else f"\n# version {version}\n\n"
            file.write(f"{head}data_{name}\n\n")
            if frame.attrs.get(SIMPLE):
                width = max((len(str(c)) for c in frame.columns), default=0) + 2
                for label in frame.columns:
                    value = _texts(frame[label].iloc[:1], label)[0]
                    file.write(f"_{label!s:<{width}} {value}\n")
                file.write("\n")
                continue
            file.write("loop_ \n")
            file.writelines(f"_{label} #{i} \n" for i, label in enumerate(frame.columns, 1))
            for start in range(0, len(frame), _CHUNK_ROWS):
                part = frame.iloc[start : start + _CHUNK_ROWS]
                columns = [_texts(part.iloc[:, i], label) for i, label in enumerate(frame.columns)]
                file.writelines(" ".join(row) + "\n" for row in zip(*columns, strict=True))
            file.write("\n")


def _parse(path: str | os.PathLike[str]) -> gemmi.cif.Document:
    kind = compression(path)
    if kind is None and os.path.getsize(path) == 0:
        raise BadFile(f"{path}: the file is empty. Write it again.")
    try:
        if kind is None and _plain_start(path):
            return gemmi.cif.read_file(os.fspath(path))
        text = read_plain(path).decode("utf-8-sig", errors="surrogateescape")
        return gemmi.cif.read_string(text)
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).replace(os.fspath(path), "").strip(" :\n")
        raise BadFile(
            f"{path}: not a readable STAR file (line {reason}). Mend that line or write the file again."
        ) from error


def _plain_start(path: str | os.PathLike[str]) -> bool:
    """False for a file that starts with a byte-order mark."""
    with open(path, "rb") as file:
        return file.read(3) != b"\xef\xbb\xbf"


def _block_to_frame(block: gemmi.cif.Block) -> pd.DataFrame | None:
    pairs: dict[str, str] = {}
    for item in block:
        loop = item.loop
        if loop is not None:
            return _loop_to_frame(block, loop)
        pair: Any = item.pair
        if pair is not None:
            pairs[pair[0].lstrip("_")] = pair[1]
    if not pairs:
        return None
    frame = pd.DataFrame({label: _column(label, [value]) for label, value in pairs.items()})
    frame.attrs[SIMPLE] = True
    return frame


def _loop_to_frame(block: gemmi.cif.Block, loop: gemmi.cif.Loop) -> pd.DataFrame:
    columns = {tag.lstrip("_"): _column(tag, list(block.find_loop(tag))) for tag in loop.tags}
    return pd.DataFrame(columns, copy=False)


def _column(label: str, values: list[str]) -> np.ndarray:
    """Numbers as int64 or float64 where every value is one; text as Python strings, equal ones shared."""
    if values and not label.endswith(_TEXT_ENDINGS) and values[0][:1] in _NUMBER_STARTS:
        numbers = _numbers(values)
        if numbers is not None:
            return numbers
    shared: dict[str, str] = {}
    texts = np.empty(len(values), dtype=object)
    texts[:] = [shared.setdefault(v, v) for v in map(_unquote, values)]
    return texts


def _numbers(values: list[str]) -> np.ndarray | None:
    """int64 where every value is an integer as a program would print it ("007" is a name), else float64,
    else None.
    """
    if "_" in "".join(values):  # Python takes 1_000 for a number
        return None
    try:
        whole = np.fromiter(map(int, values), np.int64, len(values))
    except OverflowError:
        return None  # more digits than a number holds: a uid
    except ValueError:
        pass
    else:
        return None if any(v[0] in "0+" and len(v) > 1 for v in values) else whole
    try:
        return np.fromiter(map(float, values), np.float64, len(values))
    except ValueError:
        return None


def _unquote(value: str) -> str:
    return gemmi.cif.as_string(value) if value[:1] in "'\";" else value


def _texts(column: pd.Series, label: object) -> list[str]:
    """The values as STAR tokens: the shortest digits that give a number back, quotes where needed."""
    values = column.to_numpy()
    if values.dtype.kind in "iu":
        return list(map(str, values.tolist()))
    if values.dtype.kind == "b":
        return ["1" if v else "0" for v in values]
    if values.dtype == np.float32:
        return list(map(str, values))  # the shortest digits of a float32, not of the float64 it becomes
    if values.dtype.kind == "f":
        return list(map(repr, values.tolist()))
    shared: dict[str, str] = {}
    out: list[str] = []
    for value in values.tolist():
        text = str(value)
        token = shared.get(text)
        if token is None:
            token = shared[text] = _token(text, label)
        out.append(token)
    return out


def _token(text: str, label: object) -> str:
    if not text:
        return '""'
    if "\n" in text or "\r" in text:
        raise BadInput(f"STAR column {label}: the text {text!r} has a line end. Remove it.")
    plain = not any(c in text for c in " \t") and text[0] not in "_#$'\";" and text.lower() != "loop_"
    if plain and not text.lower().startswith("data_"):
        return text
    if '"' not in text:
        return f'"{text}"'
    if "'" not in text:
        return f"'{text}'"
    raise BadInput(f"STAR column {label}: the text {text!r} has both kinds of quotes. Remove one.")


def find_table(tables: dict[str, pd.DataFrame], names: Iterable[str], label: str) -> str | None:
    """Name of the first table among `names`, else of the first one that has the column `label`."""
    for name in names:
        if name in tables:
            return name
    return next((name for name, frame in tables.items() if label in frame.columns), None)
