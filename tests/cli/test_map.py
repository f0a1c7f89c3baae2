"""The map verbs as they are typed: files in, files out, densities where viewers showed them."""

from __future__ import annotations

import json

import gemmi
import mrcfile
import numpy as np
import pytest
import torch

from cryorbit.data import Volume
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.io.mrc import map_shape, read_map, write_map
from cryorbit.io.particles import read_particles
from cryorbit.physics.project import project

PLACE_A = 0.05
"""Centre of mass of smooth density after any change of grid, in angstrom."""


def density(n: int = 24) -> np.ndarray:
    """A few blobs well inside, by voxel from index N // 2; float32 [z, y, x]."""
    x = np.arange(n) - n // 2
    total = np.zeros((n, n, n))
    for cx, cy, cz, w in ((3, -2, 1, 1.0), (-3, 1, 2, 0.7), (0, 3, -3, 0.9), (1, -3, -2, 0.5)):
        gx, gy, gz = (np.exp(-((x - c) ** 2) / 4.0) for c in (cx, cy, cz))
        total += w * gz[:, None, None] * gy[:, None] * gx
    return total.astype(np.float32)


@pytest.fixture
def given(tmp_path):
    """A map that is no cube, with ORIGIN, written by another program."""
    path = tmp_path / "given.mrc"
    with mrcfile.new(path) as file:
        file.set_data(density()[:, 1:22, 2:])
        file.voxel_size = 3.0
        file.header.origin = (10.0, -20.0, 30.0)
    return path


def shown_at(path) -> np.ndarray:
    """Centre of mass (x, y, z) where viewers show it, read by another program."""
    with mrcfile.open(path) as file:
        values = np.asarray(file.data, dtype=float)
        step = float(file.voxel_size.x)
        origin = np.array(file.header.origin.tolist())
        start = [int(file.header[k]) for k in ("nxstart", "nystart", "nzstart")]
    values = np.where(values > 0.05 * values.max(), values, 0.0)
    z, y, x = np.indices(values.shape)
    centre = np.array([(values * i).sum() for i in (x, y, z)]) / values.sum()
    return centre * step + (origin if origin.any() else np.array(start) * step)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("crop", ["--box", 20, 18, 19]),
        ("crop", ["--box", 40]),
        ("resample", ["--pixel-size-A", 2.0]),
        ("resample", ["--box", 36]),
        ("filter", ["--b-factor-A2", 50]),
        ("symmetrise", ["--symmetry", "C1"]),
    ],
)
def test_densities_stay_where_viewers_show_them(verb, options, given, shell, tmp_path):
    """Whatever a verb does to the grid, another program reads the features in the same place."""
    code, _, error = shell("map", verb, given, "-o", tmp_path / "out.mrc", *options)
    assert code == 0, error
    np.testing.assert_allclose(shown_at(tmp_path / "out.mrc"), shown_at(given), atol=PLACE_A)
    if verb in ("filter", "symmetrise"):
        assert map_shape(tmp_path / "out.mrc") == map_shape(given)
    if options[:1] == ["--box"] and verb == "crop":
        wanted = tuple(reversed(options[1:])) if len(options) == 4 else (40, 40, 40)
        assert map_shape(tmp_path / "out.mrc") == wanted


def test_mask_lies_over_the_particle(given, shell, tmp_path):
    """1 at the densest voxel, 0 in the corner, on the map's own grid and header."""
    out = tmp_path / "mask.mrc"
    code, _, error = shell(
        "map", "mask", given, "-o", out, "--low-pass-A", 12, "--extend-A", 3, "--soft-edge-A", 6
    )
    assert code == 0, error
    with mrcfile.open(given) as a, mrcfile.open(out) as b:
        assert b.data.shape == a.data.shape
        assert b.header.origin == a.header.origin
        assert b.data[np.unravel_index(a.data.argmax(), a.data.shape)] == 1.0
        assert b.data[0, 0, 0] == 0.0
    assert shell("map", "mask", given, "-o", tmp_path / "s.mrc", "--sphere-radius-A", 12)[0] == 0
    assert shell("map", "mask", given, "-o", out)[0] == 2
    assert shell("map", "mask", given, "-o", out, "--overwrite")[0] == 0


def test_flip_turns_the_poses_too(simulated, shell, tmp_path):
    """The mirrored map at F A F gives the image that the map gave at A; flipped twice all is as before."""
    a, b, given = tmp_path / "a.mrc", tmp_path / "b.mrc", tmp_path / "given.mrc"
    write_map(given, Volume(torch.from_numpy(density()), 3.0))
    truth, out = simulated / "truth.star", tmp_path / "a.star"
    code, _, error = shell("map", "flip", given, "-o", a, "--particles", truth, "--out-particles", out)
    assert code == 0, error
    source, written = (
        read_particles(truth),
        read_particles(out),
    )  # from another folder, and the images are found
    assert torch.equal(written.images[torch.arange(3)], source.images[torch.arange(3)])
    before, after = source.pose, written.pose
    torch.testing.assert_close(after.rotation, mirror_pose_rotation(before.rotation), rtol=0, atol=1e-5)
    torch.testing.assert_close(after.shift_A, before.shift_A, rtol=0, atol=1e-4)
    few = torch.arange(3)
    first, second = project(read_map(given), before[few]), project(read_map(a), after[few])
    torch.testing.assert_close(second, first, rtol=0, atol=1e-3 * float(first.max()))
    assert shell("map", "flip", a, "-o", b)[0] == 0
    assert torch.equal(read_map(b).values, read_map(given).values)
    assert shell("map", "flip", a, "-o", tmp_path / "c.mrc", "--particles", out)[0] == 2


def test_align_prints_a_row_and_puts_map_and_model_in_place(shell, tmp_path):
    """A quarter turn about z and other header places: the row tells them, the map and the model come to lie right."""
    values = torch.from_numpy(density())
    write_map(tmp_path / "ref.mrc", Volume(values, 3.0, (10.0, -20.0, 30.0)))
    turned = torch.rot90(values[1:, 1:, 1:], 1, (1, 2))  # about index N // 2 once index 0 is gone
    moved = torch.nn.functional.pad(turned, (1, 0, 1, 0, 1, 0))
    write_map(tmp_path / "mov.mrc", Volume(moved, 3.0, (-5.0, 0.0, 2.0)))
    model = gemmi.Structure()
    model.add_model(gemmi.Model(1))
    model[0].add_chain("A")
    residue = gemmi.Residue()
    residue.name, residue.seqid = "GLY", gemmi.SeqId("1")
    atom = gemmi.Atom()
    atom.name, atom.element = "CA", gemmi.Element("C")
    z, y, x = (int(i) for i in torch.unravel_index(moved.argmax(), moved.shape))
    atom.pos = gemmi.Position(3.0 * x - 5.0, 3.0 * y, 3.0 * z + 2.0)
    residue.add_atom(atom)
    model[0][0].add_residue(residue)
    model.write_pdb(str(tmp_path / "mov.pdb"))
    code, out, error = shell(
        "map", "align", tmp_path / "ref.mrc", tmp_path / "mov.mrc", "-o", tmp_path / "out.mrc", "--json",
        "--model", tmp_path / "mov.pdb", "--out-model", tmp_path / "out.pdb",
    )  # fmt: skip
    assert code == 0, error
    row = json.loads(out.splitlines()[-1])
    wanted = {"angle_deg", "shift_A", "hand", "score", "score_other_hand", "z", "matrix", "seconds"}
    assert wanted <= row.keys()
    assert row["hand"] == 1
    assert row["angle_deg"] == pytest.approx(90.0, abs=1.0)
    assert row["score"] > row["score_other_hand"]
    np.testing.assert_allclose(shown_at(tmp_path / "out.mrc"), shown_at(tmp_path / "ref.mrc"), atol=0.3)
    z, y, x = (int(i) for i in torch.unravel_index(values.argmax(), values.shape))
    put = gemmi.read_structure(str(tmp_path / "out.pdb"))[0][0][0][0].pos.tolist()
    np.testing.assert_allclose(put, [3.0 * x + 10.0, 3.0 * y - 20.0, 3.0 * z + 30.0], atol=0.5)


def test_diff_shows_what_was_added(shell, tmp_path):
    """A less a filtered copy of it without one blob has its maximum there."""
    values = density()
    more = values.copy()
    more[16, 6, 7] += 1.0
    write_map(tmp_path / "a.mrc", Volume(torch.from_numpy(more), 3.0))
    write_map(tmp_path / "b.mrc", Volume(torch.from_numpy(5.0 * values), 3.0))
    code, _, error = shell("map", "diff", tmp_path / "a.mrc", tmp_path / "b.mrc", "-o", tmp_path / "d.mrc")
    assert code == 0, error
    change = read_map(tmp_path / "d.mrc").values
    assert [int(i) for i in torch.unravel_index(change.argmax(), change.shape)] == [16, 6, 7]


def test_render_writes_a_picture(given, shell, tmp_path):
    """A PNG of the width asked for, not blank; other endings and empty levels are refused."""
    from matplotlib.image import imread

    out = tmp_path / "a.png"
    code, _, error = shell("map", "render", given, "-o", out, "--width-px", 400, "--views", "front", "back")
    assert code == 0, error
    picture = imread(out)
    assert picture.shape[1] == 400
    assert picture[..., :3].std() > 0.05
    assert shell("map", "render", given, "-o", tmp_path / "a.jpg")[0] == 2
    code, _, error = shell("map", "render", given, "-o", tmp_path / "b.png", "--level", 99)
    assert code == 2
    assert "lower --level" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resample"], "neither"),
        (["filter"], "nothing to do"),
        (["filter", "--low-pass-A", 20, "--high-pass-A", 10], "nothing would remain"),
        (["crop", "--box", 10, 20], "three"),
        (["symmetrise", "--symmetry", "K2"], "K2"),
    ],
)
def test_senseless_orders_are_refused_and_leave_nothing(words, message, given, shell, tmp_path):
    """One line that says what to give; no file."""
    verb, *options = words
    code, _, error = shell("map", verb, given, "-o", tmp_path / "x.mrc", *options)
    assert code == 2
    assert message in error
    assert not (tmp_path / "x.mrc").exists()
