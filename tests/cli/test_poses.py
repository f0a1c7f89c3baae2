from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cryorbit.cli.main import main
from cryorbit.cli.pose_model_files import FACTS, MAP, OF_A_MODEL, WEIGHTS
from cryorbit.cli.progress import read_metrics
from cryorbit.cli.run_folder import CHECKPOINT, METRICS, RUN, read_json
from cryorbit.data import Volume
from cryorbit.io.checkpoint import load_state
from cryorbit.io.mrc import read_map, write_map
from cryorbit.io.particles import match_ids, read_particles

HEADER, IMAGE = 1024, 16 * 16 * 4
TINY = "--box-px 16 --width 0.125 --hypotheses 2 --max-images 96 --threads 1".split()


@pytest.fixture(scope="session")
def trained(simulated, tmp_path_factory) -> Path:
    """A model of the simulated stack's map, hardly trained; copy before changing it."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    words = ["poses", "train", simulated / "particles.star", "--map", simulated / "truth.mrc", "-o", folder]
    assert main([*map(str, words), *TINY]) == 0
    return folder


@pytest.fixture
def model(trained, tmp_path) -> Path:
    """A copy of the model that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


@pytest.fixture
def data(simulated, tmp_path) -> Path:
    """A copy of the stack that a test may spoil."""
    return Path(shutil.copytree(simulated, tmp_path / "data"))


def one_line(code: int, out: str, error: str, *words: str) -> None:
    """Exit code 2, and a single line that holds all of the words."""
    lines = [line for line in error.splitlines() if not line.startswith("warning:")]
    assert (code, out) == (2, "")
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert not [word for word in words if word.lower() not in error.lower()], error


def test_a_model_is_plain_files(trained):
    """Weights, facts, map and a table; the map is of the images' field of view, the table goes to the last image."""
    assert sorted(p.name for p in trained.iterdir()) == sorted([*OF_A_MODEL, "settings.yaml", RUN, METRICS])
    facts = json.loads((trained / FACTS).read_text())
    volume = read_map(trained / MAP)
    assert volume.box * volume.pixel_size_A == pytest.approx(facts["field_of_view_A"])
    assert facts["sources"]["map"]["file"].endswith("truth.mrc")
    rows = (trained / "training.csv").read_text().splitlines()
    assert rows[0].startswith("images,loss")
    assert int(rows[-1].split(",")[0]) == facts["training"]["images"] == 96
    assert read_json(trained / RUN)["finished"]


def test_poses_of_all_particles_come_out(simulated, trained, shell, tmp_path):
    """predict leaves poses RELION can read, with probability and entropy, and the posterior beside them."""
    out = tmp_path / "out"
    code, _, error = shell("poses", "predict", simulated / "particles.star", "--model", trained, "-o", out)
    assert code == 0, error
    solved, truth = read_particles(out / "particles.star"), read_particles(simulated / "truth.star")
    assert match_ids(solved.ids, truth.ids).tolist() == list(range(len(truth)))
    table = solved.tables["particles"]
    assert table["rlnMaxValueProbDistribution"].astype(float).between(0, 1).all()
    assert (table["cryorbitEntropyNats"].astype(float) <= 1e-5).all()
    tensors, _ = load_state(out / "posterior.safetensors")
    n = len(truth)
    assert tensors["rotation"].shape == (n, 8, 3, 3)
    assert bool((tensors["mode_probability"] > tensors["log_probability"][:, 0].exp() - 1e-5).all())
    assert "NaN" not in (out / "posterior.json").read_text()
    assert bool((tensors["log_probability"].diff(dim=1) <= 0).all())
    assert float(tensors["log_probability"].exp().sum(1).max()) < 1 + 1e-5
    about = json.loads((out / "posterior.json").read_text())
    assert about["particles"] == [str(i) for i in read_particles(simulated / "particles.star").ids]
    facts = read_json(out / RUN)
    assert facts["finished"]
    assert facts["searched"] == int(tensors["searched"].sum()) <= 0.15 * n


def test_without_refinement_the_poses_are_the_networks(simulated, trained, shell, tmp_path):
    """--no-refine writes the most probable hypothesis, and compares no image with the map."""
    out = tmp_path / "out"
    code, _, error = shell(
        "poses", "predict", simulated / "particles.star", "--model", trained, "-o", out, "--no-refine"
    )
    assert code == 0, error
    tensors, _ = load_state(out / "posterior.safetensors")
    found = read_particles(out / "particles.star").pose.rotation
    torch.testing.assert_close(found.float(), tensors["rotation"][:, 0], rtol=0, atol=1e-5)
    assert read_json(out / RUN)["evaluations_per_image"] == 0


def test_one_pose_per_image_has_no_probability(simulated, shell, tmp_path):
    """With an encoder of one hypothesis there is no column of probability or entropy, and posterior.json says why."""
    model, out, star = tmp_path / "model", tmp_path / "out", simulated / "particles.star"
    train = ("poses", "train", star, "--map", simulated / "truth.mrc", "-o", model, *TINY)
    assert shell(*train, "--encoder", "d4", "--max-images", 16, "--shift-sd-A", 5)[0] == 0
    code, _, error = shell("poses", "predict", star, "--model", model, "-o", out, "--most-searched", 0)
    assert code == 0, error
    assert "probabilities unknown" in error
    table = read_particles(out / "particles.star").tables["particles"]
    assert "rlnLogLikeliContribution" in table
    assert not {"rlnMaxValueProbDistribution", "cryorbitEntropyNats"} & set(table)
    about = json.loads((out / "posterior.json").read_text())
    assert all("NaN where" in about[name] for name in ("entropy", "mode_probability", "confidence"))
    tensors, _ = load_state(out / "posterior.safetensors")
    assert bool(tensors["entropy"].isnan().all() & tensors["confidence"].isnan().all())


def no_weights(model: Path) -> list[str]:
    (model / WEIGHTS).unlink()
    return [WEIGHTS, "not a finished"]


def cut_weights(model: Path) -> list[str]:
    with (model / WEIGHTS).open("r+b") as file:
        file.truncate(5000)
    return [WEIGHTS, "not whole"]


def other_version(model: Path) -> list[str]:
    facts = json.loads((model / FACTS).read_text())
    (model / FACTS).write_text(json.dumps(facts | {"format": 99}))
    return [FACTS, "format 99"]


def no_json(model: Path) -> list[str]:
    (model / FACTS).write_text("{")
    return [FACTS, "unreadable"]


def cut_map(model: Path) -> list[str]:
    with (model / MAP).open("r+b") as file:
        file.truncate(3000)
    return [MAP]


def a_file(model: Path) -> list[str]:
    shutil.rmtree(model)
    model.write_text("")
    return ["no such folder", "poses train"]


@pytest.mark.parametrize("spoil", [no_weights, cut_weights, other_version, no_json, cut_map, a_file])
def test_a_broken_model_is_one_line(simulated, model, shell, tmp_path, spoil):
    """Each fault of the model's folder is named; no output folder is left."""
    words = spoil(model)
    found = shell("poses", "predict", simulated / "particles.star", "--model", model, "-o", tmp_path / "out")
    one_line(*found, *words)
    assert not (tmp_path / "out").exists()


def nan_image(data: Path) -> list[str]:
    with (data / "particles.mrcs").open("r+b") as file:
        file.seek(HEADER + 41 * IMAGE + 64)
        file.write(np.float32(np.nan).tobytes())
    return ["row 42", "not finite"]


def blank_image(data: Path) -> list[str]:
    with (data / "particles.mrcs").open("r+b") as file:
        file.seek(HEADER + 6 * IMAGE)
        file.write(bytes(IMAGE))
    return ["row 7", "blank"]


def without_ctf(data: Path) -> list[str]:
    text = (data / "particles.star").read_text()
    (data / "particles.star").write_text(text.replace("_rlnDefocus", "_myDefocus"))
    return ["CTF", "--no-ctf"]


def smaller_field(data: Path) -> list[str]:
    text = (data / "particles.star").read_text()
    assert " 20.0" in text
    (data / "particles.star").write_text(text.replace(" 20.0", " 10.0"))
    return ["smaller than", "320 A", "32 px"]


def coarser_pixels(data: Path) -> list[str]:
    text = (data / "particles.star").read_text()
    (data / "particles.star").write_text(text.replace(" 20.0", " 40.0"))
    return ["too coarse"]


@pytest.mark.parametrize("spoil", [nan_image, blank_image, without_ctf, smaller_field, coarser_pixels])
def test_particles_that_cannot_be_predicted_are_one_line(data, trained, shell, tmp_path, spoil):
    """Each fault of the particles is named; no output folder is left."""
    words = spoil(data)
    found = shell("poses", "predict", data / "particles.star", "--model", trained, "-o", tmp_path / "out")
    one_line(*found, *words)
    assert not (tmp_path / "out").exists()


def test_training_on_bad_input_leaves_nothing(data, shell, tmp_path):
    """No map, a map that is none, an empty or broken map, broken or blank images, no CTF: one line, no folder."""
    out, star, truth = tmp_path / "out", data / "particles.star", data / "truth.mrc"
    train = ("poses", "train", star, "-o", out, *TINY)
    one_line(*shell(*train), "--map")
    one_line(*shell(*train, "--map", star), "particles.star")
    one_line(*shell(*train, "--map", tmp_path / "absent.mrc"), "absent.mrc")
    one_line(*shell(*train, "--map", truth, "--box-px", "32"), "--box-px")
    for spoil in (nan_image, blank_image):
        shutil.copytree(data, spoilt := tmp_path / spoil.__name__)
        words = spoil(spoilt)
        one_line(*shell("poses", "train", spoilt / star.name, "-o", out, *TINY, "--map", truth), *words)
    without_ctf(data)
    one_line(*shell(*train, "--map", truth), "CTF", "--no-ctf")
    assert not out.exists()


def constant(path: Path) -> str:
    write_map(path, Volume(torch.full((16, 16, 16), 3.0), 20.0))
    return "constant"


def not_finite(path: Path) -> str:
    write_map(path, Volume(torch.rand(16, 16, 16), 20.0))
    with path.open("r+b") as file:
        file.seek(HEADER + 100)
        file.write(np.float32(np.inf).tobytes())
    return "not finite"


def elsewhere(path: Path) -> str:
    along = torch.exp(-0.5 * ((torch.arange(64.0) - 12) / 2) ** 2)
    write_map(path, Volume(torch.einsum("z,y,x->zyx", along, along, along), 20.0))
    return "field of view"


@pytest.mark.parametrize("spoil", [constant, not_finite, elsewhere])
def test_a_map_that_is_at_fault_is_named(data, shell, tmp_path, spoil):
    """Each fault of the map is one line that begins with its file; no folder is left."""
    out, path = tmp_path / "out", tmp_path / "map.mrc"
    word = spoil(path)
    code, printed, error = shell("poses", "train", data / "particles.star", "-o", out, *TINY, "--map", path)
    one_line(code, printed, error, word)
    assert f"error: {path}: " in error
    assert not out.exists()


def test_a_folder_with_a_model_is_not_overwritten(simulated, model, shell):
    """Training into it is refused; resuming says that it is finished."""
    before = (model / WEIGHTS).read_bytes()
    words = ("poses", "train", simulated / "particles.star", "--map", simulated / "truth.mrc", "-o", model)
    one_line(*shell(*words, *TINY), "holds another run")
    code, _, error = shell("poses", "train", "-o", model, "--resume")
    assert code == 0
    assert "finished" in error
    assert (model / WEIGHTS).read_bytes() == before


@pytest.mark.slow
def test_a_training_killed_twice_ends_in_the_same_bits(simulated, tmp_path):
    """kill -9, then --resume alone: the weights are the unbroken run's, bit by bit."""
    program = [sys.executable, "-m", "cryorbit.cli.main", "poses", "train"]
    given = [str(simulated / "particles.star"), "--map", str(simulated / "truth.mrc"), *TINY]
    given += ["--max-images", "4000", "--checkpoint-every-s", "0.1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*program, *given, "-o", str(whole)], check=True, capture_output=True)
    total = len(read_metrics(whole / METRICS))
    for k in (1, 2):
        words = given if k == 1 else ["--resume"]
        process = subprocess.Popen([*program, *words, "-o", str(broken)], stderr=subprocess.DEVNULL)
        while process.poll() is None and len(read_metrics(broken / METRICS)) < k * total // 3:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not read_json(broken / RUN).get("finished"), "the run was not broken: it ended first"
    subprocess.run([*program, "--resume", "-o", str(broken)], check=True, capture_output=True)
    assert not (broken / CHECKPOINT).exists()
    one, other = (load_state(folder / WEIGHTS)[0] for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
