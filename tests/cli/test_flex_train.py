"""`flex train` and `flex reconstruct` end to end, from each kind of particle file, on a stack that takes seconds."""

from __future__ import annotations

import json

import pytest
import torch

from cryorbit.cli.flex_files import load_flex
from cryorbit.cli.main import main
from cryorbit.io.mrc import read_map
from cryorbit.io.particles import read_particles, write_particles

TINY = "--epochs 1 --count 30 --latent 2 --rank 4 --width 8 --nodes 8 --batch 16 --threads 1".split()


@pytest.fixture(scope="module")
def particles(simulated, tmp_path_factory):
    """The simulated stack's first particles with their true poses, as .star, .cs and cryoDRGN files."""
    folder = tmp_path_factory.mktemp("particles")
    stack = read_particles(simulated / "truth.star")
    few = stack.select(torch.arange(96))
    write_particles(folder / "particles.star", few)
    assert main(["convert", str(folder / "particles.star"), str(folder / "particles.cs")]) == 0
    for name in ("pose.pkl", "ctf.pkl"):
        assert main(["convert", str(folder / "particles.star"), str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(particles):
    out = particles / "run"
    assert main(["flex", "train", str(particles / "particles.star"), "-o", str(out), *TINY]) == 0
    return out


def test_a_run_leaves_model_latents_and_particles(trained):
    result, settings = load_flex(trained)
    assert result.z.shape == (96, 2)
    assert settings.latent == 2
    stack = read_particles(trained / "particles.star", images="absent")
    table = stack.tables["particles"]
    assert float(abs(table["cryorbitLatent1"].astype(float) - result.z[:, 0].numpy()).max()) < 1e-4
    facts = json.loads((trained / "run.json").read_text())
    assert facts["finished"]
    assert 0.3 < facts["chi_square_per_number"] < 3


def test_cs_files_train_in_one_command(shell, particles, trained, tmp_path):
    code, _, _ = shell("flex", "train", particles / "particles.cs", "-o", tmp_path / "cs", *TINY)
    assert code == 0
    # The same images and poses, so the same result to what a cryoSPARC file rounds.
    torch.testing.assert_close(
        load_flex(tmp_path / "cs")[0].misfit, load_flex(trained)[0].misfit, rtol=0.05, atol=1.0
    )


def test_cryodrgn_pickles_train_in_one_command(shell, particles, simulated, tmp_path):
    pickles = ("--pose-pkl", particles / "pose.pkl", "--ctf-pkl", particles / "ctf.pkl")
    code, out, err = shell(
        "flex", "train", simulated / "particles.mrcs", *pickles, "-o", tmp_path / "run", *TINY
    )
    # The pickles are of the first 96 images only: a clear word, not a crash; whole ones train.
    assert code == 2, out
    assert "96" in err
    whole = read_particles(simulated / "truth.star")
    write_particles(tmp_path / "pose.pkl", whole)
    write_particles(tmp_path / "ctf.pkl", whole)
    pickles = ("--pose-pkl", tmp_path / "pose.pkl", "--ctf-pkl", tmp_path / "ctf.pkl")
    assert (
        shell("flex", "train", simulated / "particles.mrcs", *pickles, "-o", tmp_path / "run", *TINY)[0] == 0
    )


def test_gaussians_and_a_map_are_starts(shell, particles, trained, simulated, tmp_path):
    start = ("--gaussians", trained / "gaussians.safetensors")
    assert shell("flex", "train", particles / "particles.star", "-o", tmp_path / "g", *start, *TINY)[0] == 0
    start = ("--map", simulated / "truth.mrc")
    assert shell("flex", "train", particles / "particles.star", "-o", tmp_path / "m", *start, *TINY)[0] == 0
    both = (*start, "--gaussians", trained / "gaussians.safetensors")
    code, _, err = shell("flex", "train", particles / "particles.star", "-o", tmp_path / "b", *both, *TINY)
    assert code == 2
    assert "Give one of them" in err
    assert not (tmp_path / "b").exists()


def test_half_sets_share_no_particle_and_are_compared(shell, particles, simulated, tmp_path):
    run = ("flex", "train", particles / "particles.star", "-o", tmp_path / "run", "--half-sets", *TINY)
    code, _, told = shell(*run)
    assert code == 0
    assert "agree (FSC 0.143)" in told
    names = [
        set(read_particles(tmp_path / "run" / half / "particles.star", images="absent").ids)
        for half in ("half1", "half2")
    ]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 96
    table = (tmp_path / "run" / "half_sets.csv").read_text()
    (tmp_path / "run" / "half_sets.csv").unlink()
    assert shell(*run, "--resume")[0] == 0
    assert (tmp_path / "run" / "half_sets.csv").read_text() == table
    shared = (*run[:3], "-o", tmp_path / "s", "--half-sets", "--map", simulated / "truth.mrc", *TINY)
    code, _, err = shell(*shared)
    assert code == 2
    assert "each half makes its own" in err
    assert not (tmp_path / "s").exists()


def test_particles_without_poses_are_refused_and_leave_nothing(shell, simulated, tmp_path):
    code, _, err = shell("flex", "train", simulated / "particles.star", "-o", tmp_path / "run", *TINY)
    assert code == 2
    assert "no poses" in err
    assert not (tmp_path / "run").exists()


def test_a_map_with_the_motion_taken_out(shell, trained):
    code, _, told = shell("flex", "reconstruct", trained, "--particle", 5, "--threads", 1)
    assert code == 0
    assert "half maps agree" in told
    made = read_map(trained / "deformed" / "map.mrc")
    assert made.box == load_flex(trained)[0].box
    assert json.loads((trained / "deformed" / "deformed.json").read_text())["particle"]
    code, _, err = shell("flex", "reconstruct", trained)
    assert code == 2
    assert "another" in err
    mine = trained / "deformed" / "mine.txt"
    mine.write_text("mine")
    code, _, err = shell("flex", "reconstruct", trained, "--overwrite")
    assert code == 2
    assert "mine.txt" in err
    assert mine.read_text() == "mine"
    mine.unlink()
