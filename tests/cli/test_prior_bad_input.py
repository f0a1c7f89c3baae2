"""What the `prior` verbs refuse, before any work and with a remedy that fits the verb; and what they leave alone."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cryorbit.cli import prior_files
from cryorbit.cli.prior_sample import CHAIN_IDS
from cryorbit.data import Volume
from cryorbit.errors import BadFile
from cryorbit.io.atoms import read_atoms, write_atoms
from cryorbit.io.checkpoint import load_state
from cryorbit.io.mrc import read_map, write_map
from cryorbit.io.weights import save_weights
from cryorbit.models.point_prior import PointPrior, PointPriorShape
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from cryorbit.physics.procedural_protein import procedural_protein

TINY = (
    "--proteins 2 --held-back 1 --lengths 24 26 --box 12 --voxel-size-A 4 5 --map-resolution-A 10 12 --channels 8 --batch 2 "
    "--steps 4 --measured-batches 2 --record-every 2 --warm-up 2 --threads 1"
).split()
"""A box with room for 22 A about the middle: for procedural proteins of 26 residues, not for those of 80."""


@pytest.fixture(scope="module")
def maps_prior(tmp_path_factory):
    shape = VolumePriorShape(channels=(8,), box=8, voxel_size_A=(18.0, 24.0), resolution_A=(40.0, 50.0))
    made = VolumePrior(shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("maps") / "prior.safetensors"
    save_weights(path, made.tensors(), made.card())
    return path


@pytest.fixture(scope="module")
def chains_prior(tmp_path_factory):
    made = PointPrior(PointPriorShape(hidden=4, layers=1), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("chains") / "prior.safetensors"
    save_weights(path, made.tensors(), made.card())
    return path


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """Four short chains, two long ones and a file that is none."""
    folder = tmp_path_factory.mktemp("folded") / "structures"
    folder.mkdir()
    for seed in range(4):
        write_atoms(folder / f"{seed}abc.pdb", procedural_protein(24 + seed, seed))
    for seed in (4, 5):
        write_atoms(folder / f"{seed}big.pdb", procedural_protein(80, seed))
    (folder / "junk.pdb").write_text("junk")
    return folder


@pytest.fixture
def structures(folded, tmp_path):
    """A copy of them that may be changed."""
    return shutil.copytree(folded, tmp_path / "structures")


def test_a_training_lists_what_it_used_and_nothing_else(shell, structures, tmp_path):
    """Too large for the box, not read, not there: said, and under no part. No folder of this machine is named."""
    out = tmp_path / "run"
    line = ["prior", "train", "-o", out, *TINY, "--structures", structures, "--residues", 20, 400]
    code, _, told = shell(*line, "--proteins", 0, "--held-back", 3, "--shares", 0, 0)
    assert code == 0, told
    assert "2 of them too large" in told
    listing = json.loads((out / "structures.json").read_text())
    assert listing["train"] == [f"{seed}abc_A" for seed in range(4)]
    assert listing["too_large"] == ["4big_A", "5big_A"]
    assert listing["procedural"] == {"train": "none", "validation": "none"}
    assert listing["skipped"]["unreadable"][0].startswith("junk.pdb: ")
    _, meta = load_state(out / "prior.safetensors")
    assert meta["about"]["structures"] == listing
    assert str(tmp_path) not in json.dumps(meta)


def test_procedural_proteins_too_large_for_the_box_are_listed(shell, tmp_path):
    code, _, told = shell("prior", "train", "-o", tmp_path, *TINY, "--lengths", 24, 70, "--held-back", 0)
    assert code == 0, told
    _, meta = load_state(tmp_path / "prior.safetensors")
    procedural = meta["about"]["structures"]["procedural"]
    assert procedural == json.loads((tmp_path / "structures.json").read_text())["procedural"]
    assert procedural == {"train": "seeds 0 to 1", "validation": "none", "too_large": [1]}
    assert "1 procedural proteins too large" in told


def test_a_mistyped_folder_is_not_gone_on_with(shell, tmp_path):
    """--resume where no run was begun does not begin one."""
    code, _, told = shell("prior", "train", "-o", tmp_path / "tpyo", *TINY, "--resume")
    assert code == 2
    assert "no run to go on with" in told
    assert not (tmp_path / "tpyo").exists()


def failing(*_):
    raise BadFile("disk: full")


def test_a_checkpoint_keeps_its_list_of_structures(shell, structures, tmp_path, monkeypatch):
    """After any failure a changed folder is still refused, for the test set would be learned; so is a list that is gone."""
    out = tmp_path / "run"
    given = [
        "prior",
        "train",
        "-o",
        out,
        *TINY,
        "--structures",
        structures,
        "--residues",
        20,
        400,
        "--proteins",
        0,
    ]
    given += ["--shares", 0.25, 0.25, "--checkpoint-every-s", 0]
    monkeypatch.setattr(prior_files, "save_prior", failing)
    code, _, told = shell(*given)
    assert code == 2
    assert "disk: full" in told
    assert (out / "checkpoint.safetensors").exists()
    assert (out / "structures.json").exists()
    write_atoms(structures / "9abc.pdb", procedural_protein(25, 9))
    code, _, told = shell("prior", "train", "-o", out, "--resume")
    assert code == 2
    assert "begin anew" in told
    (structures / "9abc.pdb").unlink()
    (out / "structures.json").rename(tmp_path / "kept")
    code, _, told = shell("prior", "train", "-o", out, "--resume")
    assert code == 2
    assert "structures.json: is gone" in told
    (tmp_path / "kept").rename(out / "structures.json")
    monkeypatch.undo()
    code, _, told = shell("prior", "train", "-o", out, "--resume")
    assert code == 0, told


def test_a_failure_before_the_first_checkpoint_leaves_nothing(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(prior_files, "save_prior", failing)
    assert shell("prior", "train", "-o", tmp_path / "run", *TINY)[0] == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong", ["--measured-batches 0", "--proteins -1", "--held-back -2", "--lengths 30 24", "--lengths 10 24"]
)
def test_an_option_of_training_that_is_wrong_is_named(shell, tmp_path, wrong):
    code, _, told = shell("prior", "train", "-o", tmp_path / "run", *TINY, *wrong.split())
    assert code == 2
    assert wrong in told


@pytest.mark.parametrize(
    "wrong",
    [
        *("--box -3", "--box 0", "--box 1", "--count 0", "--steps 0"),
        *("--voxel-size-A 0", "--voxel-size-A -2", "--voxel-size-A nan", "--resolution-A 0"),
        *("--residues 1 3", "--residues 10000"),
    ],
)
def test_a_number_that_makes_no_sample_is_refused(shell, maps_prior, chains_prior, tmp_path, wrong):
    prior = chains_prior if "residues" in wrong else maps_prior
    code, _, told = shell("prior", "sample", prior, "-o", tmp_path / "out", *wrong.split())
    assert code == 2
    assert f"error: {wrong}: give" in told
    assert not (tmp_path / "out").exists()


def test_maps_are_sampled_no_finer_than_two_voxels(shell, maps_prior, tmp_path):
    """As in training: refused where both are given, else voxels follow the resolution."""
    given = ("prior", "sample", maps_prior, "-o", tmp_path / "out", "--count", 1, "--steps", 2)
    code, _, told = shell(*given, "--resolution-A", 40, "--voxel-size-A", 24)
    assert code == 2
    assert "--voxel-size-A 20 or smaller" in told
    assert not (tmp_path / "out").exists()
    code, _, told = shell(*given, "--resolution-A", 40)
    assert code == 0, told
    assert read_map(tmp_path / "out" / "sample_001.mrc").pixel_size_A == pytest.approx(20.0)


def test_every_chain_has_a_name_of_its_own(shell, chains_prior, tmp_path):
    """As many as one column of a PDB file can tell apart; more are refused."""
    given = ("prior", "sample", chains_prior, "-o", tmp_path / "out", "--count", 1, "--steps", 1)
    code, _, told = shell(*given, "--residues", *[2] * 62)
    assert code == 0, told
    atoms = read_atoms(tmp_path / "out" / "sample_001.pdb")
    assert atoms.chain is not None
    assert atoms.chain.tolist() == [name for name in CHAIN_IDS for _ in range(2)]
    table = pd.read_csv(tmp_path / "out" / "scores.csv", dtype={"chain": str})
    assert table["chain"].tolist() == list(CHAIN_IDS)
    code, _, told = shell(*given, "--overwrite", "--residues", *[2] * 63)
    assert code == 2
    assert "63 chains" in told


@pytest.mark.parametrize("name", ["mine.txt", "sample_1.mrc", "sample_001.mrc.bak", "sample_002.pdb/"])
def test_a_folder_with_anything_else_in_it_is_not_replaced(shell, maps_prior, tmp_path, name):
    """What no sampling wrote is named and stays, though there are scores beside it."""
    given = ("prior", "sample", maps_prior, "-o", tmp_path / "out", "--count", 1, "--steps", 2)
    assert shell(*given)[0] == 0
    foreign = tmp_path / "out" / name
    foreign.mkdir() if name.endswith("/") else foreign.write_text("mine")
    code, _, told = shell(*given, "--overwrite")
    assert code == 2
    assert f"{foreign}: no prior sample wrote it" in told
    assert foreign.exists()
    foreign.rmdir() if name.endswith("/") else foreign.unlink()
    assert shell(*given, "--overwrite")[0] == 0
    (tmp_path / "out" / "scores.csv").unlink()
    code, _, told = shell(*given, "--overwrite")
    assert code == 2
    assert "no scores.csv" in told


def test_samples_of_the_folder_one_stands_in_are_replaced(shell, maps_prior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("prior", "sample", maps_prior, "-o", ".", "--overwrite", "--steps", 2)
    for count in (2, 1):
        code, _, told = shell(*given, "--count", count)
        assert code == 0, told
        assert len(os.listdir(".")) == count + 1


@pytest.mark.parametrize("card", [{"version": 99}, {"kind": "spheres"}])
def test_a_prior_of_another_time_or_kind_is_named(shell, maps_prior, tmp_path, card):
    tensors, meta = load_state(maps_prior)
    save_weights(tmp_path / "prior.safetensors", tensors, {**meta["card"], **card})
    code, _, told = shell("prior", "sample", tmp_path, "-o", tmp_path / "out")
    assert code == 2
    assert f"error: {tmp_path / 'prior.safetensors'}: " in told
    assert "trained anew" in told


@pytest.fixture
def halves(tmp_path):
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(16) - 8.0
    blob = 5 * torch.exp(-(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) / 18)
    paths = [tmp_path / "half1.mrc", tmp_path / "half2.mrc"]
    for path in paths:
        write_map(path, Volume(blob + 0.5 * torch.randn(16, 16, 16, generator=generator), 20.0))
    return paths


def changed(path, edit) -> None:
    """Write a map's bytes anew."""
    path.write_bytes(edit(path.read_bytes()))


def test_a_map_that_cannot_be_written_is_refused_before_the_work(shell, halves, tmp_path):
    """No folder, or a folder of that name: said before the prior is even read."""
    given = ("prior", "denoise", *halves, "--prior", tmp_path / "none")
    code, _, told = shell(*given, "-o", tmp_path / "missing" / "out.mrc")
    assert code == 2
    assert "there is no folder" in told
    for folder in (tmp_path, "."):
        code, _, told = shell(*given, "--overwrite", "-o", folder)
        assert code == 2
        assert "is a folder" in told


def test_a_half_map_that_is_not_finite_is_named(shell, halves, maps_prior, tmp_path):
    nan = np.full(3, np.nan, "<f4").tobytes()
    changed(halves[1], lambda raw: raw[:1100] + nan + raw[1112:])
    code, _, told = shell("prior", "denoise", *halves, "-o", tmp_path / "out.mrc", "--prior", maps_prior)
    assert code == 2
    assert f"{halves[1]}: 3 of 4096 voxels are not finite" in told


def command_in(told: str, **words: str) -> list[str]:
    """The command that a message names, without the program, with words put in."""
    line = told.split("`cryorbit ")[1].split("`")[0]
    for old, new in words.items():
        line = line.replace(old, new)
    return line.split()


def test_remedies_for_half_maps_are_commands_that_work(shell, halves, maps_prior, tmp_path):
    """A header without a voxel size, and a box that is no cube: what the message says mends it."""
    given = ("prior", "denoise", *halves, "-o", tmp_path / "out.mrc", "--prior", maps_prior)
    raw = halves[0].read_bytes()
    changed(halves[0], lambda raw: raw[:40] + bytes(12) + raw[52:])
    code, _, told = shell(*given)
    assert code == 2
    mended = str(tmp_path / "mended.mrc")
    assert shell(*command_in(told, **{"OUT.mrc": mended, "...": "20"}))[0] == 0
    assert read_map(mended).pixel_size_A == 20.0
    halves[0].write_bytes(raw)
    oblong = ("map", "crop", halves[0], "-o", halves[1], "--overwrite", "--box", 16, 12, 14)
    assert shell(*oblong)[0] == 0
    code, _, told = shell(*given)
    assert code == 2
    assert shell(*command_in(told, **{"CUBE.mrc": mended}), "--overwrite")[0] == 0
    assert read_map(mended).box == 16


def test_dark_half_maps_are_refused_with_a_remedy_for_maps(shell, halves, maps_prior, tmp_path):
    for path in halves:
        write_map(path, Volume(-read_map(path).values, 20.0))
    code, _, told = shell("prior", "denoise", *halves, "-o", tmp_path / "out.mrc", "--prior", maps_prior)
    assert code == 2
    assert "multiplied by -1" in told
