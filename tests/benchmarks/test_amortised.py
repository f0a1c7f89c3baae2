"""Laws of the amortised benchmark: complete rows, caps that count as not converged, an oracle that beats them."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from cryorbit.benchmarks.amortised import Prepared, oracle_row, run_method, settings_of, verdict
from cryorbit.benchmarks.amortised_tasks import METHODS, SCALES, AmortisedBenchmark, methods_of
from cryorbit.benchmarks.score import ScoreFile
from cryorbit.cli.bench_amortised import refuse_other_scale
from cryorbit.data import MemoryImages, ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.amortised import AmortisedSettings, training_images
from cryorbit.physics.simulate import SimulationSettings, simulate
from physics_models import GaussianBlobs

FIELDS = ("mse", "medse", "converged", "seconds", "steps", "image_visits", "fsc05_truth_A", "decoder")
SMALL = AmortisedBenchmark(box_px=24, width=0.125, max_visits=64)


@lru_cache(maxsize=1)
def _prepared(box_px=24):
    volume = Volume(GaussianBlobs.random(14, radius_px=6.5, sigma_px=1.2, seed=5).values(24).float(), 8.0)
    settings = SimulationSettings(n_particles=60, box=24, pixel_size_A=8.0, snr=4.0, shift_sd_A=6.0, seed=3)
    made = simulate(volume, settings)
    images = MemoryImages(made.stack.images[torch.arange(60)])
    stack = ParticleStack(images=images, pixel_size_A=8.0, ids=made.stack.ids, ctf=made.stack.ctf)
    cropped = training_images(stack, AmortisedSettings(box_px=box_px, contrast="light"))
    return Prepared(cropped, made.truth, volume)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "hybrid"])
def test_a_capped_run_is_a_whole_row_and_not_converged(method):
    """Every method stops at the cap, with all fields, its time that of the cap."""
    row = run_method(method, _prepared(), SMALL, seed=0)
    assert all(name in row for name in FIELDS)
    assert not row["converged"]
    assert row["image_visits"] == row["image_visits_all"] == 64
    assert row["steps"] == 4
    assert row["decoder"] == ("fouriernet" if "FourierNet" in method else "volume")


def test_the_oracle_finds_more_than_chance():
    """True poses give a map that agrees with the true one further than the first shell."""
    row = oracle_row(_prepared())
    assert row["converged"]
    assert row["fsc05_truth_A"] < 24 * 8.0 / 4


def test_methods_share_what_they_do_not_differ_in():
    """Batch, rates, prefilter and map are the same for all; only the hybrid has a teacher."""
    settings = {m: settings_of(m, SMALL, seed=1) for m in METHODS}
    shared = ("batch", "learning_rate", "prefilter", "forgetting", "update", "width", "norm", "seed")
    assert len({tuple(getattr(s, name) for name in shared) for s in settings.values()}) == 1
    assert [m for m, s in settings.items() if s.teacher > 0] == ["hybrid"]
    assert [m for m, s in settings.items() if s.frozen_shift_head] == ["standard L_sym, as published"]


@pytest.mark.parametrize("name", ["box_px", "width", "max_visits", "max_seconds"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_gives_way_to_what_is_given(scale, name):
    """An option that was given holds, be it another scale's own value; all others are the scale's."""
    for other in SCALES.values():
        value = getattr(other, name)
        sizes = AmortisedBenchmark(scale=scale, **{name: value}).sizes
        assert sizes == replace(SCALES[scale], **{name: value})


def test_the_full_scale_runs_on_a_small_case():
    """Uncropped images and full width, for one step; images per second are those of the training."""
    row = run_method("D4 L2", _prepared(), AmortisedBenchmark(scale="full", max_visits=16), seed=0)
    assert row["steps"] == 1
    rounded = (
        0.05 * row["seconds_all"] + 0.005 * row["images_per_second"]
    )  # tenths, and hundredths of a second
    assert row["images_per_second"] * row["seconds_all"] == pytest.approx(16, abs=1.01 * rounded)


def test_rows_of_another_scale_are_not_passed_off(tmp_path):
    """A file of 32 px rows is refused for 64 px; rows of peers, which have no scale, do not matter."""
    scores = ScoreFile(tmp_path / "rows.json")
    key = {"structure": "x", "snr": 1.0, "seed": 0, "method": "hybrid"}
    scores.add({**key, "box_px": 32, "width": 0.25}, {**key, "method": "published", "published": True})
    refuse_other_scale(scores, {"box_px": 32, "width": 0.25, "images": 100})
    with pytest.raises(BadInput, match="box_px 32, wanted box_px 64"):
        refuse_other_scale(scores, {"box_px": 64, "width": 0.25, "images": 100})


def test_unknown_methods_are_named():
    """With those that exist."""
    with pytest.raises(BadInput, match="hybrid"):
        methods_of(AmortisedBenchmark(method=("cryoSPARC",)))


def test_the_verdict_counts_visits_against_the_standard():
    """A standard run that hit the cap gives a lower bound."""
    key = {"structure": "x", "snr": 1.0, "seed": 0, "decoder": "volume"}
    rows = [
        {**key, "method": "hybrid", "converged": True, "image_visits": 3000},
        {**key, "method": "standard L_sym", "converged": False, "image_visits": 60000},
        {**key, "method": "chance (random poses)", "decoder": None, "converged": False, "image_visits": 0},
        {**key, "method": "oracle (true poses)", "converged": True, "image_visits": 10000},
    ]
    lines = verdict(rows)
    assert lines == [
        "hybrid: 1 of 1 runs converged",
        "standard L_sym: 0 of 1 runs converged",
        "x SNR 1.0 seed 0: standard / hybrid visits >= 20.0",
    ]
