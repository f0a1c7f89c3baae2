"""`prior train`, `sample`, `reconstruct` and `denoise` end to end, with priors that were not or hardly trained."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from cryorbit.cli.prior_files import load_prior
from cryorbit.data import Volume
from cryorbit.io.atoms import read_atoms, write_atoms
from cryorbit.io.checkpoint import load_state
from cryorbit.io.mrc import read_map, write_map
from cryorbit.io.weights import save_weights
from cryorbit.models.point_prior import PointPrior, PointPriorShape
from cryorbit.models.triplane_prior import TriplanePrior
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from cryorbit.physics.atom_density import density_of_atoms
from cryorbit.physics.procedural_protein import procedural_protein
from gaussian_prior import gaussian_prior

TINY = (
    "--proteins 3 --held-back 1 --lengths 24 30 --box 8 --voxel-size-A 8 10 --map-resolution-A 20 24 --channels 8 --batch 2 "
    "--steps 6 --measured-batches 2 --record-every 2 --warm-up 2 --threads 1"
).split()
FAST = "--samples 2 --half-samples 2 --steps 6 --threads 1".split()


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    made = gaussian_prior()
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_weights(path, made.tensors(), made.card())
    return path


def test_a_training_leaves_a_prior_and_what_it_has_seen(shell, tmp_path):
    """Card and weights in one file, the list of structures beside it; run again, nothing happens."""
    code, _, told = shell("prior", "train", "-o", tmp_path / "run", *TINY)
    assert code == 0, told
    made = load_prior(tmp_path / "run")
    assert isinstance(made, VolumePrior)
    assert made.shape.voxel_size_A == (8.0, 10.0)
    assert made.shape.density_scale != 1.0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["finished"]
    assert facts["validation_dB"] is not None
    assert (
        json.loads((tmp_path / "run" / "structures.json").read_text())["procedural"]["train"]
        == "seeds 0 to 2"
    )
    code, _, told = shell("prior", "train", "-o", tmp_path / "run", "--resume")
    assert code == 0
    assert "finished" in told


def test_a_training_goes_on_with_the_structures_it_began_with(shell, tmp_path):
    """A folder that changed would be split anew, and the test set hold what was trained on. The card names no folder of the
    machine it was trained on.
    """
    folder, out = tmp_path / "structures", tmp_path / "run"
    folder.mkdir()
    for seed in range(4):
        write_atoms(folder / f"{seed}abc.pdb", procedural_protein(40 + seed, seed))
    line = ["prior", "train", "-o", out, *TINY, "--structures", folder, "--shares", 0.25, 0.25]
    code, _, told = shell(*line)
    assert code == 0, told
    _, meta = load_state(out / "prior.safetensors")
    assert meta["about"]["settings"]["structures"] == "structures"
    assert str(tmp_path) not in json.dumps(meta)

    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**facts, "finished": None}))
    write_atoms(folder / "9abc.pdb", procedural_protein(50, 9))
    code, _, told = shell("prior", "train", "-o", out, "--resume")
    assert code == 2
    assert "begin anew" in told
    (folder / "9abc.pdb").unlink()
    code, _, told = shell("prior", "train", "-o", out, "--resume")
    assert code == 0, told


def test_presets_set_defaults_and_the_command_line_wins(shell):
    code, out, _ = shell("prior", "train", "-o", "x", "--preset", "chains", "--steps", 7, "--print-config")
    assert code == 0
    assert "kind: points" in out
    assert "noise_centre: -1.0" in out
    assert "steps: 7" in out
    _, out, _ = shell("prior", "train", "-o", "x", "--preset", "shipped-32", "--print-config")
    assert "noise_centre: 0.5" in out
    assert "steps: 4000" in out


PLANES = (
    "--kind triplanes --proteins 3 --held-back 1 --lengths 24 30 --box 8 --voxel-size-A 8 8 --map-resolution-A 20 20 "
    "--channels 8 8 --hidden 8 --batch 2 --codec-steps 4 --steps 4 --measured-batches 2 --record-every 2 --warm-up 2 "
    "--threads 1"
).split()


def test_tri_planes_are_trained_sampled_and_not_put_under_data(shell, simulated, tmp_path):
    """One file for all kinds of priors; maps on the grid asked for; what it cannot do is said with its remedy."""
    run, out = tmp_path / "run", tmp_path / "samples"
    code, _, told = shell("prior", "train", "-o", run, *PLANES)
    assert code == 0, told
    assert isinstance(load_prior(run), TriplanePrior)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "validation_pearson" in metrics[0]
    assert json.loads((run / "run.json").read_text())["validation_dB"] is not None
    given = ("prior", "sample", run, "-o", out, "--count", 2, "--steps", 4)
    code, table, told = shell(*given)
    assert code == 0, told
    assert "rg_A" in table
    volume = read_map(out / "sample_002.mrc")
    assert (volume.box, volume.pixel_size_A) == (8, pytest.approx(8.0))
    code, _, told = shell(*given, "--overwrite", "--voxel-size-A", 5, "--box", 13)
    assert code == 0, told
    volume = read_map(out / "sample_002.mrc")
    assert (volume.box, volume.pixel_size_A) == (13, pytest.approx(5.0, rel=1e-3))
    code, _, told = shell(*given, "--overwrite", "--resolution-A", 10)
    assert code == 2
    assert "--map-resolution-A" in told
    code, _, told = shell(
        "prior", "reconstruct", simulated / "truth.star", "-o", tmp_path / "r", "--prior", run
    )
    assert code == 2
    assert "--kind volumes" in told
    assert not (tmp_path / "r").exists()


def test_tri_planes_of_many_voxel_sizes_are_refused(shell, tmp_path):
    code, _, told = shell("prior", "train", "-o", tmp_path / "run", *PLANES, "--voxel-size-A", 8, 9)
    assert code == 2
    assert "--voxel-size-A" in told


def test_nothing_to_train_on_is_refused(shell, tmp_path):
    code, _, told = shell("prior", "train", "-o", tmp_path / "run", "--proteins", 0)
    assert code == 2
    assert "--structures" in told
    assert not (tmp_path / "run").exists()


def test_maps_are_sampled_with_scores(shell, prior, tmp_path):
    out = tmp_path / "samples"
    code, table, told = shell(
        "prior", "sample", prior, "-o", out, "--count", 2, "--steps", 4, "--voxel-size-A", 20
    )
    assert code == 0, told
    assert read_map(out / "sample_002.mrc").pixel_size_A == pytest.approx(20.0)
    assert "rg_A" in table
    assert len(pd.read_csv(out / "scores.csv")) == 2
    code, _, told = shell("prior", "sample", prior, "-o", out)
    assert code == 2
    assert "--overwrite" in told
    code, _, told = shell("prior", "sample", prior, "-o", tmp_path / "more", "--residues", 50)
    assert code == 2
    assert "--residues" in told
    assert not (tmp_path / "more").exists()


def test_chains_are_sampled_with_scores(shell, tmp_path):
    made = PointPrior(PointPriorShape(hidden=4, layers=1), generator=torch.Generator().manual_seed(0))
    save_weights(tmp_path / "p.safetensors", made.tensors(), made.card())
    out = tmp_path / "samples"
    given = ("prior", "sample", tmp_path / "p.safetensors", "-o", out, "--count", 1, "--steps", 4)
    code, _, told = shell(*given, "--residues", 12, 9)
    assert code == 0, told
    atoms = read_atoms(out / "sample_001.pdb")
    assert atoms.chain is not None
    assert atoms.chain.tolist() == ["A"] * 12 + ["B"] * 9
    assert set(pd.read_csv(out / "scores.csv")["residues"]) == {12, 9}
    code, _, told = shell(*given, "--overwrite", "--box", 16)
    assert code == 2
    assert "--box" in told or "box" in told


def test_particles_and_a_prior_to_posterior_maps_and_a_report(shell, simulated, prior, tmp_path):
    """Maps on one grid, curves, numbers and a page; images not used are explained no worse than by an empty map."""
    out = tmp_path / "run"
    method = ("--method", "diffpir-spectrum-draw")
    code, _, told = shell(
        "prior", "reconstruct", simulated / "truth.star", "-o", out, "--prior", prior, *method, *FAST
    )
    assert code == 0, told
    boxes = {read_map(path).box for path in (*out.glob("*.mrc"), *(out / "samples").glob("*.mrc"))}
    assert boxes == {16}
    assert len(list((out / "samples").glob("*.mrc"))) == 2
    facts = json.loads((out / "run.json").read_text())
    assert facts["finished"]
    assert facts["chi_square"]["posterior"] < facts["chi_square"]["empty"]
    assert facts["misfit_error"]["posterior"] > 0
    assert facts["gain"] > 0
    page = (out / "report.html").read_text()
    assert "lean on the same prior" in page
    assert (out / "fsc.star").exists()
    assert (out / "fsc_posterior.star").exists()


def test_particles_of_no_use_are_refused_and_leave_nothing(shell, simulated, prior, tmp_path):
    """Without poses, too large for the prior, of chains where maps are wanted: each said with its remedy."""
    out = tmp_path / "run"
    code, _, told = shell("prior", "reconstruct", simulated / "particles.star", "-o", out, "--prior", prior)
    assert code == 2
    assert "no poses" in told
    small = VolumePrior(
        VolumePriorShape(channels=(8,), box=8, voxel_size_A=(18.0, 20.0), resolution_A=(40.0, 50.0)),
        generator=torch.Generator().manual_seed(0),
    )
    save_weights(tmp_path / "small.safetensors", small.tensors(), small.card())
    code, _, told = shell(
        "prior", "reconstruct", simulated / "truth.star", "-o", out, "--prior", tmp_path / "small.safetensors"
    )
    assert code == 2
    assert "--particle-diameter-A" in told
    assert "prior train --box" in told
    chains = PointPrior(PointPriorShape(hidden=4, layers=1), generator=torch.Generator().manual_seed(0))
    save_weights(tmp_path / "c.safetensors", chains.tensors(), chains.card())
    code, _, told = shell(
        "prior", "reconstruct", simulated / "truth.star", "-o", out, "--prior", tmp_path / "c.safetensors"
    )
    assert code == 2
    assert "prior of chains" in told
    code, _, told = shell(
        "prior", "reconstruct", simulated / "truth.star", "-o", out, "--prior", tmp_path / "no"
    )
    assert code == 2
    assert "no such prior" in told
    assert not out.exists()


def test_a_folder_of_samples_of_ones_own_is_not_replaced(shell, simulated, prior, tmp_path):
    mine = tmp_path / "run" / "samples" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    given = ("prior", "reconstruct", simulated / "truth.star", "-o", tmp_path / "run", "--prior", prior)
    code, _, told = shell(*given, *FAST)
    assert code == 2
    assert "holds another run (samples)" in told
    assert mine.read_text() == "mine"


def half_maps(folder, *, noise: float) -> tuple[Volume, list]:
    axis = torch.arange(16) - 8.0
    r2 = axis[:, None, None] ** 2 + (axis[:, None] * 1.4) ** 2 + axis**2
    truth = Volume(5 * torch.exp(-r2 / 18), 20.0)
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name in ("half1.mrc", "half2.mrc"):
        values = truth.values + noise * torch.randn(16, 16, 16, generator=generator)
        write_map(folder / name, Volume(values, 20.0, origin_A=(1.0, 2.0, 3.0)))
        paths.append(folder / name)
    return truth, paths


def test_half_maps_are_denoised(shell, tmp_path):
    """With the shipped prior: nearer to the truth than half of their mean's error, on their grid and place, in their grey
    scale; the spread is beside it.
    """
    grey = 40.0
    drawn = density_of_atoms(
        procedural_protein(90, seed=2_000_000), box=32, pixel_size_A=3.0, resolution_A=8.0
    )
    truth = grey * drawn.values.float()
    g = torch.Generator().manual_seed(0)
    paths = [tmp_path / "half1.mrc", tmp_path / "half2.mrc"]
    for path in paths:
        noisy = truth + 0.5 * truth.std() * torch.randn(truth.shape, generator=g)
        write_map(path, Volume(noisy, 3.0, origin_A=(1.0, 2.0, 3.0)))
    code, _, told = shell("prior", "denoise", *paths, "-o", tmp_path / "out.mrc", *FAST)
    assert code == 0, told
    found = read_map(tmp_path / "out.mrc")
    assert found.origin_A == pytest.approx((1.0, 2.0, 3.0))
    mean = torch.stack([read_map(p).values for p in paths]).mean(0)
    assert float((found.values - truth).norm()) < 0.5 * float((mean - truth).norm())
    spread = read_map(tmp_path / "out_spread.mrc").values
    assert 0 <= float(spread.min()) < float(spread.max()) < float(truth.max())
    code, _, told = shell("prior", "denoise", *paths, "-o", tmp_path / "out.mrc")
    assert code == 2
    assert "--overwrite" in told


def test_half_maps_that_the_prior_does_not_suit_are_weighted_by_what_they_share(shell, prior, tmp_path):
    """Exit code 1, a map nearer to the truth than half of their mean's error all the same, and no spread, not even an old
    one: it would be of another map.
    """
    truth, paths = half_maps(tmp_path, noise=0.5)
    (tmp_path / "out_spread.mrc").write_bytes(b"old")
    given = ("prior", "denoise", *paths, "-o", tmp_path / "out.mrc", "--prior", prior, "--overwrite")
    code, _, told = shell(*given, *FAST)
    assert code == 1, told
    assert "no spread" in told
    assert not (tmp_path / "out_spread.mrc").exists()
    mean = torch.stack([read_map(p).values for p in paths]).mean(0)
    assert float((read_map(tmp_path / "out.mrc").values - truth.values).norm()) < 0.5 * float(
        (mean - truth.values).norm()
    )


@pytest.mark.parametrize("option", ["--contrast", "--resolution-A"])
def test_denoising_offers_no_option_of_images(shell, prior, tmp_path, option):
    """What half maps cannot obey is refused, not left undone."""
    _, paths = half_maps(tmp_path, noise=0.5)
    value = {"--contrast": "dark", "--resolution-A": 60}[option]
    given = ("prior", "denoise", *paths, "-o", tmp_path / "o.mrc", "--prior", prior, *FAST)
    code, _, told = shell(*given, option, value)
    assert code == 2
    assert option in told
    assert not (tmp_path / "o.mrc").exists()


def test_half_maps_that_share_nothing_are_refused(shell, prior, tmp_path):
    _, paths = half_maps(tmp_path, noise=0.5)
    write_map(tmp_path / "dark.mrc", Volume(-read_map(paths[1]).values, 20.0))
    given = ("prior", "denoise", paths[0], tmp_path / "dark.mrc", "-o", tmp_path / "o.mrc", "--prior", prior)
    code, _, told = shell(*given)
    assert code == 2
    assert "share no density" in told
    assert "half1.mrc" in told


def test_the_same_half_map_twice_is_refused(shell, prior, tmp_path):
    _, paths = half_maps(tmp_path, noise=0.5)
    code, _, told = shell("prior", "denoise", paths[0], paths[0], "-o", tmp_path / "o.mrc", "--prior", prior)
    assert code == 2
    assert "the same" in told
    assert not (tmp_path / "o.mrc").exists()
