from __future__ import annotations

import json

import pytest
import torch

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.data import Gaussians, Volume
from cryorbit.io.atoms import read_atoms
from cryorbit.io.gaussians import load_gaussians, read_gaussians
from cryorbit.io.mrc import write_map
from cryorbit.physics.splat import gaussians_to_map

PIXEL = 3.0
ORIGIN = (30.0, -6.0, 9.0)


@pytest.fixture(scope="module")
def volume() -> Volume:
    g = torch.Generator().manual_seed(3)
    place = 4.0 * PIXEL * torch.randn(30, 3, generator=g).clamp(-2, 2)
    cloud = Gaussians(place, 50 + 50 * torch.rand(30, generator=g), torch.full((30,), 1.3 * PIXEL))
    made = gaussians_to_map(cloud, box=25, pixel_size_A=PIXEL)
    return Volume(made.values, PIXEL, origin_A=ORIGIN)


@pytest.fixture
def map_file(volume, tmp_path):
    path = tmp_path / "map.mrc"
    write_map(path, volume)
    return path


@pytest.mark.parametrize("ending", ["ply", "safetensors"])
def test_the_gaussians_written_are_the_map(shell, map_file, volume, tmp_path, ending):
    """Read back and drawn, they correlate with the map to the resolution that the verb states as reached."""
    out = tmp_path / f"g.{ending}"
    code, _, told = shell("flex", "fit", map_file, "-o", out, "--count", 40)
    assert code == 0
    assert "FSC 0.9 with the map to" in told
    gaussians = read_gaussians(out)
    assert f"{len(gaussians)} Gaussians" in told
    drawn = gaussians_to_map(gaussians, box=25, pixel_size_A=PIXEL)
    assert fourier_shell_correlation(volume, drawn).resolution_A(0.9) <= 3 * PIXEL
    if ending == "ply":
        cfg = json.loads((tmp_path / "cfg.json").read_text())["cfg"]
        assert cfg["nVoxel"] == [25] * 3
        assert cfg["pixelSize"] == PIXEL
    else:
        assert load_gaussians(out)[1] == {"box": 25, "pixel_size_A": PIXEL}


def test_pseudo_atoms_lie_where_viewers_show_the_map(shell, map_file, volume, tmp_path):
    """Their middle is the map's, counted from the header's ORIGIN as ChimeraX does."""
    code, *_ = shell("flex", "fit", map_file, "-o", tmp_path / "g.cif", "--count", 40)
    assert code == 0
    atoms = read_atoms(tmp_path / "g.cif")
    weight = atoms.occupancy * atoms.b_factor_A2.clamp_min(1e-3)
    middle = (weight[:, None] * atoms.position_A).sum(0) / weight.sum()
    values = volume.values.clamp_min(0)
    index = torch.arange(25.0) * PIXEL
    there = torch.stack([(values.sum(axes) * index).sum() for axes in ((0, 1), (0, 2), (1, 2))])
    wanted = there / values.sum() + torch.tensor(ORIGIN)
    assert float((middle - wanted).norm()) < PIXEL  # the weight is not quite the amplitude


def test_too_few_gaussians_are_said_to_be(shell, map_file, tmp_path):
    code, _, told = shell("flex", "fit", map_file, "-o", tmp_path / "g.ply", "--count", 3, "--most", 3)
    assert code == 1
    assert "were not reached with 3 Gaussians" in told


def test_nothing_is_replaced_unasked(shell, map_file, tmp_path):
    (tmp_path / "cfg.json").write_text("{}")
    code, _, told = shell("flex", "fit", map_file, "-o", tmp_path / "g.ply")
    assert code == 2
    assert "is there already" in told
    assert not (tmp_path / "g.ply").exists()
    code, _, told = shell("flex", "fit", map_file, "-o", tmp_path / "g.obj")
    assert code == 2
    assert "no known format" in told
