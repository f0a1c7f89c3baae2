from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from cryorbit.benchmarks import flex
from cryorbit.benchmarks.flex import KEY, FlexBenchmark, run_benchmark
from cryorbit.benchmarks.flex_methods import (
    CHANCE,
    LINEAR,
    METHODS,
    ORACLE,
    OURS,
    REFINED,
    Outcome,
    chosen,
    settings_of,
)
from cryorbit.benchmarks.flex_table import table, verdict
from cryorbit.benchmarks.flex_tasks import FlexData, FlexTask, flex_data
from cryorbit.benchmarks.score import ScoreFile
from cryorbit.errors import BadInput

TINY = FlexTask(images=150, box=20, snr=1.0)
ONE = FlexBenchmark(dataset=("lobes",), seeds=1, decoded=8)
AREA_TIE = 1e-6
"""Areas of one and the same maps, summed in another order."""


@pytest.fixture(scope="module")
def lobes() -> FlexData:
    return flex_data("lobes", TINY)


def told(data: FlexData, noise: float) -> Outcome:
    """A method that was told the states, blurred by noise in a coordinate that its precision says is worthless."""
    truth = torch.nn.functional.one_hot(data.state, len(data.maps)).float()
    void = noise * torch.randn(len(data), 1, generator=torch.Generator().manual_seed(3))
    precision = torch.diag(torch.tensor([100.0] * truth.shape[1] + [1.0])).expand(len(data), -1, -1)
    return Outcome(torch.cat((truth, void), 1), precision, lambda rows: data.maps[data.state[rows]], 1.0)


def test_rows_are_run_once_and_stand_between_their_bounds(monkeypatch, tmp_path, lobes):
    """Chance and oracle are in the file first; what is there is not run again; the bounds are quoted in every row.

    A method that knows the states has a perfect score and perfect maps, whatever noise is in a latent coordinate of which
    it says that it tells nothing.
    """
    ran = []

    def run_method(name, data, task, **more):
        ran.append(name)
        return told(data, noise=1.0)

    monkeypatch.setattr(flex, "run_method", run_method)
    path = tmp_path / "rows.json"
    for methods in ((LINEAR,), (CHANCE, LINEAR, OURS)):
        run_benchmark(ONE, TINY, methods, ScoreFile(path, key=KEY), say=lambda text: None)
    rows = json.loads(path.read_text())
    assert [row["method"] for row in rows] == [CHANCE, ORACLE, LINEAR, OURS]
    assert ran == [LINEAR, OURS]
    wanted = {"dataset", "method", "seed", "score_name", "score", "fsc_area", "seconds"}
    for row in rows:
        assert wanted | {"oracle_fsc_area", "chance_fsc_area"} <= row.keys()
        assert row["chance_fsc_area"] == rows[0]["fsc_area"] < row["oracle_fsc_area"] == rows[1]["fsc_area"]
    assert rows[-1]["score"] == 1.0
    assert abs(rows[-1]["fsc_area"] - 0.5) < AREA_TIE
    assert [row["recovered_share"] for row in rows[:2]] == [0.0, 1.0]


def test_the_linear_baseline_and_ours_run_on_made_up_sets(tmp_path):
    """A small stack of four compositions: both learn the classes far better than chance, and every number is there.

    0.5 of the adjusted Rand index is far from 0 and 1; 150 images of 20 px decide it, not a fit.
    """
    scores = ScoreFile(tmp_path / "rows.json", key=KEY)
    run_benchmark(ONE, replace(TINY, snr=3.0), (LINEAR, OURS), scores, say=lambda text: None)
    by_method = {row["method"]: row for row in scores.rows}
    assert abs(by_method[CHANCE]["score"]) < 0.2
    for name in (LINEAR, OURS):
        assert by_method[name]["score"] > 0.5
        assert math.isfinite(by_method[name]["fsc_area"])
    assert by_method[OURS]["stopped_by_time"] is False
    assert by_method[OURS]["rotation_error_deg"] < 1e-3
    text = table(scores.rows)
    assert all(name in text for name in (CHANCE, ORACLE, LINEAR, OURS))


def test_time_stops_the_learning_and_the_rest_is_read_out(tmp_path):
    """With next to no time the method is scored as it stands after its first steps, and says so."""
    scores = ScoreFile(tmp_path / "rows.json", key=KEY)
    run_benchmark(replace(ONE, max_minutes=1e-9), TINY, (OURS,), scores, say=lambda text: None)
    assert scores.rows[-1]["stopped_by_time"] is True
    assert 0 <= scores.rows[-1]["score"] <= 1


def test_methods_are_chosen_by_name_or_beginning():
    """A whole name means itself alone; the beginning of names means all of them; a wrong one is refused."""
    assert chosen((), pose_errors=False) == list(METHODS)
    assert REFINED in chosen((), pose_errors=True)
    assert chosen((LINEAR,), pose_errors=False) == [LINEAR]
    assert chosen(("or", "cha"), pose_errors=False) == [CHANCE, ORACLE]
    with pytest.raises(BadInput, match="no such method"):
        chosen(("theirs",), pose_errors=False)


def test_the_pose_prior_is_told_per_axis(lobes):
    """Root mean square errors of a whole rotation and shift are sqrt(3) and sqrt(2) times those of an axis."""
    task = replace(TINY, pose_error_deg=3.0, pose_error_px=2.0)
    settings = settings_of(REFINED, lobes, task)
    assert settings.refine_poses
    assert math.isclose(settings.pose_sd_deg * math.sqrt(3), 3.0)
    assert math.isclose(settings.shift_sd_A * math.sqrt(2), 2.0 * lobes.stack.pixel_size_A)


def _row(method: str, score: float, area: float, **more):
    base = {
        "dataset": "hinge",
        "seed": 0,
        "images": 10,
        "box": 20,
        "snr": 0.1,
        "pose_error_deg": 0.0,
        "pose_error_px": 0.0,
        "score_name": "spearman",
        "oracle_fsc_area": 0.4,
        "chance_fsc_area": 0.3,
        "seconds": 1.0,
        "recovered_share": None,
    }
    return base | {"method": method, "score": score, "fsc_area": area} | more


def test_bars_are_judged_on_means_over_seeds():
    """Ours is judged by its mean; a method that does as well is told; so is the share that refining poses brings back."""
    rows = [_row(OURS, 0.90, 0.38), _row(OURS, 0.98, 0.38, seed=1), _row(LINEAR, 0.97, 0.35)]
    lines = verdict(rows)
    assert [text[:4] for text in lines] == ["MISS", "met ", "note"]
    assert "linear does as well as ours or better: score 0.970" in lines[2]
    wrong = {"pose_error_deg": 3.0, "pose_error_px": 2.0}
    rows += [_row(OURS, 0.5, 0.30, **wrong), _row(REFINED, 0.9, 0.36, **wrong)]
    assert verdict(rows)[-1].startswith("met ")
    assert verdict(rows)[-1].endswith(": 0.75")
    assert len(verdict(rows)) == len(lines) + 1


def test_wrong_requests_are_refused():
    """Data sets that do not exist, and no seeds."""
    with pytest.raises(BadInput, match="no such data set"):
        FlexBenchmark(dataset=("hinges",))
    with pytest.raises(BadInput, match="at least one seed"):
        FlexBenchmark(seeds=0)
