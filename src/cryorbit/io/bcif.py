"""BinaryCIF files -> the tables of a CIF file.

Sehnal et al. 2020, PLoS Comput. Biol. 16, e1008247; the specification is at github.com/molstar/BinaryCIF.
"""

from __future__ import annotations

import importlib
import itertools
import os
from typing import Any

import gemmi
import numpy as np

from cryorbit.errors import BadFile
from cryorbit.io.compressed import read_plain

_TYPES = {1: "<i1", 2: "<i2", 3: "<i4", 4: "<u1", 5: "<u2", 6: "<u4", 32: "<f4", 33: "<f8"}
_WANTED = (
    "_atom_site",
    "_cell",
    "_entity",
    "_entity_poly",
    "_entry",
    "_pdbx_struct_assembly",
    "_pdbx_struct_assembly_gen",
    "_pdbx_struct_oper_list",
    "_struct_asym",
    "_symmetry",
)
"""What a model of atoms needs; the rest of an entry is left alone."""


def read_bcif_block(path: str | os.PathLike[str]) -> gemmi.cif.Block:
    """The first data block of a BinaryCIF file, plain or compressed, with the tables that describe its atoms.

    Raises
    ------
    BadFile
        If the file is missing, or not BinaryCIF, or the msgpack library is not installed.
    """
    raw = read_plain(path)
    try:
        msgpack: Any = importlib.import_module("msgpack")
    except ImportError:
        raise BadFile(
            f"{path}: BinaryCIF is packed with msgpack, which this Python lacks. Run `pip install msgpack`, "
            "or give the entry as .cif."
        ) from None
    try:
        content = msgpack.unpackb(raw)
        first = content["dataBlocks"][0]
        block = gemmi.cif.Block(first["header"] or "model")
        for category in first["categories"]:
            if category["name"] in _WANTED:
                columns = {column["name"]: _column(column) for column in category["columns"]}
                block.set_mmcif_category(category["name"] + ".", columns)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadFile(f"{path}: not a readable BinaryCIF file ({error!r}). Download it again.") from error
    return block


def decode_bcif(data: Any, encodings: list[dict[str, Any]]) -> np.ndarray:
    """Undo the encodings of a column, the last one first.

    Raises
    ------
    ValueError
        If an encoding is not one of the specification.
    """
    for encoding in reversed(encodings):
        kind = encoding["kind"]
        if kind == "StringArray":
            data = _strings(data, encoding)
        elif kind == "ByteArray":
            data = np.frombuffer(data, _TYPES[encoding["type"]])
        elif kind == "FixedPoint":
            data = data.astype(_TYPES[encoding["srcType"]]) / encoding["factor"]
        elif kind == "IntervalQuantization":
            step = (encoding["max"] - encoding["min"]) / (encoding["numSteps"] - 1)
            data = (encoding["min"] + step * data.astype(np.float64)).astype(_TYPES[encoding["srcType"]])
        elif kind == "RunLength":
            data = np.repeat(data[::2], data[1::2]).astype(_TYPES[encoding["srcType"]])
        elif kind == "Delta":
            data = np.cumsum(data, dtype=_TYPES[encoding["srcType"]]) + encoding["origin"]
        elif kind == "IntegerPacking":
            data = _unpacked(data, signed=not encoding["isUnsigned"])
        else:
            raise ValueError(f"encoding {kind!r} is not known")
    return data


def _column(column: dict[str, Any]) -> list[str | bool | None]:
    """Values as text; False for "." and None for "?", as gemmi has them."""
    values: list[str | bool | None] = list(_decoded(column["data"]).astype(str).tolist())
    if column["mask"] is not None:
        mask = _decoded(column["mask"])
        for row in np.flatnonzero(mask).tolist():
            values[row] = False if mask[row] == 1 else None
    return values


def _decoded(field: dict[str, Any]) -> np.ndarray:
    return decode_bcif(field["data"], field["encoding"])


def _strings(data: bytes, encoding: dict[str, Any]) -> np.ndarray:
    """Texts cut from one long text at the offsets; index -1 is empty."""
    index = decode_bcif(data, encoding["dataEncoding"])
    offsets = decode_bcif(encoding["offsets"], encoding["offsetEncoding"]).tolist()
    text = encoding["stringData"]
    known = [text[a:b] for a, b in itertools.pairwise(offsets)]
    return np.array([*known, ""], dtype=object)[index]


def _unpacked(data: np.ndarray, *, signed: bool) -> np.ndarray:
    """Numbers too large for their type stand as its extreme, once or more, and a rest."""
    limits = np.iinfo(data.dtype)
    extreme = data == limits.max
    if signed:
        extreme |= data == limits.min
    ends = np.flatnonzero(~extreme)
    total = np.concatenate(([0], np.cumsum(data, dtype=np.int64)[ends]))
    return np.diff(total).astype(np.int32)
