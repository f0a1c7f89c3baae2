"""What is made of a stack whose poses are known: half maps, an evaluation, a report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryorbit.cli.evaluate import EVALUATION
from cryorbit.cli.main import main
from cryorbit.cli.run_folder import RUN, read_json
from cryorbit.data import Pose
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.geometry.rotations import random_rotations
from cryorbit.io.particles import read_particles, write_particles

KEYS = {
    "mse",
    "medse",
    "hand",
    "hand_a",
    "hand_b",
    "hand_union",
    "rotation_error_deg_median",
    "shift_error_A_median",
    "fsc05_truth_A",
    "oracle_fsc05_truth_A",
    "fsc0143_half_A",
    "seconds",
    "image_visits",
}


@pytest.fixture(scope="session")
def posed(tmp_path_factory) -> Path:
    """A simulated stack of 600 images of 32 px, and its reconstruction from the true poses."""
    folder = tmp_path_factory.mktemp("posed")
    options = "--n-particles 600 --box 32 --pixel-size-A 12 --snr 1 --shift-sd-A 6 --seed 5"
    assert main(["simulate", "synthetic", "-o", str(folder / "data"), *options.split()]) == 0
    assert main(["reconstruct", str(folder / "data" / "truth.star"), "-o", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(posed, tmp_path) -> Path:
    """A copy of the reconstruction's folder, with its particles in it as an abinitio run would leave them."""
    folder = tmp_path / "run"
    shutil.copytree(posed / "run", folder)
    write_particles(folder / "particles.star", read_particles(posed / "data" / "truth.star"))
    return folder


def evaluated(shell, run: Path, posed: Path, *more: str) -> dict:
    data = posed / "data"
    code, out, error = shell(
        "evaluate", run, "--truth", data / "truth.star", "--truth-map", data / "truth.mrc", "--json", *more
    )
    assert code == 0, error
    return json.loads(out)


def test_reconstruct_leaves_maps_curve_and_report(posed):
    """reconstruct writes map, half maps, FSC table, settings and a report without links to the network."""
    found = {path.name for path in (posed / "run").iterdir()}
    assert {"map.mrc", "half1.mrc", "half2.mrc", "fsc.star", "report.html", "settings.yaml"} <= found
    assert read_json(posed / "run" / RUN)["finished"]
    assert "checkpoint.safetensors" not in found
    page = (posed / "run" / "report.html").read_text()
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_evaluation_of_the_truth_is_perfect(shell, run, posed):
    """True poses have no error, their map resolves what the oracle's does, and every key is there."""
    numbers = evaluated(shell, run, posed)
    assert KEYS <= set(numbers)
    assert numbers["mse"] < 1e-6
    assert numbers["converged"]
    assert numbers["hand"] == 1
    assert numbers["fsc05_truth_A"] == pytest.approx(numbers["oracle_fsc05_truth_A"], rel=0.05)
    assert numbers["image_visits"] == 600
    assert json.loads((run / EVALUATION).read_text()) == numbers


def test_evaluation_joins_by_id_not_by_position(shell, run, posed):
    """Shuffling the run's rows changes nothing."""
    stack = read_particles(run / "particles.star")
    shuffled = stack.select(torch.randperm(len(stack), generator=torch.Generator().manual_seed(0)))
    write_particles(run / "particles.star", shuffled)
    assert evaluated(shell, run, posed, "--no-oracle")["mse"] < 1e-6


def test_evaluation_does_not_see_frame_hand_or_centre(shell, run, posed):
    """Poses in another frame, mirrored, with the centre moved, are still right; the hand is told."""
    stack = read_particles(run / "particles.star")
    generator = torch.Generator().manual_seed(1)
    turn = random_rotations(1, generator=generator)[0]
    centre_A = torch.tensor([5.0, -3.0, 8.0])
    shift = stack.pose.shift_A + (stack.pose.rotation @ centre_A)[:, :2]
    rotation = mirror_pose_rotation(stack.pose.rotation @ turn)
    write_particles(run / "particles.star", replace(stack, pose=Pose(rotation, shift)))
    code, out, error = shell(
        "evaluate", run, "--truth", posed / "data" / "truth.star", "--json"
    )  # without a map: only poses are judged
    assert code == 0, error
    numbers = json.loads(out)
    assert numbers["mse"] < 1e-5
    assert numbers["hand"] == -1
    assert numbers["shift_error_A_median"] < 1e-2
    assert "fsc05_truth_A" not in numbers


def test_evaluation_against_other_particles_is_refused(shell, run, simulated):
    """A truth that lists other particles is an error, not a wrong number."""
    truth = (simulated / "truth.star").read_text().replace("@particles.mrcs", "@others.mrcs")
    (run / "truth.star").write_text(truth)
    code, _, error = shell("evaluate", run, "--truth", run / "truth.star")
    assert code == 2
    assert "not found" in error


def test_report_is_written_anew_from_the_folder(shell, run):
    """report DIR needs nothing but the folder; without a map there is none, and flex and prior runs have their own."""
    (run / "report.html").unlink()
    assert shell("report", run)[0] == 0
    assert (run / "report.html").stat().st_size > 50_000
    (run / "map.mrc").unlink()
    code, _, error = shell("report", run)
    assert code == 2
    assert "map.mrc" in error
    facts = json.loads((run / RUN).read_text())
    (run / RUN).write_text(json.dumps(facts | {"verb": "prior reconstruct"}))
    assert "writes its report itself" in shell("report", run)[2]
    (run / "latents.safetensors").touch()
    assert "flex analyze" in shell("report", run)[2]


def test_no_ctf_ignores_the_ctf(shell, posed, tmp_path):
    """--no-ctf reconstructs from the images as they are: another map."""
    code, _, error = shell("reconstruct", posed / "data" / "truth.star", "-o", tmp_path / "raw", "--no-ctf")
    assert code == 0, error
    assert (tmp_path / "raw" / "map.mrc").read_bytes() != (posed / "run" / "map.mrc").read_bytes()
    assert "ctf: false" in (tmp_path / "raw" / "settings.yaml").read_text()
