"""Laws of BinaryCIF: every encoding undone, whole files read, broken ones refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryorbit.errors import BadFile
from cryorbit.io.atoms import read_atoms
from cryorbit.io.bcif import decode_bcif

msgpack = pytest.importorskip("msgpack")

CODE = {"i1": 1, "i2": 2, "i4": 3, "u1": 4, "u2": 5, "u4": 6, "f4": 32, "f8": 33}


def packed(values: Any, kind: str) -> tuple[bytes, dict[str, Any]]:
    return np.asarray(values, "<" + kind).tobytes(), {"kind": "ByteArray", "type": CODE[kind]}


@pytest.mark.parametrize("kind", list(CODE))
def test_numbers_of_each_type(kind: str):
    """Bytes of each type come back as the numbers they were, least byte first."""
    data, how = packed([1, 100, 0, 7], kind)
    assert decode_bcif(data, [how]).tolist() == [1, 100, 0, 7]


def test_fixed_point_and_intervals():
    """27.34 stored as 27340 / 1000; the ends and the middle of an interval of 5 steps."""
    data, how = packed([27340, -5], "i4")
    fixed = {"kind": "FixedPoint", "factor": 1000, "srcType": 33}
    assert decode_bcif(data, [fixed, how]).tolist() == [27.34, -0.005]
    data, how = packed([0, 2, 4], "u1")
    steps = {"kind": "IntervalQuantization", "min": -1.0, "max": 1.0, "numSteps": 5, "srcType": 33}
    assert decode_bcif(data, [steps, how]).tolist() == [-1.0, 0.0, 1.0]


def test_runs_and_differences():
    """Runs of equal numbers; differences from an origin; one after the other as files have them."""
    data, how = packed([1, 4, 3, 1], "i4")
    run = {"kind": "RunLength", "srcType": 3, "srcSize": 5}
    assert decode_bcif(data, [run, how]).tolist() == [1, 1, 1, 1, 3]
    delta = {"kind": "Delta", "origin": 10, "srcType": 3}
    assert decode_bcif(data, [delta, run, how]).tolist() == [11, 12, 13, 14, 17]


@pytest.mark.parametrize(("signed", "kind"), [(True, "i1"), (False, "u1"), (True, "i2"), (False, "u2")])
def test_numbers_beyond_their_type(signed: bool, kind: str):
    """A number is the sum of extremes and a rest, the extreme itself an extreme and 0."""
    limits = np.iinfo("<" + kind)
    wanted = [3, limits.max, 2 * limits.max + 5, 0]
    rows = [3, limits.max, 0, limits.max, limits.max, 5, 0]
    if signed:
        wanted += [limits.min - 2, limits.min]
        rows += [limits.min, -2, limits.min, 0]
    data, how = packed(rows, kind)
    packing = {"kind": "IntegerPacking", "byteCount": 1, "isUnsigned": not signed, "srcSize": len(wanted)}
    assert decode_bcif(data, [packing, how]).tolist() == wanted


def strings(values: list[str]) -> dict[str, Any]:
    known = sorted(set(values))
    offsets, offset_how = packed(np.cumsum([0, *map(len, known)]), "i4")
    index, index_how = packed([known.index(v) for v in values], "i4")
    encoding = {
        "kind": "StringArray",
        "dataEncoding": [index_how],
        "stringData": "".join(known),
        "offsets": offsets,
        "offsetEncoding": [offset_how],
    }
    return {"data": index, "encoding": [encoding]}


def numbers(values: list[float], kind: str = "f8") -> dict[str, Any]:
    data, how = packed(values, kind)
    return {"data": data, "encoding": [how]}


def written(path: Path) -> Path:
    """Two atoms of a made-up entry; the second has an alternative, the first none."""
    columns: dict[str, dict[str, Any]] = {
        "group_PDB": strings(["ATOM", "ATOM"]),
        "id": numbers([1, 2], "i4"),
        "type_symbol": strings(["N", "C"]),
        "label_atom_id": strings(["N", "CA"]),
        "label_alt_id": strings(["", "A"]),
        "label_comp_id": strings(["ALA", "ALA"]),
        "label_asym_id": strings(["A", "A"]),
        "label_entity_id": strings(["1", "1"]),
        "label_seq_id": numbers([1, 1], "i4"),
        "Cartn_x": numbers([27.34, -1.5]),
        "Cartn_y": numbers([0.0, 2.25]),
        "Cartn_z": numbers([1.0, 3.0], "f4"),
        "occupancy": numbers([1.0, 0.6]),
        "B_iso_or_equiv": numbers([20.5, 21.0]),
        "auth_seq_id": numbers([7, 7], "i4"),
        "auth_asym_id": strings(["B", "B"]),
        "pdbx_PDB_model_num": numbers([1, 1], "i4"),
    }
    table = [{"name": name, "data": data, "mask": None} for name, data in columns.items()]
    table[4]["mask"] = numbers([1, 0], "u1")
    category = {"name": "_atom_site", "rowCount": 2, "columns": table}
    block = {"header": "MADE", "categories": [category, {"name": "_other", "rowCount": 0, "columns": []}]}
    path.write_bytes(
        gzip.compress(msgpack.packb({"version": "0.3.0", "encoder": "t", "dataBlocks": [block]}))
    )
    return path


def test_a_whole_file(tmp_path: Path):
    """Positions, elements and labels of a compressed file, the author's chain and number."""
    atoms = read_atoms(written(tmp_path / "made.bcif.gz"))
    assert atoms.atomic_number.tolist() == [7, 6]
    np.testing.assert_allclose(atoms.position_A, [[27.34, 0, 1], [-1.5, 2.25, 3]], rtol=1e-6)
    np.testing.assert_allclose(atoms.occupancy, [1, 0.6], rtol=1e-6)
    assert atoms.chain is not None
    assert atoms.residue_number is not None
    assert atoms.chain.tolist() == ["B", "B"]
    assert atoms.residue_number.tolist() == [7, 7]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", msgpack.packb({"dataBlocks": []}), msgpack.packb({"dataBlocks": [{"header": "A"}]})],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "bad.bcif").write_bytes(content)
    with pytest.raises(BadFile, match=r"bad.bcif: not a readable BinaryCIF file"):
        read_atoms(tmp_path / "bad.bcif")


def test_unknown_encodings_are_refused():
    with pytest.raises(ValueError, match=r"'Magic' is not known"):
        decode_bcif(b"", [{"kind": "Magic"}])
