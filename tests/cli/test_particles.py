"""`cryorbit particles expand` and `collapse`, and what `check` says of expanded files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cryorbit.io.particles import read_particles
from cryorbit.io.star import read_star


@pytest.mark.parametrize("suffix", [".star", ".cs"])
def test_expand_and_collapse_give_the_file_back(simulated, shell, tmp_path, suffix):
    """Every column of every particle, digit by digit; in between, four rows of each."""
    plain, wide, back = (tmp_path / f"{name}{suffix}" for name in ("plain", "wide", "back"))
    assert shell("convert", simulated / "truth.star", plain)[0] == 0
    code, _, error = shell("particles", "expand", plain, "--symmetry", "D2", "-o", wide)
    assert code == 0, error
    assert "1280 rows, 4 of each of 320 particles" in error
    code, _, error = shell("particles", "collapse", wide, "-o", back)
    assert code == 0, error
    before, after = read_particles(plain, images="absent"), read_particles(back, images="absent")
    if suffix == ".star":
        assert plain.read_text() == back.read_text()
    assert before.ids.tolist() == after.ids.tolist()
    assert torch.equal(before.pose.rotation, after.pose.rotation)
    assert torch.equal(before.pose.shift_A, after.pose.shift_A)
    assert before.tables["particles"].columns.tolist() == after.tables["particles"].columns.tolist()


def test_check_tells_an_expanded_file(simulated, shell, tmp_path):
    """A warning with the group and the remedy, no error; and expand refuses to do it twice."""
    wide = tmp_path / "wide.star"
    assert shell("particles", "expand", simulated / "truth.star", "--symmetry", "C3", "-o", wide)[0] == 0
    table = read_star(wide)["particles"]
    assert table["cryorbitSymmetryCopy"].tolist() == [0, 1, 2] * 320
    assert (
        table["cryorbitSourceId"].to_numpy().reshape(320, 3)
        == table["cryorbitSourceId"][::3].to_numpy()[:, None]
    ).all()
    code, out, _ = shell("check", wide, "--json")
    (finding,) = [c for c in json.loads(out)["checks"] if c["name"] == "duplicates"]
    assert code == 0
    assert finding["level"] == "warning"
    assert "expanded by the symmetry C3" in finding["message"]
    code, _, error = shell("particles", "expand", wide, "--symmetry", "C3", "-o", tmp_path / "again.star")
    assert code == 2
    assert "Collapse it first" in error


def test_the_best_copy_is_kept_by_a_column(simulated, shell, tmp_path):
    """--best-by takes the row with the largest value."""
    wide = tmp_path / "wide.star"
    assert shell("particles", "expand", simulated / "truth.star", "--symmetry", "C3", "-o", wide)[0] == 0
    # Copies are numbered: the largest number is the last copy of each.
    arguments = ("--best-by", "cryorbitSymmetryCopy", "-o", tmp_path / "last.star")
    assert shell("particles", "collapse", wide, *arguments)[0] == 0
    rows = torch.arange(2, 960, 3)
    expected = read_particles(wide, images="absent").pose.rotation[rows]
    found = read_particles(tmp_path / "last.star", images="absent").pose.rotation
    np.testing.assert_array_equal(found, expected)


def test_nothing_is_overwritten(simulated, shell, tmp_path):
    """OUT that is there is refused; --overwrite replaces it."""
    out = tmp_path / "out.star"
    out.write_text("mine")
    words = ("particles", "expand", simulated / "truth.star", "--symmetry", "C2", "-o", out)
    code, _, error = shell(*words)
    assert code == 2
    assert "--overwrite" in error
    assert out.read_text() == "mine"
    assert shell(*words, "--overwrite")[0] == 0
