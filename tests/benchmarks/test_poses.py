"""The pose benchmark: what it draws is fresh and right, its Bayes rows are posteriors, its scores and bars are honest."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cryorbit.benchmarks import pose_phantoms, pose_poster, pose_scores, poses
from cryorbit.benchmarks import pose_tasks as t
from cryorbit.errors import BadFile, BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.geometry.symmetry import point_group
from cryorbit.models.so3_losses import cell_of, n_cells


@pytest.fixture(scope="module")
def specimen():
    return t.specimen_of(t.phantom(seed=0))


def test_noise_has_the_stated_ratio_to_the_signal(specimen):
    """Variance of signal over variance of noise is 0.5 over the whole box."""
    drawn = specimen.draw(300, torch.Generator().manual_seed(0))
    clean = specimen.project(drawn.rotation)
    ratio = clean.var((1, 2), unbiased=False).mean() / (drawn.images - clean).var()
    assert abs(float(ratio) - 0.5) < 0.03


def test_every_batch_is_fresh(specimen):
    """Two draws of one generator share no rotation; copies share the rotation and not the noise."""
    generator = torch.Generator().manual_seed(0)
    first, second = specimen.draw(8, generator, copies=2), specimen.draw(8, generator, copies=2)
    assert not torch.isclose(first.rotation[:, None], second.rotation[None]).all(-1).all(-1).any()
    assert torch.equal(first.rotation[:4], first.rotation[4:])
    assert float((first.images[:4] - first.images[4:]).abs().min(0).values.mean()) > 0


def test_closed_form_projections_are_those_of_the_phantom():
    """The phantom's projections in closed form equal the projector's to its interpolation error."""
    centres, weights = t.phantom_balls(None, seed=1)
    rotation = random_rotations(4, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    closed = pose_phantoms._ball_images(centres, weights, rotation)
    projected = t.specimen_of(t.phantom(seed=1)).project(rotation)
    assert float((closed - projected).norm() / closed.norm()) < 0.02


def test_map_branch_meets_brute_force_matching():
    """S4: the same logits and best cells as matching with the same projections; near it with the projector's."""
    brute, projector, ours = pose_phantoms.s4_projection_matching(0)
    assert projector["correlation"] > 0.999
    assert ours["correlation"] > 0.999999
    assert ours["same_argmax"] > 0.99
    assert abs(ours["nll"] - brute["nll"]) < 1e-3


def test_posterior_of_the_cells_is_calibrated(specimen):
    """Summed over finer cells, the Bayes row covers at its level and its likelihood beats that of the grid's points."""
    drawn = poses.unseen(specimen, 0, 300)
    points = t.scores(t.grid_posterior(specimen, drawn.images, order=1), drawn.rotation, order=1)
    exact = t.encoder_with_map(specimen, order=1, fine=2)
    cells = t.scores(t.predict(exact, drawn.images), drawn.rotation, order=1)
    assert cells["nll"] < points["nll"]
    assert abs(cells["coverage95"] - 0.95) < 0.05


def test_training_moves_an_encoder_towards_bayes(specimen):
    """Two seconds of training leave the uniform distribution far behind, on unseen images."""
    encoder = poses.slice_encoder(specimen, order=1, seed=0, l_max=5)
    generator = torch.Generator().manual_seed(0)
    spent = t.train(encoder, specimen, t.Training(seconds=2, batch=64), order=1, generator=generator)
    drawn = poses.unseen(specimen, 0, 200)
    row = t.scores(t.predict(encoder, drawn.images), drawn.rotation, order=1)
    assert row["nll"] < math.log(n_cells(1)) - 1.5
    assert spent["image_visits"] == spent["steps"] * 64


def test_refinement_sharpens_the_best_cells(specimen):
    """Gauss-Newton from the top cells brings the median error well below the grid's."""
    quiet = t.Specimen(specimen.volume, specimen.prepared, specimen.sigma / 5)
    drawn = poses.unseen(quiet, 0, 40)
    logits = t.grid_posterior(quiet, drawn.images, order=2)
    coarse = t.scores(logits, drawn.rotation, order=2)["median_deg"]
    fine = t.angle_scores(t.refine_top(quiet, drawn, logits, order=2), drawn.rotation)["median_deg"]
    assert fine < 0.5 * coarse


def test_modes_of_a_symmetric_posterior_are_found_and_even():
    """A posterior with one spike per copy has all modes, each with its share; with one copy missing it has not."""
    group = point_group("D2")
    truth = so3_grid(2).reshape(-1, 3, 3)[[5, 1000]]
    copies = cell_of(truth[:, None] @ group.float(), order=2)
    even = torch.full((2, n_cells(2)), -20.0).scatter_(1, copies, 0.0)
    found = pose_phantoms.mode_masses(even, truth, group, order=2, top=4)
    assert found["all_modes_found"] == 1
    assert found["mode_share_mean_min"] == pytest.approx(1, abs=1e-3)
    lacking = even.scatter(1, copies[:, :1], -20.0)
    assert pose_phantoms.mode_masses(lacking, truth, group, order=2, top=3)["all_modes_found"] == 0


def test_poster_targets_say_next_to_nothing(specimen):
    """1 / MSE of a noisy image is as good as uniform; the mask has 5 % of the cells."""
    drawn = specimen.draw(4, torch.Generator().manual_seed(0))
    templates = specimen.project(so3_grid(1).reshape(-1, 3, 3)).flatten(1)
    soft = pose_poster.inverse_mse(drawn.images, templates)
    mask = pose_poster.top_mask(soft)
    entropy = -(soft * soft.log()).sum(1)
    assert float(entropy.min()) > 0.999 * math.log(n_cells(1))
    assert (mask > 0).sum(1).tolist() == [round(0.05 * n_cells(1))] * 4
    torch.testing.assert_close(mask.sum(1), torch.ones(4))


def test_rows_are_kept_and_not_run_again(tmp_path, monkeypatch):
    """A second call reads the file; rows of others are marked; the table has the spread and the bars."""
    ran = []

    def fake(task, structure, seed):
        ran.append((task, seed))
        for method, median in ((poses.BAYES, 10.0), ("slice, map", 10.5 + seed)):
            yield {"method": method, "median_deg": median, "within_15deg": 0.5, "nll": 3.0} | {
                "entropy": 2.0,
                "coverage95": 0.95,
                "seconds": 1.0,
            }

    monkeypatch.setattr(pose_scores, "_task", fake)
    settings = pose_scores.PoseBenchmark(structure=tmp_path / "x.pdb", tasks=("S2",), seeds=2)
    said: list[str] = []
    first = pose_scores.run_pose_benchmark(settings, tmp_path / "rows.json", say=said.append)
    rows = pose_scores.run_pose_benchmark(settings, tmp_path / "rows.json", say=said.append)
    assert rows == first
    assert ran == [("S2", 0), ("S2", 1)]
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert {row["published"] for row in rows} == {True, False}
    text = pose_scores.table(rows)
    assert "11+-0.71" in text
    assert "MISS S2 slice, map: median / that of Bayes, grid points <= 1.08: 1.1" in text
    assert "met  S2 slice, map: coverage" in text


def test_wrong_use_is_refused(tmp_path):
    """Unknown tasks and unreadable files: BadInput, BadFile."""
    with pytest.raises(BadInput, match="S9"):
        pose_scores.PoseBenchmark(structure=tmp_path, tasks=("S9",))
    (tmp_path / "rows.json").write_text("{")
    settings = pose_scores.PoseBenchmark(structure=tmp_path, tasks=("S4",))
    with pytest.raises(BadFile, match="no readable rows"):
        pose_scores.run_pose_benchmark(settings, tmp_path / "rows.json")
