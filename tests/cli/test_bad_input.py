"""Bad input, each a one-line error with file, row and remedy, exit code 2, and nothing half-written."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

VERBS = ("abinitio", "reconstruct")
HEADER = 1024
IMAGE = 16 * 16 * 4


@pytest.fixture
def data(simulated, tmp_path) -> Path:
    """A copy of the simulated stack that a test may spoil; particles.star has the poses too."""
    folder = tmp_path / "data"
    shutil.copytree(simulated, folder)
    shutil.copy(folder / "truth.star", folder / "particles.star")
    return folder


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def truncated(data: Path) -> list[str]:
    with (data / "particles.mrcs").open("r+b") as file:
        file.truncate(HEADER + 100 * IMAGE + 7)
    return ["particles.mrcs"]


def missing(data: Path) -> list[str]:
    (data / "particles.mrcs").unlink()
    return ["particles.mrcs", "row 1", "data_dir"]


def beyond(data: Path) -> list[str]:
    replace_in(data / "particles.star", "000320@", "000999@")
    return ["999", "row 320", "320 images"]


def two_pixel_sizes(data: Path) -> list[str]:
    """A second optics group with another pixel size, that the last particle belongs to."""
    path = data / "particles.star"
    lines = path.read_text().splitlines(keepends=True)
    group = next(i for i, line in enumerate(lines) if line.startswith("1 opticsGroup1"))
    labels = [line for line in lines if line.startswith("_rlnOpticsGroup #")]
    column = int(labels[1].split("#")[1]) - 1
    last = next(i for i, line in enumerate(lines) if "000320@" in line)
    words = lines[last].split()
    words[column] = "2"
    lines[last] = " ".join(words) + "\n"
    lines.insert(group + 1, lines[group].replace("1 opticsGroup1", "2 opticsGroup2").replace("20.0", "30.0"))
    path.write_text("".join(lines))
    return ["pixel size", "30", "20"]


def not_a_number(data: Path) -> list[str]:
    with (data / "particles.mrcs").open("r+b") as file:
        file.seek(HEADER + 41 * IMAGE + 64)
        file.write(np.float32(np.nan).tobytes())
    return ["row 42", "not finite"]


def blank(data: Path) -> list[str]:
    """Only what is searched for poses must not be blank: in a reconstruction such an image adds nothing."""
    with (data / "particles.mrcs").open("r+b") as file:
        file.seek(HEADER + 41 * IMAGE)
        file.write(bytes(IMAGE))
    return ["row 42", "blank"]


def empty(data: Path) -> list[str]:
    (data / "particles.star").write_text("")
    return ["particles.star", "empty"]


def without_ctf(data: Path) -> list[str]:
    text = (data / "particles.star").read_text()
    (data / "particles.star").write_text(text.replace("_rlnDefocus", "_myDefocus"))
    return ["CTF", "--no-ctf"]


def compressed_cryosparc(data: Path) -> list[str]:
    (data / "particles.star").write_bytes(b"\x94CSDAT" + bytes(100))
    (data / "particles.star").rename(data / "particles.cs")
    return ["particles.cs", "cryosparc"]


FAULTS = (
    truncated,
    missing,
    beyond,
    two_pixel_sizes,
    not_a_number,
    blank,
    empty,
    without_ctf,
    compressed_cryosparc,
)


@pytest.mark.parametrize(
    ("verb", "spoil"),
    [(verb, fault) for verb in VERBS for fault in FAULTS if (verb, fault) != ("reconstruct", blank)],
)
def test_bad_particles_are_one_line(data, shell, tmp_path, verb, spoil):
    """Each fault ends in one line that names what is wrong and where; no output folder is left."""
    words = spoil(data)
    particles = next(p for p in (data / "particles.cs", data / "particles.star") if p.exists())
    code, out, error = shell(verb, particles, "-o", tmp_path / "out", "--device", "cpu")
    lines = [line for line in error.splitlines() if not line.startswith("warning:")]
    assert code == 2
    assert out == ""
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert not [word for word in words if word.lower() not in error.lower()], error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoil", [f for f in FAULTS if f is not without_ctf], ids=lambda f: f.__name__)
def test_check_finds_the_same_faults(data, shell, spoil):
    """What would stop a run is an error of `check`, with exit code 1."""
    spoil(data)
    particles = next(p for p in (data / "particles.cs", data / "particles.star") if p.exists())
    code, out, _ = shell("check", particles)
    assert code == 1, out
    assert any(line.startswith("error") for line in out.splitlines())


def test_particles_without_poses_cannot_be_reconstructed(simulated, shell, tmp_path):
    """reconstruct wants poses and says where they may come from; so for a .cs file."""
    shutil.copy(simulated / "particles.mrcs", tmp_path)
    shutil.copy(simulated / "particles.star", tmp_path)
    assert shell("convert", tmp_path / "particles.star", tmp_path / "bare.cs")[0] == 0
    for name in ("particles.star", "bare.cs"):
        code, _, error = shell("reconstruct", tmp_path / name, "-o", tmp_path / "out")
        assert code == 2
        assert "no poses" in error
        assert "abinitio" in error


def test_too_few_particles_are_refused(shell, tmp_path):
    """abinitio of a handful of images says how many it wants."""
    options = "--n-particles 20 --box 16 --pixel-size-A 20"
    assert shell("simulate", "synthetic", "-o", tmp_path / "few", *options.split())[0] == 0
    code, _, error = shell("abinitio", tmp_path / "few" / "particles.star", "-o", tmp_path / "out")
    assert code == 2
    assert "20 particles are too few" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [*VERBS, "simulate", "demo"])
def test_a_folder_with_another_run_is_refused(data, shell, tmp_path, verb):
    """Nothing is written into the folder of another run."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "map.mrc").write_text("mine")
    (out / "particles.star").write_text("mine")
    what = {"simulate": ["synthetic"], "demo": []}.get(verb, [data / "particles.star"])
    code, _, error = shell(verb, *what, "-o", out)
    assert code == 2
    assert "another run" in error
    assert sorted(p.name for p in out.iterdir()) == ["map.mrc", "particles.star"]
    assert (out / "map.mrc").read_text() == "mine"


def test_a_writer_that_finds_no_room_leaves_nothing(tmp_path):
    """When the system refuses to write on, simulate takes everything back, folder included."""
    out = tmp_path / "out"
    options = "--n-particles 200 --box 16 --pixel-size-A 20".split()
    line = [sys.executable, "-m", "cryorbit.cli.main", "simulate", "synthetic", "-o", str(out), *options]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(line, capture_output=True, text=True, preexec_fn=small_files)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_nothing_to_resume_is_said(shell, tmp_path):
    """--resume of a folder that holds no run, without particles, is an error."""
    code, _, error = shell("abinitio", "-o", tmp_path / "out", "--resume")
    assert code == 2
    assert "no particles given" in error
