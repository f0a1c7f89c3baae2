import bz2

import numpy as np
import pandas as pd
import pytest

from cryorbit.errors import BadFile, BadInput
from cryorbit.io.star import SIMPLE, read_star, write_star


def _same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert list(a[name].columns) == list(b[name].columns)
        assert bool(a[name].attrs.get(SIMPLE)) == bool(b[name].attrs.get(SIMPLE))
        for column in a[name]:
            np.testing.assert_array_equal(a[name][column].to_numpy(), b[name][column].to_numpy(), strict=True)


def test_tables_come_back_exactly(tmp_path):
    """Numbers with all their digits, texts with blanks, quotes and numbers, empty ones, blocks of pairs."""
    rng = np.random.default_rng(0)
    loop = pd.DataFrame(
        {
            "rlnImageName": [f"{i:06d}@a b/s.mrcs" for i in range(1, 5)],
            "rlnMicrographName": ["0003", "12", "1e5", "-"],
            "anything": ["007", "8", "", "_x"],
            "quoted": ["it's", 'say "x"', "#1", "data_x"],
            "number": rng.standard_normal(4) * 10.0 ** rng.integers(-300, 300, 4),
            "whole": [1, -2, 2**62, 0],
            "big": ["18446744073709551615", "3", "4", "5"],
            "underscored": ["1_000", "2", "3", "4"],
            "mixed": ["1.5", "x", "2", "3"],
            "special": [np.inf, -np.inf, np.nan, 1.0],
        }
    ).astype({"rlnImageName": object, "rlnMicrographName": object, "anything": object, "quoted": object})
    loop = loop.astype({"big": object, "underscored": object, "mixed": object})
    simple = pd.DataFrame({"rlnA": [1], "rlnB": [2.5], "rlnCName": np.array(["two words"], dtype=object)})
    simple.attrs[SIMPLE] = True
    tables = {"general": simple, "": loop}
    write_star(tmp_path / "a.star", tables)
    back = read_star(tmp_path / "a.star")
    _same(back, tables)
    write_star(tmp_path / "b.star", back)
    assert (tmp_path / "b.star").read_text() == (tmp_path / "a.star").read_text()


def test_single_precision_is_printed_with_its_own_digits(tmp_path):
    """0.1 in float32 is written 0.1, not 0.10000000149."""
    write_star(tmp_path / "a.star", {"x": pd.DataFrame({"v": np.array([0.1, 12345.678], np.float32)})})
    assert "0.1\n12345.678\n" in (tmp_path / "a.star").read_text()


def test_relion_knows_the_version(tmp_path):
    """`# version 30001` precedes each table, and the file has Unix line ends."""
    write_star(
        tmp_path / "a.star", {"optics": pd.DataFrame({"a": [1]}), "particles": pd.DataFrame({"a": [1]})}
    )
    raw = (tmp_path / "a.star").read_bytes()
    assert raw.count(b"# version 30001\n\ndata_") == 2
    assert b"\r" not in raw


@pytest.mark.parametrize("change", [lambda t: t, lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t])
def test_line_ends_and_byte_order_marks(tmp_path, change):
    text = "data_a\n\nloop_\n_x #1\n_yName #2\n1 p\n2 q\n\n"
    (tmp_path / "a.star").write_bytes(change(text).encode())
    table = read_star(tmp_path / "a.star")["a"]
    assert table["x"].tolist() == [1, 2]
    assert table["yName"].tolist() == ["p", "q"]


def test_compressed(tmp_path):
    (tmp_path / "a.star.bz2").write_bytes(bz2.compress(b"data_a\nloop_\n_x\n1\n"))
    assert read_star(tmp_path / "a.star.bz2")["a"]["x"].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "no table"),
        ("data_a\n", "no table"),
        ("hello\n", "not a readable STAR file"),
        ("data_a\nloop_\n_x\n_y\n1 2\n3\n", "not a readable STAR file"),
        ("data_a\nloop_\n_x\n1\ndata_a\nloop_\n_x\n1\n", "not a readable STAR file|called data_a"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.star").write_text(text)
    with pytest.raises(BadFile, match=message) as error:
        read_star(tmp_path / "a.star")
    assert "\n" not in str(error.value)
    with pytest.raises(BadFile, match=r"cannot be read"):
        read_star(tmp_path / "none.star")


@pytest.mark.parametrize("text", ["a\nb", """it's "so\""""])
def test_texts_that_star_cannot_hold(tmp_path, text):
    with pytest.raises(BadInput):
        write_star(tmp_path / "a.star", {"a": pd.DataFrame({"x": [text + " "]})})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
def test_every_real_file_comes_back(data_dir, tmp_path):
    """Tables of RELION 3.0 to 5, Warp and M: read, write, read gives the same numbers and texts."""
    files = sorted((data_dir / "metadata").glob("*.star*")) + sorted((data_dir / "stacks").glob("*/*.star"))
    assert len(files) > 25
    for path in files:
        first = read_star(path)
        write_star(tmp_path / "a.star", first)
        _same(read_star(tmp_path / "a.star"), first)
