from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from cryorbit.benchmarks import pose_predict, pose_scores
from cryorbit.benchmarks.pose_predict import FULL, TOP, WITH_SEARCH, PredictCase, compare, draw, trained
from cryorbit.data import Volume
from cryorbit.inference.supervised import SupervisedSettings
from physics_models import GaussianBlobs

PIXEL_A = 8.0
SAME_NOISE = 0.1
"""Relative, of a variance over 60 images."""


def _volume(box):
    return Volume(
        GaussianBlobs.random(14, radius_px=0.27 * box, sigma_px=1.2, seed=5).values(box).float(), PIXEL_A
    )


def _case(**changes):
    training = SupervisedSettings(
        box_px=24, map_px=24, width=0.125, hypotheses=2, max_images=64, contrast="light"
    )
    values = {"box": 24, "full_box": 24, "pixel_size_A": PIXEL_A, "train": 80, "test": 30, "snr": 10.0}
    return PredictCase(**(values | {"training": training} | changes))


@lru_cache(maxsize=1)
def _rows():
    case, volume = _case(), _volume(24)
    model, _ = trained(volume, case, 0)
    return {row["method"]: row for row in compare(model, draw(volume, case, case.test, 5000))}


def test_every_method_is_compared():
    """Chance, network, both ways of predicting, full search and oracle, on the same images."""
    rows = _rows()
    assert {"chance", "network alone", TOP, WITH_SEARCH, FULL, "oracle"} == set(rows)
    assert rows["oracle"]["mse"] <= 1.05 * rows[FULL]["mse"]
    assert rows[FULL]["mse"] < rows["network alone"]["mse"]
    assert rows[WITH_SEARCH]["mse"] <= rows[TOP]["mse"] + 1e-6


def test_effort_is_that_of_the_method():
    """None for network and chance; of the search of a share of the images, at most that share and the refinement."""
    rows = _rows()
    assert rows["network alone"]["evaluations"] == rows["chance"]["evaluations"] == 0
    limit = rows[WITH_SEARCH]["searched"] * rows[FULL]["evaluations"] + rows[TOP]["evaluations"]
    assert rows[WITH_SEARCH]["evaluations"] == pytest.approx(limit)
    assert rows[TOP]["evaluations"] < 0.01 * rows[FULL]["evaluations"]


def test_a_smaller_box_holds_the_same_particles():
    """Half the pixels of twice the size: the same poses, and of white noise the frequencies that remain, -8 to 8 of 32."""
    volume = _volume(32)
    cases = [_case(box=box, full_box=32, snr=0.01) for box in (32, 16)]
    full, small = (draw(volume, case, 60, 1) for case in cases)
    assert torch.equal(full.truth.rotation, small.truth.rotation)
    assert small.stack.pixel_size_A * small.stack.box == full.stack.pixel_size_A * full.stack.box
    rows = torch.arange(60)
    ratio = float(small.stack.images[rows].var() / full.stack.images[rows].var())
    assert abs(ratio / (17 / 32) ** 2 - 1) < SAME_NOISE


def test_bars_fall_on_the_side_they_should():
    """5 % above the full search and a fifth of its evaluations are met, more are missed."""
    case = pose_predict.CASES[0].name

    def bars(median, evaluations):
        values = {"mse": 1.0, "coefficients": 1.0, "median_deg": 1.0, "evaluations": 100.0}
        full = {"task": "P1", "method": f"{case}: {FULL}", **values}
        ours = {"task": "P1", "method": f"{case}: {WITH_SEARCH}", **values, "coefficients": 0.1}
        found = pose_scores.bars([full, ours | {"median_deg": median, "evaluations": evaluations}])
        return [text[:4] for text in found]

    assert bars(1.04, 19.0) == ["met "] * 4
    assert bars(1.06, 21.0) == ["MISS", "met ", "MISS", "met "]
