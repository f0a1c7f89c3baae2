import errno
import os
import subprocess

import pytest
import torch

from cryorbit.data import Volume
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_folder, atomic_path
from cryorbit.io.checkpoint import load_state, save_state
from cryorbit.io.mrc import StackWriter, write_map, write_maps


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root; the simulated full disk is tested instead")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _write_stack(path):
    with StackWriter(path, box=64, pixel_size_A=1.0) as stack:
        for _ in range(20):
            stack.append(torch.zeros(4, 64, 64))


WRITERS = {
    "map": lambda path: write_map(path, Volume(torch.zeros(48, 48, 48), 1.0)),
    "stack": _write_stack,
    "checkpoint": lambda path: save_state(path, {"a": torch.zeros(100_000)}, {}),
}


def test_a_block_that_ends_well_leaves_the_file_and_nothing_else(tmp_path):
    """The file appears whole under its name; no temporary stays."""
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
        assert not (tmp_path / "a").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def _write_half(path):
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    """Whatever the error, the old content stays and the temporary goes."""
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        _write_half(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BadFile, match=r"folder does not exist"), atomic_path(tmp_path / "no" / "a"):
        pass


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_error_and_leaves_nothing(small_disk, writer):
    """ENOSPC becomes a BadFile that names the remedy; the folder is as it was."""
    with pytest.raises(BadFile, match=r"disk is full"):
        WRITERS[writer](small_disk / "out")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fills_at_the_last_flush(tmp_path, monkeypatch, writer):
    """The same where only fsync reports it."""

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadFile, match=r"disk is full"):
        WRITERS[writer](tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    """Tensors of every kind, views and shared memory among them, and the JSON beside them."""
    base = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    tensors = {
        "view": base.T,
        "same": base,
        "double": base.double() / 3,
        "state": torch.Generator().manual_seed(3).get_state(),
        "flag": torch.tensor(True),
        "half": base.half(),
    }
    meta = {"step": 3, "seconds": 1.5, "names": ["a", None], "nested": {"x": True}}
    save_state(tmp_path / "c.safetensors", tensors, meta)
    back, back_meta = load_state(tmp_path / "c.safetensors")
    assert back_meta == meta
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


@pytest.mark.parametrize("kind", WRITERS)
def test_files_have_the_mode_that_the_umask_leaves(tmp_path, kind):
    """A group that shares its folder may read every file in it: 0666 less the process's mask."""
    before = os.umask(0o027)
    try:
        WRITERS[kind](tmp_path / "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_broken_or_foreign_checkpoint_is_refused(tmp_path):
    """A cut file, a missing one, one of another program, and meta that is not JSON."""
    path = tmp_path / "c.safetensors"
    save_state(path, {"a": torch.zeros(1000)}, {})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadFile, match=r"not a whole checkpoint"):
        load_state(path)
    with pytest.raises(BadFile, match=r"no such checkpoint"):
        load_state(tmp_path / "none")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(BadFile, match=r"not a Cryorbit checkpoint"):
        load_state(tmp_path / "other")
    with pytest.raises(BadInput, match=r"not JSON"):
        save_state(path, {}, {"a": torch.zeros(1)})


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    """A failure keeps what was there and leaves nothing else; success replaces all of it."""
    target = tmp_path / "made"
    with atomic_folder(target) as folder:
        (folder / "first").write_text("1")

    def fails() -> None:
        with atomic_folder(target) as folder:
            (folder / "second").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert [p.name for p in target.iterdir()] == ["first"]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    with atomic_folder(target) as folder:
        (folder / "third").write_text("3")
    assert [p.name for p in target.iterdir()] == ["third"]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_folder_left_by_a_killed_process_is_cleared_away(tmp_path):
    """What a kill left half made is removed; what it had moved aside comes back."""
    (tmp_path / ".made.unfinished").mkdir()
    (tmp_path / ".made.unfinished" / "half").write_text("")
    (tmp_path / ".made.replaced").mkdir()
    (tmp_path / ".made.replaced" / "old").write_text("")

    def fails() -> None:
        with atomic_folder(tmp_path / "made") as folder:
            assert list(folder.iterdir()) == []
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["old"]


@pytest.mark.parametrize("named", [".", "absolute", "link"])
def test_the_folder_one_stands_in_is_replaced_and_still_stood_in(tmp_path, monkeypatch, named):
    """By any of its names: old entries go, new ones come, and the shell's folder is not taken from under it."""
    here = tmp_path / "here"
    (here / "below").mkdir(parents=True)
    (here / "old").write_text("old")
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    with atomic_folder({".": ".", "absolute": here, "link": tmp_path / "link"}[named]) as folder:
        (folder / "new").write_text("new")
    assert os.listdir(".") == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "link"]


def test_the_folder_one_stands_in_keeps_what_it_had(tmp_path, monkeypatch):
    """A move that fails half way takes back those before it."""
    (tmp_path / "here").mkdir()
    for name in ("a", "b"):
        (tmp_path / "here" / name).write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    move = os.replace

    def fails(source, target):
        if os.path.basename(target) == "new":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        move(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(BadFile, match="quota"), atomic_folder(".") as folder:
        (folder / "new").write_text("new")
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["a", "b"]


def test_what_a_kill_left_aside_does_not_stand_in_the_way(tmp_path):
    """Killed after the new folder was in place: the old one, beside it, is garbage."""
    for name in ("made", ".made.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("")
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "b").write_text("")
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["b"]


def test_maps_that_belong_together_are_written_together(tmp_path):
    """If the second cannot be written, the first is not there either, nor is an old one replaced."""
    good, bad = Volume(torch.ones(4, 4, 4), 1.0), Volume(torch.full((4, 4, 4), torch.nan), 1.0)
    first, second = tmp_path / "a.mrc", tmp_path / "b.mrc"
    for then, error in ((second, BadInput), (tmp_path / "no" / "b.mrc", BadFile)):
        with pytest.raises(error, match=r"b\.mrc"):
            write_maps({first: good, then: bad})
        assert list(tmp_path.iterdir()) == []
    write_maps({first: good, second: good})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mrc", "b.mrc"]
