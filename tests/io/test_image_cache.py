"""The cache of images: what is read from it, when it is used, and what is left when it fails."""

from __future__ import annotations

import gzip
import json
import os
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.data.particles import MemoryImages, SelectedImages
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.half_images import FAR_FROM_ZERO, RELATIVE_ERROR, to_half
from cryorbit.io.image_cache import ImageCache
from cryorbit.io.mrc import MrcImages, StackWriter
from cryorbit.io.sources import SignedImages, on_disk

OF_FLOAT32 = 2.0**-22
"""Rounding of pixels that were moved by their mean, and of the mean itself, in float32."""


def images(n: int, box: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, box, box, generator=torch.Generator().manual_seed(seed))


def stack(path, pixels, dtype="float32"):
    with StackWriter(path, box=pixels.shape[-1], pixel_size_A=2.0, dtype=dtype) as out:
        out.append(pixels)
    return path


@pytest.fixture(params=[7, 8])
def shuffled(request, tmp_path) -> SignedImages:
    """Images of two stacks in no order, one listed twice, every third with the other sign."""
    box = request.param
    paths = [stack(tmp_path / f"{i}.mrcs", images(5, box, seed=i)) for i in (0, 1)]
    rows = torch.tensor([7, 0, 9, 3, 3, 8, 1])
    sign = torch.ones(len(rows))
    sign[::3] = -1
    return SignedImages(SelectedImages(MrcImages(paths), rows), sign)


@given(
    exponent=st.integers(-60, 60),
    mean=st.sampled_from([0.0, 1.0, -30.0, 5e3]),
    spike=st.sampled_from([1.0, 1e4]),
)
def test_half_precision_keeps_its_bound_at_any_scale(exponent, mean, spike):
    """The bound that `to_half` states, for images of any contrast, mean and outliers."""
    x = images(3, 8)
    x[:, 2, 3] *= spike
    x = (x + mean) * 2.0**exponent
    kept = to_half(x)
    moved = (x - kept.offset[:, None, None]).abs()
    bound = RELATIVE_ERROR * moved + 2.0**-25 * kept.scale[:, None, None]
    bound = bound + OF_FLOAT32 * (kept.offset.abs()[:, None, None] + moved)
    assert bool(((kept.images() - x).abs() <= bound).all())
    assert bool((kept.scale <= 2.0**-14 * moved.flatten(1).amax(1)).all())


def test_the_largest_numbers_do_not_overflow():
    for largest in (65504.0, 65519.0, 65520.0, 65535.9, 65536.0, 3e38):
        x = images(1, 8)
        x[0, 0, 0] = largest
        assert bool(torch.isfinite(to_half(x).images()).all())


def test_what_was_half_precision_is_kept_to_the_bit():
    """Scales are powers of two, and no mean is taken off such images."""
    x = (images(20, 8) * torch.logspace(-3, 4, 20)[:, None, None]).half().float()
    assert float((x.flatten(1).mean(1).abs() / x.flatten(1).std(1)).max()) < FAR_FROM_ZERO
    assert torch.equal(to_half(x).images(), x)


def test_blank_images_stay_blank():
    for value in (0.0, 3.5, -1e30):
        assert torch.equal(to_half(torch.full((1, 4, 4), value)).images(), torch.full((1, 4, 4), value))


def test_the_cache_gives_the_images_in_their_order(shuffled, tmp_path):
    cache = ImageCache(tmp_path / "cache", shuffled)
    assert cache.why_not() == "there is none yet"
    cache.build()
    assert cache.why_not() is None
    held, wanted = cache.open(), shuffled[slice(None)]
    assert torch.equal(held[slice(None)], to_half(wanted).images())
    index = torch.tensor([5, 0, -1, 0, 3])
    assert torch.equal(held[index], held[slice(None)][index])
    assert held[slice(2, 2)].shape == (0, held.box, held.box)
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".f16", ".json"]


def test_tables_still_name_the_stacks(shuffled, tmp_path):
    cache = ImageCache(tmp_path / "cache", shuffled)
    cache.build()
    ours, theirs = on_disk(cache.open()), on_disk(shuffled)
    assert ours is not None
    assert theirs is not None
    assert ours.stacks == theirs.stacks
    assert (ours.section == theirs.section).all()


def test_a_changed_stack_is_noticed_and_named(shuffled, tmp_path):
    cache = ImageCache(tmp_path / "cache", shuffled)
    cache.build()
    changed = tmp_path / "1.mrcs"
    os.utime(changed, ns=(1, 1))
    again = ImageCache(tmp_path / "cache", shuffled)
    assert f"{changed} has changed" in (again.why_not() or "")
    with pytest.raises(BadFile, match="Build it again"):
        again.open()
    again.build()
    assert again.why_not() is None


def test_other_particles_in_the_same_folder_have_their_own(shuffled, tmp_path):
    cache = ImageCache(tmp_path / "cache", shuffled)
    cache.build()
    fewer = SelectedImages(shuffled, torch.tensor([0, 2]))
    other = ImageCache(tmp_path / "cache", fewer)
    assert other.why_not() == "there is none yet"
    other.build()
    assert cache.why_not() is None
    assert torch.equal(other.open()[slice(None)], cache.open()[torch.tensor([0, 2])])


@pytest.mark.parametrize("harm", ["cut", "no pixels", "no key", "half a key", "older"])
def test_a_broken_cache_is_not_used(shuffled, tmp_path, harm):
    cache = ImageCache(tmp_path / "cache", shuffled)
    cache.build()
    key = cache.path.with_suffix(".json")
    if harm == "cut":
        os.truncate(cache.path, 100)
    elif harm == "no pixels":
        cache.path.unlink()
    elif harm == "no key":
        key.unlink()
    elif harm == "half a key":
        key.write_text(key.read_text()[:20])
    else:
        key.write_text(json.dumps(json.loads(key.read_text()) | {"format": 0}))
    assert cache.why_not() is not None


def test_what_fails_leaves_no_cache(shuffled, tmp_path):
    """A stack that is cut after its header was read."""
    cache = ImageCache(tmp_path / "cache", shuffled)
    os.truncate(tmp_path / "0.mrcs", 1100)
    with pytest.raises(BadFile, match="truncated"):
        cache.build()
    assert list((tmp_path / "cache").iterdir()) == []


def test_images_that_lie_in_no_file_have_no_cache(tmp_path):
    with pytest.raises(BadInput, match="stacks on disk"):
        ImageCache(tmp_path, MemoryImages(images(3, 8)))


def test_compressed_stacks_are_unpacked_once(tmp_path, monkeypatch):
    """Each stack is opened once, whatever the order of the table."""
    from cryorbit.io import mrc_stack

    paths = []
    for i in range(4):
        plain = stack(tmp_path / f"{i}.mrcs", images(6, 8, seed=i))
        paths.append(tmp_path / f"{i}.mrcs.gz")
        paths[-1].write_bytes(gzip.compress(plain.read_bytes()))
    opened = []
    unpack = mrc_stack.decompress_to_temporary
    monkeypatch.setattr(mrc_stack, "decompress_to_temporary", lambda p: opened.append(p) or unpack(p))
    monkeypatch.setattr("cryorbit.io.open_maps.MOST_OPEN", 1)
    monkeypatch.setattr("cryorbit.io.image_cache._CHUNK_BYTES", 5 * 8 * 8 * 4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    source = SelectedImages(MrcImages(paths), order)
    cache = ImageCache(tmp_path / "cache", source)
    cache.build()
    assert len(opened) == 4
    wanted = torch.cat([images(6, 8, seed=i) for i in range(4)])[order]
    assert torch.equal(cache.open()[slice(None)], to_half(wanted).images())


def _sum_of(source) -> float:
    return float(source[torch.tensor([1, 2])].sum())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_other_processes_read_it_too(shuffled, tmp_path, start):
    """After a fork a process opens its own maps; a spawned one gets the source by pickle."""
    cache = ImageCache(tmp_path / "cache", shuffled)
    cache.build()
    held = cache.open()
    wanted = _sum_of(held)
    if start == "spawn":
        again = pickle.loads(pickle.dumps(held))  # noqa: S301 (our own bytes)
        assert _sum_of(again) == wanted
        return
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(held[torch.tensor([1, 2])].numpy().sum(dtype="f8")).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert float(os.read(read, 100)) == held[torch.tensor([1, 2])].numpy().sum(dtype="f8")
    os.close(read)
    os.close(write)
