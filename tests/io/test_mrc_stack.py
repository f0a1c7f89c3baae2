import gzip
import os
import pickle

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.data import SelectedImages
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.mrc import MrcImages, StackWriter
from cryorbit.io.sources import SignedImages, on_disk

MEGABYTE = 1 << 20


def _write(path, images, **options):
    with StackWriter(path, box=images.shape[-1], pixel_size_A=2.0, **options) as stack:
        stack.append(images)
    return path


def _images(n, box=8, seed=0):
    return torch.randn(n, box, box, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def two_stacks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stacks")
    a, b = _images(5, seed=1), _images(7, seed=2)
    return [_write(folder / "a.mrcs", a), _write(folder / "b.mrcs", b)], torch.cat([a, b])


@given(rows=st.lists(st.integers(-12, 11), max_size=40))
def test_images_come_in_the_order_asked_for(two_stacks, rows):
    """Any rows of any stacks, repeated and counted from the end, as from an array."""
    paths, everything = two_stacks
    index = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(MrcImages(paths)[index], everything[index])


@pytest.mark.parametrize("index", [slice(None), slice(3, 9), slice(11, 2, -2), slice(20, 30)])
def test_slices(two_stacks, index):
    paths, everything = two_stacks
    rows = torch.arange(12).numpy()[index]
    assert torch.equal(MrcImages(paths)[index], everything[torch.from_numpy(rows.copy())])


def test_rows_that_are_not_there(two_stacks):
    with pytest.raises(BadInput, match=r"row 12 asked for"):
        MrcImages(two_stacks[0])[torch.tensor([12])]


@pytest.mark.parametrize("box", [7, 8])
@pytest.mark.parametrize(("dtype", "mode"), [("float32", 2), ("float16", 12)])
def test_written_stacks_are_valid(tmp_path, box, dtype, mode):
    """ISPG 0, MZ 1, the mode asked for, statistics, and pixels as rounded to the type."""
    images = _images(6, box)
    with StackWriter(tmp_path / "a.mrcs", box=box, pixel_size_A=1.5, dtype=dtype) as stack:
        stack.append(images[:4])
        stack.append(images[4:])
        stack.append(images[:0])
    with mrcfile.open(tmp_path / "a.mrcs") as other:
        assert other.is_image_stack()
        assert int(other.header.mode) == mode
        assert int(other.header.mz) == 1
        assert float(other.voxel_size.x) == pytest.approx(1.5)
        assert float(other.header.rms) == pytest.approx(float(images.std(correction=0)), rel=1e-3)
        np.testing.assert_array_equal(other.data, images.numpy().astype(other.data.dtype))
    if dtype == "float32":
        assert mrcfile.validate(tmp_path / "a.mrcs")
    stored = images.half().float() if dtype == "float16" else images
    assert torch.equal(MrcImages([tmp_path / "a.mrcs"])[:], stored)


@pytest.mark.parametrize("kind", ["i1", "i2", "u2", "f2"])
def test_every_mode_is_read(tmp_path, kind):
    """Mode 0 is signed; mode 6 is not."""
    values = np.arange(32).reshape(2, 4, 4) - (0 if kind == "u2" else 16)
    with mrcfile.new(tmp_path / "a.mrcs") as file:
        file.set_data(values.astype(kind))
        file.set_image_stack()
    images = MrcImages([tmp_path / "a.mrcs"])
    np.testing.assert_array_equal(images[torch.tensor([1, 0])].numpy(), values[[1, 0]].astype(np.float32))


def test_a_volume_header_still_holds_images(tmp_path):
    """MZ = NZ and ISPG 1 in stacks of other programs; an extended header; one image alone."""
    with mrcfile.new(tmp_path / "a.mrcs") as file:
        file.set_data(_images(3).numpy())
        file.set_extended_header(np.zeros(96, np.uint8).view("V96"))
    assert torch.equal(MrcImages([tmp_path / "a.mrcs"])[:], _images(3))
    with mrcfile.new(tmp_path / "b.mrcs") as file:
        file.set_data(_images(1)[0].numpy())
    assert torch.equal(MrcImages([tmp_path / "b.mrcs"])[:], _images(1))


def test_compressed_stacks(tmp_path):
    plain = _write(tmp_path / "a.mrcs", _images(4)).read_bytes()
    (tmp_path / "b.mrcs.gz").write_bytes(gzip.compress(plain))
    assert torch.equal(MrcImages([tmp_path / "b.mrcs.gz"])[torch.tensor([3, 0])], _images(4)[[3, 0]])
    (tmp_path / "c.mrcs.gz").write_bytes(gzip.compress(plain[:-100]))
    with pytest.raises(BadFile, match=r"truncated"):
        MrcImages([tmp_path / "c.mrcs.gz"])[:]


def test_more_stacks_than_maps_stay_open(tmp_path):
    """One stack per micrograph: 130 of them, visited twice in both directions."""
    everything = _images(130, 4)
    paths = [_write(tmp_path / f"{i}.mrcs", everything[i : i + 1]) for i in range(130)]
    images = MrcImages(paths)
    assert torch.equal(images[:], everything)
    assert torch.equal(images[torch.arange(129, -1, -1)], everything.flip(0))
    assert len(images._maps) == 100


def test_a_source_travels_to_another_process(two_stacks):
    """Pickled for a data loader's worker, it opens its own maps."""
    paths, everything = two_stacks
    images = MrcImages(paths)
    assert torch.equal(images[:], everything)
    again = pickle.loads(pickle.dumps(images))  # noqa: S301 (our own bytes)
    assert torch.equal(again[:], everything)


def test_truncated_stack_names_both_sizes(tmp_path):
    path = _write(tmp_path / "a.mrcs", _images(5))
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    expected = rf"a.mrcs: truncated.*{len(whole)} bytes, the file has {len(whole) - 300} \(3 whole sections\)"
    with pytest.raises(BadFile, match=expected):
        MrcImages([path])


def test_a_stack_cut_after_it_was_opened(tmp_path):
    """Between reading the header and the first image; a memory map beyond the end would kill the process."""
    path = _write(tmp_path / "a.mrcs", _images(5))
    images = MrcImages([path])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadFile, match=r"truncated"):
        images[:]


def test_missing_stack_and_missing_image(two_stacks, tmp_path):
    paths, _ = two_stacks
    with pytest.raises(BadFile, match=r"no such stack"):
        MrcImages([tmp_path / "none.mrcs"])
    index, section = np.array([0, 0, 1]), np.array([0, 5, 0])
    with pytest.raises(BadFile, match=r"a.mrcs: image 6 \(p.star, row 2\) does not exist: the stack has 5"):
        MrcImages(paths, file_index=index, section=section, table="p.star")


def test_boxes_that_differ(two_stacks, tmp_path):
    other = _write(tmp_path / "c.mrcs", _images(2, 6))
    with pytest.raises(BadFile, match=r"images of 6 pixels, but those of .* have 8"):
        MrcImages([*two_stacks[0], other])
    with mrcfile.new(tmp_path / "d.mrcs") as file:
        file.set_data(np.zeros((2, 4, 6), np.float32))
    with pytest.raises(BadFile, match=r"6 x 4 pixels are not square"):
        MrcImages([tmp_path / "d.mrcs"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite(tmp_path, bad):
    """Stack, image and row of the table; only when that image is asked for."""
    values = _images(6).numpy()
    values[4, 3, 3] = bad
    path = _write(tmp_path / "a.mrcs", _images(6))
    path.write_bytes(path.read_bytes()[:1024] + values.tobytes())
    images = MrcImages(
        [tmp_path / "a.mrcs"], file_index=np.zeros(2, int), section=np.array([0, 4]), table="p.star"
    )
    images[torch.tensor([0])]
    with pytest.raises(BadFile, match=r"a.mrcs: image 5 \(p.star, row 2\) has pixels that are not finite"):
        images[torch.tensor([0, 1])]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    """A wrong size, pixels that the type cannot hold, no images, an error of the caller's own."""
    for images, message in (
        (torch.zeros(1, 6, 6), r"images of \(6, 6\) in a stack of 8"),
        (torch.full((1, 8, 8), 1e6), "float16 cannot hold"),
        (torch.full((1, 8, 8), torch.nan), "float16 cannot hold"),
        (torch.zeros(0, 8, 8), "size"),
    ):
        with pytest.raises(BadInput, match=message):
            _write_into(tmp_path / "a.mrcs", images)
    with pytest.raises(RuntimeError), StackWriter(tmp_path / "a.mrcs", box=8, pixel_size_A=1.0):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def _write_into(path, images):
    with StackWriter(path, box=8, pixel_size_A=1.0, dtype="float16") as stack:
        stack.append(images)


def test_signs_and_selections_show_their_files(two_stacks):
    """A selection of signed images knows stack, section and sign of each."""
    paths, everything = two_stacks
    sign = torch.where(torch.arange(12) % 2 == 0, 1.0, -1.0)
    rows = torch.tensor([7, 2, 2, 5])
    source = SelectedImages(SignedImages(MrcImages(paths), sign), rows)
    assert torch.equal(source[:], everything[rows] * sign[rows][:, None, None])
    files = on_disk(source)
    assert files is not None
    assert files.stacks == tuple(str(p) for p in paths)
    assert files.file_index.tolist() == [1, 0, 0, 1]
    assert files.section.tolist() == [2, 2, 2, 0]
    assert files.sign.tolist() == [-1, 1, 1, -1]


def _anonymous_bytes():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_streaming_needs_no_memory_of_its_own(tmp_path):
    """64 MB of half-precision images pass by in batches; the process grows by less than 16 MB."""
    path = tmp_path / "a.mrcs"
    batch = _images(512, 64)
    with StackWriter(path, box=64, pixel_size_A=1.0, dtype="float16") as stack:
        for _ in range(16):
            stack.append(batch)
    images = MrcImages([path])
    images[0:512]
    before = _anonymous_bytes()
    for start in range(0, len(images), 512):
        images[start : start + 512]
    assert _anonymous_bytes() - before < 16 * MEGABYTE


@pytest.mark.data
def test_ten_real_stacks_cut_short(data_dir, tmp_path):
    """Whatever program wrote it and wherever it is cut, a short stack is refused."""
    stacks = sorted(p for p in (data_dir / "stacks").glob("*/*.mrc*") if p.stat().st_size < 5 * MEGABYTE)
    stacks = [p for p in stacks if p.suffix != ".gz"]
    assert len(stacks) >= 9
    for i, path in enumerate(stacks):
        whole = path.read_bytes()
        for keep in (len(whole) - 1, len(whole) // 2 + i, 1024, 1023, 0):
            (tmp_path / "cut.mrcs").write_bytes(whole[:keep])
            with pytest.raises(BadFile, match=r"truncated|too short"):
                MrcImages([tmp_path / "cut.mrcs"])
