"""The prior benchmark: what its likelihoods, scores, refusals and verdicts say, with untrained tiny priors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cryorbit.analysis.map_scores import pearson
from cryorbit.analysis.pose_error import pose_errors
from cryorbit.benchmarks import prior_units
from cryorbit.benchmarks.prior_halves import MEAN, TASK, halves_verdict, of_half_maps
from cryorbit.benchmarks.prior_halves import OURS as DENOISED
from cryorbit.benchmarks.prior_maps import (
    MapCell,
    MapTask,
    density_mask,
    fingerprint,
    map_cells,
    map_scores,
    methods_for,
)
from cryorbit.benchmarks.prior_methods import (
    CHANCE,
    MORE,
    ROOMY,
    WITH_ROOM,
    Outcome,
    SamplerPlan,
    chance_map,
    radial_map,
    radial_mean,
)
from cryorbit.benchmarks.prior_poses import OURS, PLAIN, PoseLoop, PosesCell, PosesTask, poses_verdict
from cryorbit.benchmarks.prior_proteins import FIRST_SEED, MapGrid, benchmark_proteins, made_up, refuse_seen
from cryorbit.benchmarks.prior_table import map_table, map_verdict
from cryorbit.benchmarks.prior_units import UnitsCell, UnitsTask, images_of_points
from cryorbit.benchmarks.prior_views import CLEAN_SNR, draw_views, exact_images
from cryorbit.data import Pose
from cryorbit.errors import BadInput
from cryorbit.models.point_prior import PointPrior, PointPriorShape
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from cryorbit.physics.procedural_protein import procedural_protein
from physics_models import uniform_rotations

GRID = MapGrid(box=16, voxel_size_A=4.0, resolution_A=10.0)


@pytest.fixture(scope="module")
def protein():
    return made_up(["40"])[0]


@pytest.fixture(scope="module")
def prior():
    shape = VolumePriorShape(
        channels=(4, 8), box=16, density_scale=1.0, voxel_size_A=(3.0, 4.0), resolution_A=(8.0, 12.0)
    )
    return VolumePrior(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("box", [16, 15])
@pytest.mark.parametrize("snr", [100.0, 0.1])
def test_the_truth_explains_its_images_as_well_as_noise_allows(protein, box, snr):
    """chi^2 per number compared is 1 within four standard deviations, 4 sqrt(2 / count)."""
    truth = MapGrid(box=box, voxel_size_A=4.0, resolution_A=10.0).map_of(protein.atoms)
    data = draw_views(truth, pixel_size_A=4.0, views=6, snr=snr, seed=1).whole
    assert float(data.chi_square(truth)) / data.count == pytest.approx(1, abs=4 * math.sqrt(2 / data.count))


def test_folds_hold_out_every_image_once(protein):
    """What is held out adds up to the whole, for few views and for many."""
    truth = GRID.map_of(protein.atoms)
    for views in (3, 8):
        drawn = draw_views(truth, pixel_size_A=4.0, views=views, snr=1.0, seed=0)
        assert sum(held.count for _, held in drawn.folds) == pytest.approx(drawn.whole.count)
        back = sum(held.back_projection for _, held in drawn.folds)
        torch.testing.assert_close(back, drawn.whole.back_projection, rtol=1e-4, atol=1e-4)


def test_an_image_along_the_beam_is_the_sum_of_slices(protein):
    """With the identity as pose nothing is interpolated, so all that differs is frequencies beyond Nyquist, 3e-3 here."""
    truth = MapGrid(box=15, voxel_size_A=4.0, resolution_A=16.0).map_of(protein.atoms)
    pose = Pose(torch.eye(3)[None], torch.zeros(1, 2))
    image = exact_images(truth, pose, None, pixel_size_A=4.0)[0]
    summed = truth.double().sum(0)
    assert float((image - summed).norm() / summed.norm()) < 6e-3


def test_radial_mean_turns_with_nothing():
    """Constant on shells, and the mean of the map stays."""
    values = torch.rand(9, 9, 9, generator=torch.Generator().manual_seed(0))
    mean = radial_mean(values)
    torch.testing.assert_close(mean, mean.flip(0).transpose(0, 2))
    assert float(mean.mean()) == pytest.approx(float(values.mean()), rel=1e-5)


def test_chance_knows_the_size_only(protein):
    other = made_up(["60", "41"])
    near = chance_map(CHANCE[0], protein, [protein, *other], GRID)
    assert near.about["what"] == other[1].name
    truth = GRID.map_of(protein.atoms)
    for values in (near.map, radial_map(40, GRID, count=2)):
        assert 0 < pearson(values, truth) < 0.99


def test_a_prior_is_refused_for_what_it_was_trained_on(protein):
    """By name in any case, by entry, and by a relative's sequence; strangers pass."""
    sequence = "MKVLAAGGHTREWQPLLKDFGHIKNMSTVWYACDEFGHIKLMNPQRSTVW"
    known = {"1abc_A": sequence[:-3] + "AAA", "9xyz_A": "WWPPHHDDGGSSTTYYFFEEQQNNKKRR"}
    ours = [type(protein)("2def", 50, protein.atoms, protein.ca_A, sequence)]
    refuse_seen(ours, [], sequences=known)
    refuse_seen(ours, ["9xyz"], sequences=known)
    for seen in (["2DEF"], ["2def_A"], ["1abc_A"], ["1ABC"]):
        with pytest.raises(BadInput, match="trained on"):
            refuse_seen(ours, seen, sequences=known)


def test_names_without_a_folder_are_lengths():
    with pytest.raises(BadInput, match="numbers of residues"):
        benchmark_proteins(None, ["6lyz"])


def test_costly_samplers_run_on_the_first_proteins_only(protein):
    proteins = [protein, *made_up(["41"])]
    task = MapTask(views=(3,), snr=(1.0,), seeds=2, more_on=1)
    cells = list(map_cells(proteins, task, GRID))
    assert len(cells) == 4
    ran = [set(MORE) <= set(methods_for(c, task, (), prior=True)) for c in cells]
    assert ran == [True, False, False, False]
    assert not set(methods_for(cells[0], task, (), prior=False)) & set(MORE)


def test_proteins_of_one_seed_are_seen_from_directions_of_their_own():
    first, second = made_up(["40", "41"])
    poses = [
        MapCell(p, [first, second], GRID, 3, 1.0, 0).unguided.views.pose.rotation
        for p in (first, second, first)
    ]
    assert torch.equal(poses[0], poses[2])
    assert not torch.equal(poses[0], poses[1])


def test_rows_of_a_sampler_are_those_of_its_prior(protein, prior):
    """The row has every field that issue and table name; another prior's row is another row."""
    cell = MapCell(protein, [protein], GRID, 3, 1.0, 0)
    plan = SamplerPlan(samples=3, steps=2)
    row = cell.row(
        "diffpir-spectrum-draw", cell.run("diffpir-spectrum-draw", prior, plan), fingerprint(prior)
    )
    wanted = "protein views snr method seed pearson fsc_area coverage90 seconds network_passes"
    assert set(wanted.split()) <= set(row)
    assert (row["network_passes"], row["prior"]) == (2, fingerprint(prior))
    again = VolumePrior.from_state(prior.tensors(), prior.card())
    other = VolumePrior(prior.shape, generator=torch.Generator().manual_seed(1))
    assert fingerprint(again) == fingerprint(prior) != fingerprint(other)
    assert cell.key("tv", "x")["prior"] == ""
    assert "3 views" in map_table([row])


def test_room_for_error_is_filled_by_the_images_and_told_by_the_spread(protein, prior):
    """An untrained prior's map moves towards what was seen and its samples apart; with no room nothing moves."""
    cell = MapCell(protein, [protein], GRID, 6, CLEAN_SNR, 0)
    name = ROOMY[0].removesuffix(WITH_ROOM)
    plan = SamplerPlan(samples=3, steps=2, room=0.0)
    plain, none = (cell.run(m, prior, plan) for m in (name, ROOMY[0]))
    assert torch.equal(none.map, plain.map)
    wide = cell.run(ROOMY[0], prior, replace(plan, room=2.0))
    data = cell.unguided.views.whole
    assert float(data.chi_square(wide.map)) < 0.9 * float(data.chi_square(plain.map))
    assert wide.network_passes == plain.network_passes
    with pytest.raises(BadInput, match="--room"):
        SamplerPlan(room=-1.0)
    inside = cell.truth > 0.01 * cell.truth.max()
    assert float(wide.samples.std(0)[inside].mean()) > float(plain.samples.std(0)[inside].mean())
    longer = cell.run(name, prior, replace(plan, steps=3))
    assert longer.network_passes > plain.network_passes, "chains of another plan were taken for these"


def row_of(method: str, value: float, **more):
    """A row of the main task."""
    start = {"task": "maps", "protein": "p", "views": 3, "snr": 0.1, "seed": 0, "fsc_area": 0.1}
    prior = "" if method in ("tv", "tv, oracle-tuned") else "x"
    return (
        start
        | {"method": method, "pearson": value, "prior": prior, "coverage90": None, "seconds": 1.0}
        | more
    )


@pytest.mark.parametrize(("ours", "met"), [(0.96, True), (0.94, False)])
def test_the_bar_is_the_best_map_without_a_prior(ours, met):
    """0.05 above it with 3 views; the oracle-tuned map counts."""
    rows = [row_of("tv", 0.8), row_of("tv, oracle-tuned", 0.9), row_of("diffpir", ours)]
    (line,) = map_verdict(rows, "x")
    assert line.startswith("met " if met else "MISS")
    assert map_verdict(rows, "other prior") == []


def test_the_bar_compares_what_both_were_run_on():
    """A map without a prior of a protein that no sampler has come to yet does not count."""
    rows = [row_of("tv", 0.8), row_of("diffpir", 0.9), row_of("tv", 1.0, protein="later")]
    (line,) = map_verdict(rows, "x")
    assert "best without a prior 0.800" in line
    assert line.startswith("met ")


@pytest.mark.parametrize(("coverage", "met"), [(0.9, True), (0.8, False), (0.97, False)])
def test_coverage_is_judged_on_both_sides(coverage, met):
    (line,) = map_verdict([row_of("diffpir-spectrum-draw", 0.9, coverage90=coverage)], "x")
    assert line.startswith("met " if met else "MISS")


@pytest.mark.parametrize("box", [16, 15])
def test_half_maps_say_their_mean_with_their_noise(box):
    """The likeliest map is the mean within Nyquist's sphere; chi^2 of the truth is what noise gives, to 10 %."""
    g = torch.Generator().manual_seed(0)
    axis = torch.arange(box) - box // 2
    truth = torch.exp(-(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) / 18.0) * 5
    first, second = (truth + 0.3 * torch.randn(truth.shape, generator=g) for _ in range(2))
    data = of_half_maps(first, second, 3.0)
    assert float(data.chi_square(truth)) / data.count == pytest.approx(1, abs=0.1)
    middle = data.filtered((first + second) / 2, (data.weight > 0).to(first))
    assert float(data.gradient(middle).norm() / data.back_projection.norm()) < 1e-4


@pytest.mark.parametrize(
    ("area", "gain", "met"), [(0.2, 0.01, True), (0.2, -0.01, False), (0.48, -0.01, False)]
)
def test_denoising_must_gain_where_data_are_poor_and_lose_nothing_where_good(area, gain, met):
    about = {"task": TASK, "protein": "p", "views": 50, "snr": 0.1}
    rows = [{**about, "method": MEAN, "prior": "", "fsc_area": 0.3, "snr": 10.0}]  # of other images
    rows += [{**about, "method": MEAN, "prior": "", "fsc_area": area}]
    rows += [{**about, "method": DENOISED, "prior": "x", "fsc_area": area + gain}]
    (line,) = halves_verdict(rows, "x")
    assert line.startswith("met " if met else "MISS")


def test_poses_given_the_true_map_are_near_the_truth(protein, prior):
    """At SNR 20 the posterior's best pose is off by little more than the grid's steps of 15 degrees and 2 px; chance 120."""
    cell = PosesCell(protein, GRID, PosesTask(pose_snr=20.0), 50)
    loop = PoseLoop.of(cell.made, prior, GRID, 1, 0)
    found = loop.best_poses(cell.made.volume.values)
    assert float(pose_errors(found, cell.made.truth).rotation_error_deg.median()) < 25
    drawn = loop.draw_poses(cell.made.volume.values)
    assert drawn.rotation.shape == found.rotation.shape


@pytest.mark.parametrize(
    ("images", "degrees", "met"), [(300, -0.1, True), (300, 0.1, False), (2000, 0.1, True)]
)
def test_a_prior_has_to_help_where_images_are_few(images, degrees, met):
    about = {"task": "poses", "protein": "p", "views": images, "seed": 0, "prior": "x"}
    rows = [{**about, "method": PLAIN, "pose_error_deg": 10.0, "fsc_area": 0.2}]
    rows += [{**about, "method": OURS, "pose_error_deg": 10.0 + degrees, "fsc_area": 0.21}]
    (line,) = poses_verdict(rows, "x")
    assert line.startswith("met " if met else "MISS")


def test_images_of_points_turn_with_the_points():
    """Turning points or the view is the same; float64, to rounding."""
    points = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8
    turn = uniform_rotations(2)
    eye = torch.eye(3, dtype=torch.float64)[None]
    there = images_of_points(points, turn[1:])
    torch.testing.assert_close(there, images_of_points(points @ turn[1].T, eye))


def test_the_small_prior_of_chains_knows_none_of_the_benchmarks_proteins(monkeypatch):
    """Equal seeds give equal secondary structure, whatever the length; the benchmark's begin at FIRST_SEED."""
    seeds = []

    def noted(residues, seed):
        seeds.append(seed)
        return procedural_protein(residues, seed)

    monkeypatch.setattr(prior_units, "procedural_protein", noted)
    prior_units.small_point_prior(1, chains=2, residues=20)
    assert len(seeds) == 2
    assert max(seeds) < FIRST_SEED


def test_guidance_rows_have_angstroms_and_chance(protein):
    """An untrained prior gives a row per strength, with the permuted chain's RMSD beside."""
    point = PointPrior(PointPriorShape(hidden=4, layers=1), generator=torch.Generator().manual_seed(0))
    task = UnitsTask(strengths=(0.0, 0.1), chain_steps=2, chains_drawn=2)
    rows = list(UnitsCell(protein, 1, task).rows(point, "x"))
    assert [r["network_passes"] for r in rows] == [2, 4]
    for row in rows:
        assert row["rmsd_chance_A"] > 0
        assert row["true_rg_A"] == pytest.approx(8.9, rel=0.2)  # 2.2 n^0.38


def test_a_posteriors_intervals_hold_their_share_where_its_map_is_high_and_not_where_the_truth_is():
    """Truth and samples are draws of one Gaussian: 0.9 within five standard errors, though only in the map's mask."""
    g = torch.Generator().manual_seed(0)
    mean = 0.3 * torch.randn(20, 20, 20, generator=g)
    truth, *drawn = (mean + torch.randn(20, 20, 20, generator=g) for _ in range(17))
    samples = torch.stack(drawn)
    scores = map_scores(Outcome(samples.mean(0), samples, 0.0, 0), truth)
    error = math.sqrt(0.09 / float(density_mask(samples.mean(0)).sum()))
    assert scores["coverage90"] == pytest.approx(0.9, abs=5 * error)
    assert scores["coverage90_truth"] < 0.9 - 3 * error


def test_what_diverged_scores_nothing_and_says_so():
    scores = map_scores(Outcome(torch.full((8, 8, 8), math.nan), None, 0.0, 0), torch.rand(8, 8, 8))
    assert (scores["pearson"], scores["coverage90"], scores["diverged"]) == (0.0, None, True)
