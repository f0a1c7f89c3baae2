from __future__ import annotations

import json
import math

import pytest
import torch

from cryorbit.benchmarks.score import ScoreFile, chance_row, published_rows, rows_of_run, table
from cryorbit.benchmarks.tasks import BenchmarkSettings, Cell, cells
from cryorbit.data import Pose
from cryorbit.errors import BadFile
from cryorbit.geometry.rotations import random_rotations

NUMBERS = {
    "mse": 0.01,
    "medse": 0.005,
    "hand": -1,
    "seconds": 100.0,
    "image_visits": 5000,
    "particles": 1000,
    "fsc05_truth_A": 9.0,
    "oracle_fsc05_truth_A": 8.5,
}


def row(seed=0, method="cryorbit", **more):
    return {"structure": "a", "snr": 0.1, "seed": seed, "method": method, **more}


def test_chance_is_six():
    """Random poses against random poses: the mean squared distance is 6, less what the best gauge gains."""
    generator = torch.Generator().manual_seed(0)
    truth = Pose(
        random_rotations(2000, generator=generator, dtype=torch.float64), torch.zeros(2000, 2).double()
    )
    found = chance_row(truth, generator=generator)
    assert 5.5 < found["mse"] < 6.05
    assert not found["converged"]


def test_a_run_gives_its_row_and_the_oracle_s():
    """The oracle row has perfect poses and the map that they give."""
    rows = rows_of_run(NUMBERS)
    assert rows["cryorbit"]["converged"]
    assert rows["cryorbit"]["seconds"] == 100.0
    assert rows["oracle (true poses)"]["mse"] == 0.0
    assert rows["oracle (true poses)"]["fsc05_truth_A"] == 8.5


def test_rows_are_kept_and_none_is_added_twice(tmp_path):
    """A score file read again has its rows, and knows which are there."""
    scores = ScoreFile(tmp_path / "a.json")
    scores.add(row(0), row(1))
    scores.add(row(1))
    again = ScoreFile(tmp_path / "a.json")
    assert [r["seed"] for r in again.rows] == [0, 1]
    assert again.has(row(1))
    assert not again.has(row(2))
    assert isinstance(json.loads((tmp_path / "a.json").read_text()), list)


def test_a_file_that_holds_no_rows_is_refused(tmp_path):
    """Another JSON file is not written over."""
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(BadFile, match="list of rows"):
        ScoreFile(tmp_path / "a.json")


def test_published_rows_are_marked_and_printable():
    """Published rows say so, and stand below our own in the table."""
    published = published_rows()
    assert all(r["published"] and r["method"].startswith("published") for r in published)
    lines = table([*published, row(**rows_of_run(NUMBERS)["cryorbit"])]).splitlines()
    assert "cryorbit" in lines[1]
    assert any("medians" in line for line in lines)


def test_medians_count_converged_runs():
    """Below the rows: the median over seeds, and how many of them converged."""
    rows = [
        {**row(seed), **rows_of_run({**NUMBERS, "mse": mse, "seconds": seconds})["cryorbit"]}
        for seed, mse, seconds in ((0, 0.01, 10.0), (1, 3.0, 30.0), (2, 0.02, 20.0))
    ]
    last = table(rows).splitlines()[-1]
    assert "2/3" in last
    assert " 20 " in last


def test_cells_go_seed_by_seed():
    """A benchmark that is cut short has all structures and SNRs of the first seeds."""
    found = cells(["a", "b"], BenchmarkSettings(snr=(math.inf, 0.1), seeds=2))
    assert len(found) == 8
    assert found[:4] == [Cell("a", math.inf, 0), Cell("b", math.inf, 0), Cell("a", 0.1, 0), Cell("b", 0.1, 0)]
