import bz2
import gzip
import lzma
import warnings

import mrcfile
import numpy as np
import pytest
import torch

from cryorbit.data import Volume
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.mrc import map_shape, read_map, refuse_not_finite, write_map

CELL_DIGITS = 1e-6
"""Relative: a voxel size goes through a float32 cell length."""


def _map(n=6):
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n", [6, 7])
def test_a_map_comes_back(tmp_path, n):
    """Values bit for bit, voxel size, ORIGIN and NSTART; and other programs find the file valid."""
    volume = Volume(_map(n), 1.37, origin_A=(1.5, -2.0, 300.25), nstart=(-3, 4, 5))
    write_map(tmp_path / "a.mrc", volume)
    back = read_map(tmp_path / "a.mrc")
    assert torch.equal(back.values, volume.values)
    assert back.pixel_size_A == pytest.approx(1.37, rel=CELL_DIGITS)
    assert back.origin_A == volume.origin_A
    assert back.nstart == volume.nstart
    assert mrcfile.validate(tmp_path / "a.mrc")
    with mrcfile.open(tmp_path / "a.mrc") as other:
        assert other.is_volume()
        assert other.header.mz == n
        np.testing.assert_array_equal(other.data, volume.values.numpy())


@pytest.mark.parametrize("kind", ["i1", "i2", "f4", "u2", "f2"])
def test_every_mode_is_read(tmp_path, kind):
    """Modes 0 (signed), 1, 2, 6 and 12 as another program writes them."""
    values = np.arange(-32, 32).reshape(4, 4, 4)
    values = (values + 40000 if kind == "u2" else values).astype(kind)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(values)
        file.voxel_size = 2.0
    np.testing.assert_array_equal(read_map(tmp_path / "a.mrc").values.numpy(), values.astype(np.float32))


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
def test_compressed_maps_are_unpacked(tmp_path, suffix, pack):
    """By their first bytes, whatever the name; a cut stream is an error."""
    write_map(tmp_path / "a.mrc", Volume(_map(), 2.0))
    raw = pack((tmp_path / "a.mrc").read_bytes())
    path = tmp_path / f"b.mrc.{suffix}"
    path.write_bytes(raw)
    assert torch.equal(read_map(path).values, _map())
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BadFile):
        read_map(path)


def test_big_endian_is_read(tmp_path):
    write_map(tmp_path / "a.mrc", Volume(_map(), 2.0))
    raw = (tmp_path / "a.mrc").read_bytes()
    head = np.frombuffer(raw[:224], "<u4").astype(">u4").tobytes() + raw[224:1024]
    head = head[:208] + b"MAP \x11\x11\x00\x00" + head[216:]
    (tmp_path / "b.mrc").write_bytes(head + np.frombuffer(raw[1024:], "<f4").astype(">f4").tobytes())
    back = read_map(tmp_path / "b.mrc")
    assert torch.equal(back.values, _map())
    assert back.pixel_size_A == 2.0


def test_padding_keeps_the_middle_and_the_place(tmp_path):
    """Index N // 2 goes to index N // 2, and ORIGIN moves with what was added."""
    values = np.random.default_rng(0).standard_normal((4, 5, 8)).astype(np.float32)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(values)
        file.voxel_size = 2.0
        file.header.origin = (10.0, 20.0, 30.0)
    with pytest.raises(
        BadFile, match=r"8 x 5 x 4 voxels, but a cube.*map crop .*a\.mrc -o CUBE\.mrc --box 8"
    ):
        read_map(tmp_path / "a.mrc")
    padded = read_map(tmp_path / "a.mrc", to_cube="pad")
    assert padded.box == 8
    assert padded.values[4, 4, 4] == values[2, 2, 4]
    assert float(padded.values.sum()) == pytest.approx(float(values.sum()), abs=1e-4)
    assert padded.origin_A == (10.0, 20.0 - 2 * 2.0, 30.0 - 2 * 2.0)


@pytest.mark.parametrize(
    ("origin", "nstart"),
    [((0, 0, 0), (0, 0, 0)), ((10, -20, 30), (0, 0, 0)), ((0, 0, 0), (-3, 4, 5)), ((2, 4, 0), (7, 7, 7))],
)
def test_a_map_that_is_no_cube_stays_where_viewers_put_it(tmp_path, origin, nstart):
    """Padded and cut again it is the same file; in between, each voxel has the place it had."""
    values = np.random.default_rng(1).standard_normal((4, 7, 5)).astype(np.float32)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(values)
        file.voxel_size = 2.0
        file.header.origin = origin
        file.header.nxstart, file.header.nystart, file.header.nzstart = nstart

    def place_of(volume, index):  # as viewers do: ORIGIN unless zero, else NSTART
        start = volume.origin_A if any(volume.origin_A) else [2.0 * s for s in volume.nstart]
        return [s + 2.0 * i for s, i in zip(start, index, strict=True)]

    padded = read_map(tmp_path / "a.mrc", to_cube="pad")
    old = origin if any(origin) else [2.0 * s for s in nstart]
    z, y, x = (int(i[0]) for i in np.nonzero(padded.values.numpy() == values[1, 2, 3]))
    assert place_of(padded, (x, y, z)) == [o + 2.0 * i for o, i in zip(old, (3, 2, 1), strict=True)]
    write_map(tmp_path / "b.mrc", padded, shape=map_shape(tmp_path / "a.mrc"))
    with mrcfile.open(tmp_path / "b.mrc") as back:
        np.testing.assert_array_equal(back.data, values)
        assert back.header.origin.tolist() == tuple(origin)
        start = [int(back.header[k]) for k in ("nxstart", "nystart", "nzstart")]
        assert start == list(nstart)
    with pytest.raises(BadInput, match="Pad it first"):
        write_map(tmp_path / "c.mrc", padded, shape=(4, 8, 5))


def test_bad_headers_are_named(tmp_path):
    """Cut file, no header, no voxel size, a map that is not finite."""
    write_map(tmp_path / "a.mrc", Volume(_map(), 2.0))
    raw = (tmp_path / "a.mrc").read_bytes()
    (tmp_path / "cut.mrc").write_bytes(raw[:-10])
    with pytest.raises(BadFile, match=rf"truncated.*{len(raw)} bytes, the file has {len(raw) - 10}"):
        read_map(tmp_path / "cut.mrc")
    (tmp_path / "cut.mrc").write_bytes(raw[:100])
    with pytest.raises(BadFile, match=r"too short"):
        read_map(tmp_path / "cut.mrc")
    (tmp_path / "text.mrc").write_bytes(b"hello " * 500)
    with pytest.raises(BadFile, match=r"not an MRC file"):
        read_map(tmp_path / "text.mrc")
    (tmp_path / "size.mrc").write_bytes(raw[:40] + bytes(12) + raw[52:])
    with pytest.raises(BadFile, match=r"no voxel size.*--box 6 6 6 --header-pixel-size-A"):
        read_map(tmp_path / "size.mrc")
    assert read_map(tmp_path / "size.mrc", pixel_size_A=3.0).pixel_size_A == 3.0
    with pytest.raises(BadFile, match=r"cannot be read"):
        read_map(tmp_path / "none.mrc")
    with pytest.raises(BadInput, match=r"b\.mrc: the map has values that are not finite"):
        write_map(tmp_path / "b.mrc", Volume(_map() * torch.inf, 2.0))
    assert not (tmp_path / "b.mrc").exists()
    values = _map()
    values[0, 1, 2:4] = torch.nan
    with pytest.raises(BadFile, match=r"b\.mrc: 2 of 216 voxels are not finite"):
        refuse_not_finite(tmp_path / "b.mrc", Volume(values, 2.0))


@pytest.mark.data
@pytest.mark.parametrize("name", ["nstart_skwtrn.ccp4", "EMD-3001.map.bz2", "non_zero_origin_map.ccp4"])
def test_axes_in_any_order(data_dir, tmp_path, name):
    """Permuted axes come out as z, y, x: the same array that an independent reader makes."""
    path = data_dir / "maps" / name
    if path.suffix == ".bz2":
        path = tmp_path / "a.map"
        path.write_bytes(bz2.decompress((data_dir / "maps" / name).read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the awkward headers, which are the point
        other = mrcfile.open(path, permissive=True)
    axes = [int(other.header[k]) for k in ("mapc", "mapr", "maps")]
    assert axes != [1, 2, 3]
    column_row_section = np.array(other.data).transpose(2, 1, 0)
    xyz = column_row_section.transpose([axes.index(axis) for axis in (1, 2, 3)])
    ours = read_map(path, pixel_size_A=1.0, to_cube="pad")
    n = ours.box
    start = [n // 2 - m // 2 for m in reversed(xyz.shape)]
    inner = ours.values[tuple(slice(s, s + m) for s, m in zip(start, reversed(xyz.shape), strict=True))]
    np.testing.assert_array_equal(inner.numpy(), xyz.transpose(2, 1, 0))
    nstart = [int(other.header[k]) for k in ("nxstart", "nystart", "nzstart")]
    at_first = [nstart[axes.index(axis)] for axis in (1, 2, 3)]
    assert list(ours.nstart) == [s - before for s, before in zip(at_first, reversed(start), strict=True)]


@pytest.mark.data
def test_awkward_maps(data_dir):
    """Origins and starts are carried; crystals, oblong voxels and impossible axes are refused."""
    maps = data_dir / "maps"
    assert read_map(maps / "1ake_simulated.mrc").origin_A == (-64.0, -64.0, -64.0)
    assert read_map(maps / "EMD-5625.map").nstart == (-28, -28, -28)
    plain, packed = read_map(maps / "EMD-3197.map"), read_map(maps / "EMD-3197_emdb.map.gz")
    assert torch.equal(plain.values, packed.values)
    assert plain.nstart == (-2, 0, 0)
    assert plain.pixel_size_A == pytest.approx(11.4, rel=CELL_DIGITS)
    with pytest.raises(BadFile, match=r"axes MAPC, MAPR, MAPS are \(10, 11, 12\)"):
        read_map(maps / "invalid_axes.mrc")
    with pytest.raises(BadFile, match=r"crystal"):
        read_map(maps / "3pqr_xray.ccp4.gz")
    with pytest.raises(BadFile, match=r"not cubes"):
        read_map(maps / "non_zero_origin_map.ccp4")
    with pytest.raises(BadFile, match=r"State the pixel size"):
        read_map(maps / "ribosome70S_clean_65p.mrc")
    assert read_map(maps / "ribosome70S_clean_65p.mrc", pixel_size_A=5.0).box == 65
    crop = read_map(maps / "EMD-2566_crop_3J6B_chain9.mrc", to_cube="pad")
    assert crop.box == 52
    x, y, z = crop.origin_A
    assert (x, z) != (356.44, 159.46)
    assert y == pytest.approx(155.44, abs=1e-4)


@pytest.mark.data
def test_deriving_a_map_keeps_its_place(data_dir, tmp_path):
    """Read, write, read: ORIGIN, NSTART and voxel size as they were, so that overlays stay aligned."""
    for name in ("ubiquitin_4.5A_eman.mrc", "groel_gorgon.mrc.gz"):
        first = read_map(data_dir / "maps" / name)
        write_map(tmp_path / "a.mrc", first)
        second = read_map(tmp_path / "a.mrc")
        assert torch.equal(first.values, second.values)
        assert (first.origin_A, first.nstart) == (second.origin_A, second.nstart)
        assert first.pixel_size_A == pytest.approx(second.pixel_size_A, rel=CELL_DIGITS)
