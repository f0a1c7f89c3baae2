from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from cryorbit.benchmarks.prior_proteins import MapGrid
from cryorbit.cli import bench_prior
from cryorbit.io.atoms import write_atoms
from cryorbit.io.weights import save_weights
from cryorbit.models.point_prior import PointPrior, PointPriorShape
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from cryorbit.physics.procedural_protein import procedural_protein


@pytest.fixture
def tiny(tmp_path):
    """An untrained prior's file, whose card says it was trained on one entry."""
    prior = VolumePrior(
        VolumePriorShape(channels=(4, 8), voxel_size_A=(2.5, 4.0), resolution_A=(6.0, 12.0)),
        generator=torch.Generator().manual_seed(0),
    )
    path = tmp_path / "prior.safetensors"
    save_weights(path, prior.tensors(), prior.card(), about={"structures": {"train": ["1abc_A"]}})
    return path


def test_bench_prior_keeps_rows_and_fails_where_a_bar_is_missed(shell, tmp_path, tiny):
    """Chance and an untrained prior of a made-up protein; a second call adds nothing."""
    line = ["bench", "prior", "--json", tmp_path / "o.json", "--prior", tiny, "--proteins", 40, "--views", 3]
    line += ["--snr", 0.1, "--seeds", 1, "--samples", 3, "--steps", 2, "--jobs", 1]
    line += ["--method", "chance, another protein", "diffpir-spectrum-draw"]
    for _ in range(2):
        code, out, _ = shell(*line)
        assert code == 1
        assert "MISS" in out
        assert "EquiCryo 0.85" in out
        rows = json.loads((tmp_path / "o.json").read_text())
        assert [row["method"] for row in rows] == [
            "chance, another protein",
            "diffpir-spectrum-draw",
        ]
    kept = (tmp_path / "o.json").read_text()
    code, _, error = shell(*line, "--steps", 3)
    assert code == 2
    assert "with steps 2, samples 3, not steps 3, samples 3" in error
    assert (tmp_path / "o.json").read_text() == kept


def test_bench_prior_draws_maps_beside_the_truth(shell, tmp_path, tiny, monkeypatch):
    """One picture per condition, named by it; those that are there are kept as they are. A small box, to be quick."""
    monkeypatch.setattr(bench_prior, "MapGrid", lambda: MapGrid(box=16, voxel_size_A=4.0))
    line = ["bench", "prior", "--json", tmp_path / "o.json", "--prior", tiny, "--proteins", 40, "--views", 3]
    line += [
        "--snr",
        0.1,
        "--seeds",
        2,
        "--samples",
        2,
        "--steps",
        2,
        "--jobs",
        1,
        "--figures",
        tmp_path / "f",
    ]
    line += ["--method", "chance, another protein"]
    shell(*line)
    (picture,) = (tmp_path / "f").iterdir()
    assert picture.name == "procedural-40-0_3_images_snr_0.1.png"
    with Image.open(picture) as image:
        width, height = image.size
    assert width == 2400
    assert 800 < height < width
    picture.write_bytes(b"mine")
    shell(*line)
    assert picture.read_bytes() == b"mine"


def test_bench_prior_refuses_what_the_prior_of_chains_was_trained_on(shell, tmp_path, tiny):
    """As what the prior of maps was; before any row is made."""
    folder = tmp_path / "structures"
    folder.mkdir()
    write_atoms(folder / "2xyz.pdb", procedural_protein(40, seed=1))
    chains = PointPrior(PointPriorShape(hidden=4, layers=1), generator=torch.Generator().manual_seed(0))
    path = tmp_path / "chains.safetensors"
    save_weights(path, chains.tensors(), chains.card(), about={"structures": {"train": ["2xyz_A"]}})
    line = ["bench", "prior", "--json", tmp_path / "o.json", "--prior", tiny, "--structures", folder]
    code, _, error = shell(*line, "--proteins", "2xyz", "--task", "units", "--chain-prior", path)
    assert code == 2
    assert "trained on it" in error
    assert not (tmp_path / "o.json").exists()


def test_bench_prior_refuses_a_name_that_is_no_length(shell, tmp_path, tiny):
    code, _, error = shell(
        "bench", "prior", "--json", tmp_path / "o.json", "--prior", tiny, "--proteins", "6lyz"
    )
    assert code == 2
    assert "--structures" in error
    assert not (tmp_path / "o.json").exists()
