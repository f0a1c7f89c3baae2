"""`cryorbit refine`: outputs that other commands read, and clear words where it cannot run."""

from __future__ import annotations

import json
import shutil

import torch

from cryorbit.analysis.pose_error import pose_errors
from cryorbit.data import Volume
from cryorbit.io.mrc import read_map, write_map
from cryorbit.io.particles import read_particles, require_pose

FEW = ["--rounds", 2, "--threads", 1, "--particle-diameter-A", 200, "--start-resolution-A", 60]


def test_poses_and_maps_are_left_for_others(shell, simulated, tmp_path):
    data = shutil.copytree(simulated, tmp_path / "data")
    code, _, said = shell("refine", data / "truth.star", "-o", tmp_path / "run", *FEW, "--defocus")
    assert code == 0, said
    out = tmp_path / "run"
    found = read_particles(out / "particles.star")
    assert set(found.half_set.tolist()) == {1, 2}
    assert {"cryorbitScale", "cryorbitAngleSdDeg"} <= set(found.tables["particles"])
    truth = require_pose(read_particles(data / "truth.star", images="absent"))
    assert pose_errors(require_pose(found), truth).medse < 0.1
    assert read_map(out / "half1.mrc").box == 16
    facts = json.loads((out / "run.json").read_text())
    assert facts["finished"]
    assert facts["verdict"]
    assert "Refined" in facts["verdict"] or "Still moving" in facts["verdict"]
    assert facts["verdict"].split(":")[0].split()[0] in (out / "report.html").read_text()
    assert not (out / "checkpoint.safetensors").exists()
    code, _, said = shell("refine", "-o", out, "--resume")
    assert code == 0
    assert "finished" in said
    code, _, said = shell("reconstruct", out / "particles.star", "-o", tmp_path / "again", "--threads", 1)
    assert code == 0, said


def test_a_map_stands_in_for_poses(shell, simulated, tmp_path):
    data = shutil.copytree(simulated, tmp_path / "data")
    line = ["refine", data / "particles.star", "--map", data / "truth.mrc", "-o", tmp_path / "run", *FEW]
    code, _, said = shell(*line)
    assert code == 0, said
    assert "search of all poses" in said


def test_what_cannot_be_refined_is_refused_with_the_remedy(shell, simulated, tmp_path):
    data = shutil.copytree(simulated, tmp_path / "data")
    code, _, said = shell("refine", data / "particles.star", "-o", tmp_path / "run")
    assert code == 2
    assert "particles.star" in said
    assert "--map" in said
    assert not (tmp_path / "run").exists()
    code, _, said = shell(
        "refine", data / "particles.star", "--map", tmp_path / "no.mrc", "-o", tmp_path / "run"
    )
    assert code == 2
    assert "no.mrc" in said
    flat = tmp_path / "flat.mrc"
    write_map(flat, Volume(torch.ones(16, 16, 16), 10.0))
    code, _, said = shell("refine", data / "particles.star", "--map", flat, "-o", tmp_path / "run", *FEW)
    assert code == 2
    assert "flat.mrc: the map is constant" in said
    assert not (tmp_path / "run").exists()
    code, _, said = shell("refine", data / "truth.star", "-o", tmp_path / "run", "--rounds", 0)
    assert code == 2
    assert "--rounds" in said
