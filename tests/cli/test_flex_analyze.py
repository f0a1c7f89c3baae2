"""End to end on a tiny run: a model that moves one of two parts along a known direction of its latents."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from cryorbit.cli.flex_files import LATENTS, load_flex, save_flex
from cryorbit.data import Atoms, Gaussians, Pose
from cryorbit.inference.flex import FlexResult
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.io.atoms import read_atoms, write_atoms
from cryorbit.io.mrc import read_map
from cryorbit.io.mrc_stack import StackWriter
from cryorbit.io.particles import read_particles, write_particles
from cryorbit.models.deformation import make_gaussian_model
from cryorbit.physics.splat import gaussians_to_map
from cryorbit.report import surface

N, D, BOX, PIXEL = 120, 3, 24, 4.0
SHAPE = FlexSettings(latent=D, deformation="parts", parts=2, width=8, gates=False, count=40)
SAME_MAP = 1e-4  # relative to the largest density: float32 in the file and in the sum
PRINTED = 1e-5  # six digits in tables
SHORT = ("--no-pictures", "--count", 2, "--components", 1)


def tiny_run(folder):
    """A folder as `flex train` leaves it; latents spread most along z3, then z1."""
    g = torch.Generator().manual_seed(0)
    place = torch.randn(40, 3, generator=g) * torch.tensor([16.0, 7.0, 7.0])
    anchors = Gaussians(place, 1 + torch.rand(40, generator=g), torch.full((40,), 6.0))
    torch.manual_seed(1)  # the layers' own first weights
    model = make_gaussian_model(
        anchors, "parts", latent=D, unit_A=PIXEL, rank=32, parts=2, nodes=100, width=8, gates=False
    )
    with torch.no_grad():
        model.deformation.motion[-1].weight.mul_(40.0)  # it begins nearly still
    z = torch.randn(N, D, generator=g) * torch.tensor([0.6, 0.2, 1.0])
    precision = 20 * torch.eye(D).repeat(N, 1, 1)
    pose = Pose(torch.eye(3).repeat(N, 1, 1), torch.zeros(N, 2))
    misfit = 200 + 5 * torch.rand(N, generator=g)
    result = FlexResult(model.eval(), z, precision, pose, misfit, 400, BOX, PIXEL)
    folder.mkdir()
    save_flex(folder, result, SHAPE)
    with StackWriter(folder / "images.mrcs", box=BOX, pixel_size_A=PIXEL) as out:
        out.append(torch.randn(N, BOX, BOX, generator=g))
    stack = read_particles(folder / "images.mrcs", pixel_size_A=PIXEL)
    from dataclasses import replace

    write_particles(folder / "particles.star", replace(stack, pose=pose))
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("flex") / "run")


@pytest.fixture(scope="module")
def analysed(run_dir):
    """One analysis with everything in it, for the tests that only look."""
    from cryorbit.cli.main import main

    model = run_dir / "model.pdb"
    result, _ = load_flex(run_dir)
    write_atoms(model, atoms_in(result))
    options = "--groups 2 --components 2 --count 3 --model-frame particle --threads 1".split()
    arguments = ["flex", "analyze", str(run_dir), "--model", str(model), "--select", "pc2 < 0 and group != 2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surface, "_GRID", 48)  # coarse pictures: a tenth of the time
        assert main(arguments + options) == 0
    return run_dir / "analysis"


def atoms_in(result) -> Atoms:
    """A chain of atoms near the Gaussians at the mean latent."""
    with torch.no_grad():
        place = result.model(result.z.mean(0, keepdim=True)).position_A[0]
    n = len(place)
    return Atoms(place + 0.5, torch.full((n,), 6), torch.full((n,), 20.0), torch.ones(n))


def decoded(result, latents) -> list[torch.Tensor]:
    """Maps at latents, by the model itself."""
    maps = []
    for z in latents:
        with torch.no_grad():
            made = result.model(torch.as_tensor(np.asarray(z, np.float32))[None])
        one = Gaussians(made.position_A[0], made.amplitude[0], made.width_A)
        maps.append(gaussians_to_map(one, box=BOX, pixel_size_A=PIXEL).values)
    return maps


@pytest.mark.parametrize("name", ["pc1", "pc2", "path"])
def test_the_maps_of_a_series_are_those_of_its_latents(run_dir, analysed, name):
    """Each vol_NN.mrc is what the model shows at the latent written beside it, and not a map of some group."""
    result, _ = load_flex(run_dir)
    table = pd.read_csv(analysed / name / "latents.csv")
    wanted = decoded(result, table[["z1", "z2", "z3"]].to_numpy())
    found = [read_map(analysed / name / volume).values for volume in table["volume"]]
    assert len(found) >= 3
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) < SAME_MAP * float(other.abs().max())
    groups = [read_map(p).values for p in sorted((analysed / "kmeans").glob("vol_*.mrc"))]
    if name != "path":
        for one in found:
            assert min(float((one - g).abs().max()) for g in groups) > 10 * SAME_MAP * float(one.max())


def test_a_component_goes_from_quantile_to_quantile(run_dir, analysed):
    """The latents written lie on the axis through the mean, evenly from the 5 % to the 95 % quantile of the scores."""
    particles = pd.read_csv(analysed / "particles.csv")
    for number in (1, 2):
        table = pd.read_csv(analysed / f"pc{number}" / "latents.csv")
        low, high = particles[f"pc{number}"].quantile([0.05, 0.95])
        np.testing.assert_allclose(table["score"], np.linspace(low, high, 3), atol=1e-4)
        latents = table[["z1", "z2", "z3"]].to_numpy()
        np.testing.assert_allclose(np.diff(latents, 2, axis=0), 0, atol=1e-4)  # a straight line, even steps
        middle = particles[["z1", "z2", "z3"]].mean().to_numpy()
        step = latents[-1] - latents[0]
        off = np.cross(middle - latents[0], step) / np.linalg.norm(step)
        np.testing.assert_allclose(off, 0, atol=1e-4)
    first = pd.read_csv(analysed / "pc1" / "latents.csv")[["z1", "z2", "z3"]].to_numpy()
    assert np.abs(first[-1] - first[0]).argmax() == 2  # the widest of the latents


def test_groups_hold_every_particle_once(run_dir, analysed):
    """The STAR files share out the particles; each has as many as groups.csv says, and its nearest one is among them."""
    table = pd.read_csv(analysed / "kmeans" / "groups.csv")
    names = [
        read_particles(analysed / "kmeans" / f"particles_{k:03d}.star", images="if found").ids
        for k in table["group"]
    ]
    assert [len(n) for n in names] == table["particles"].tolist()
    everyone = read_particles(run_dir / "particles.star").ids
    assert sorted(i.rpartition("/")[2] for n in names for i in n) == sorted(
        i.rpartition("/")[2] for i in everyone
    )
    for own, nearest in zip(names, table["nearest_particle"], strict=True):
        assert nearest.rpartition("/")[2] in {i.rpartition("/")[2] for i in own}
    result, _ = load_flex(run_dir)
    rows = torch.tensor(table["row"].to_numpy()) - 1
    for k, one in enumerate(decoded(result, result.z[rows])):
        found = read_map(analysed / "kmeans" / f"vol_{k + 1:03d}.mrc").values
        assert float((found - one).abs().max()) < SAME_MAP * float(one.max())


def test_images_of_subsets_are_found_from_where_they_lie(analysed):
    """The paths in a subset's STAR file lead to the stack."""
    subset = read_particles(analysed / "kmeans" / "particles_001.star")
    assert subset.images[:2].shape == (2, BOX, BOX)


def test_a_selection_is_what_was_asked_for(analysed):
    particles = pd.read_csv(analysed / "particles.csv")
    wanted = ((particles["pc2"] < 0) & (particles["group"] != 2)).sum()
    assert len(read_particles(analysed / "selected.star", images="if found")) == wanted > 0


def test_atoms_follow_the_gaussians(run_dir, analysed):
    """The carried model is, at each step, within a little of the Gaussians that its atoms sit on."""
    result, _ = load_flex(run_dir)
    table = pd.read_csv(analysed / "pc1" / "latents.csv")
    with torch.no_grad():
        z = torch.tensor(table[["z1", "z2", "z3"]].to_numpy(np.float32))
        places = result.model(z).position_A
    home = atoms_in(result).position_A - 0.5
    moves = (places - home).norm(dim=-1)
    assert float(moves.max()) > 5  # there is something to follow
    for step in range(3):
        atoms = read_atoms(analysed / "model_pc1.pdb", model=step + 1)
        away = (atoms.position_A - places[step]).norm(dim=1)
        # half an angstrom on each axis to begin with; parts overlap, so neighbours disagree a little
        assert float(away.median()) < 0.5 * math.sqrt(3) + 0.25 * float(moves[step].median())


def test_displacements_are_those_of_the_first_component(run_dir, analysed):
    """Steps are from the first to the last latent of pc1, B-factors 8 pi^2 / 3 of the mean square, arrows overlay maps."""
    result, _ = load_flex(run_dir)
    latents = pd.read_csv(analysed / "pc1" / "latents.csv")[["z1", "z2", "z3"]].to_numpy(np.float32)
    with torch.no_grad():
        place = result.model(torch.tensor(latents)).position_A.double()
    table = pd.read_csv(analysed / "motion" / "displacement.csv")
    step = table[["step_x_A", "step_y_A", "step_z_A"]].to_numpy()
    np.testing.assert_allclose(step, (place[-1] - place[0]).numpy(), atol=1e-3)
    rms = (place - place.mean(0)).square().sum(-1).mean(0).sqrt()
    np.testing.assert_allclose(table["rms_A"], rms.numpy(), atol=1e-3)
    file = next((analysed / "motion").glob("displacement.[pc][di]*"))
    atoms = read_atoms(file)
    np.testing.assert_allclose(atoms.b_factor_A2, 8 * math.pi**2 / 3 * rms**2, atol=0.02)
    middle = place.mean(0) + (BOX // 2) * PIXEL  # a map with ORIGIN 0 has its centre there
    torch.testing.assert_close(atoms.position_A.double(), middle, rtol=0, atol=2e-3)
    lines = (analysed / "motion" / "arrows.bild").read_text().splitlines()
    assert sum(line.startswith(".arrow") for line in lines) == int(
        (np.linalg.norm(step, axis=1) >= 0.5 * PIXEL).sum()
    )


def test_the_film_plays_there_and_back(analysed):
    """An animated GIF of 2 (count - 1) frames, for ever, not all alike, on white."""
    from PIL import Image

    frames = []
    with Image.open(analysed / "pc1" / "film.gif") as film:
        assert film.info["loop"] == 0
        for k in range(film.n_frames):
            film.seek(k)
            frames.append(np.asarray(film.convert("RGB"), int))
    assert len(frames) == 4
    assert frames[0][0, 0].tolist() == [255, 255, 255]
    assert np.abs(frames[0] - frames[2]).mean() > 1
    np.testing.assert_array_equal(frames[1], frames[3])


def test_the_report_tells_all_and_stands_alone(analysed):
    page = (analysed / "report.html").read_text()
    for words in (
        "Map of each group",
        "Along component 2",
        "Along a path",
        "How far each part moves",
        "Misfit",
    ):
        assert words in page
    assert page.count("data:image/gif;base64") == 2
    assert 'src="http' not in page
    facts = json.loads((analysed / "analysis.json").read_text())
    assert facts["verdict"] in page.replace("&#39;", "'")
    assert facts["particles"] == N
    assert sum(facts["group_sizes"]) == N


def test_a_path_between_named_particles(shell, run_dir, tmp_path):
    """Its ends are the particles named, by name or by row."""
    names = read_particles(run_dir / "particles.star", images="if found").ids
    ends = ["--from-particle", names[4], "--to-particle", "8"]
    code, *_ = shell("flex", "analyze", run_dir, "-o", tmp_path / "a", *ends, "--groups", 2, *SHORT)
    assert code == 0
    table = pd.read_csv(tmp_path / "a" / "path" / "latents.csv")
    assert table["particle"].iloc[0] == names[4]
    assert table["particle"].iloc[-1] == names[7]
    assert (tmp_path / "a" / "report.html").exists()


def test_grouping_by_mixture(shell, run_dir, tmp_path):
    options = ["--grouping", "mixture", "--groups", 2, "--no-pictures", "--snap", "--count", 3]
    code, *_ = shell("flex", "analyze", run_dir, "-o", tmp_path / "a", *options)
    assert code == 0
    particles = pd.read_csv(tmp_path / "a" / "particles.csv")
    assert particles["probability"].between(0.5 - PRINTED, 1).all()
    snapped = pd.read_csv(tmp_path / "a" / "pc1" / "latents.csv")
    assert set(snapped["particle"]) <= set(particles["particle"])
    assert (tmp_path / "a" / "mixture" / "vol_002.mrc").exists()


def test_what_is_refused_leaves_nothing(shell, run_dir, tmp_path, analysed):
    """Occupied folders, unknown particles, models elsewhere, wrong selections: said, and no folder made."""
    out = tmp_path / "new"
    far = tmp_path / "far.pdb"
    far.write_bytes((run_dir / "model.pdb").read_bytes())
    wrong = {
        "Give both": ["--from-particle", "3"],
        "rows count from 1": ["--from-particle", "3", "--to-particle", "999"],
        "not found": ["--from-particle", "no@such.mrcs", "--to-particle", "3"],
        "is not a comparison": ["--select", "pc1 = 0"],
        "no particle fulfils": ["--select", "pc1 > 1e9"],
        "give --model-frame particle": ["--model", far],
        "there are groups 1 to": ["--model", far, "--model-group", "77"],
        "500 clusters of 120": ["--groups", "500"],
        "at least 2": ["--count", "1"],
    }
    for words, options in wrong.items():
        code, _, told = shell("flex", "analyze", run_dir, "-o", out, "--no-pictures", *options)
        assert (code, words in told) == (2, True), told
        assert list(tmp_path.iterdir()) == [far]
    code, _, told = shell("flex", "analyze", run_dir)
    assert code == 2
    assert "--overwrite" in told
    code, _, told = shell("flex", "analyze", run_dir, "-o", run_dir, "--overwrite")
    assert code == 2
    assert "no flex analyze wrote" in told
    assert (run_dir / LATENTS).exists()


def test_an_earlier_analysis_stays_until_the_new_one_is_whole(shell, run_dir, tmp_path, monkeypatch):
    """A failure half way leaves the old folder as it was; --overwrite replaces all of it when done."""
    out = tmp_path / "a"
    options = ["--groups", 2, *SHORT]
    assert shell("flex", "analyze", run_dir, "-o", out, *options)[0] == 0
    before = sorted(p.relative_to(out) for p in out.rglob("*"))
    from cryorbit.cli import flex_analysis_files
    from cryorbit.errors import BadFile

    def fails(*_: object) -> None:
        raise BadFile("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(flex_analysis_files, "write_motion", fails)
        assert shell("flex", "analyze", run_dir, "-o", out, "--overwrite", *options)[0] == 2
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    more = ["--groups", 3, *SHORT]
    assert shell("flex", "analyze", run_dir, "-o", out, "--overwrite", *more)[0] == 0
    assert (out / "kmeans" / "vol_003.mrc").exists()


def test_umap_is_asked_for_by_name(shell, run_dir, tmp_path, monkeypatch):
    """Without the package the error says what to install, or what to do instead."""
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    code, _, told = shell("flex", "analyze", run_dir, "-o", tmp_path / "a", "--umap", "--no-pictures")
    assert code == 2
    assert "umap-learn" in told
    assert "diffusion map" in told
