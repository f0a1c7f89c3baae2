from __future__ import annotations

import json

import pytest

from cryorbit.benchmarks import tasks
from cryorbit.benchmarks.tasks import BenchmarkSettings, Cell, RunFailed, run_cell
from cryorbit.cli import bench

NUMBERS = {
    "mse": 0.02,
    "medse": 0.01,
    "hand": 1,
    "seconds": 9.0,
    "image_visits": 500,
    "particles": 100,
    "fsc05_truth_A": 9.0,
    "oracle_fsc05_truth_A": 8.5,
}
CHANCE = {"method": "chance (random poses)", "mse": 6.0, "medse": 6.0, "converged": False, "seconds": 0.0}


@pytest.fixture
def cells_run(monkeypatch) -> list[str]:
    """Names of the cells that were run; each gives fixed numbers, but seed 1 fails."""
    names = []

    def one_cell(cell, settings, work):
        names.append(cell.name)
        if cell.seed == 1:
            raise RunFailed("no room")
        rows = bench_rows(NUMBERS)
        return [*rows, CHANCE]

    monkeypatch.setattr(bench, "one_cell", one_cell)
    return names


def bench_rows(numbers):
    from cryorbit.benchmarks.score import rows_of_run

    return [{"method": method, **row} for method, row in rows_of_run(numbers).items()]


def test_bench_keeps_rows_and_runs_what_is_missing(shell, tmp_path, cells_run):
    """Rows of finished runs are in the file, with oracle and chance; a second call runs only the others."""
    line = ["bench", "abinitio", "--json", tmp_path / "out.json", "--seeds", 2, "--snr", "inf", "0.1"]
    code, out, error = shell(*line)
    assert code == 1
    assert "FAILED" in error
    assert sorted(cells_run) == sorted(
        f"synthetic_snr{snr}_seed{seed}" for snr in ("inf", "0.1") for seed in (0, 1)
    )
    rows = json.loads((tmp_path / "out.json").read_text())
    ours = [row for row in rows if row["method"] == "cryorbit"]
    assert [(row["snr"], row["seed"]) for row in sorted(ours, key=lambda r: str(r["snr"]))] == [
        (0.1, 0),
        ("inf", 0),
    ]
    assert {"oracle (true poses)", "chance (random poses)"} <= {row["method"] for row in rows}
    assert any(row["published"] for row in rows if row["method"].startswith("published"))
    assert "medians over seeds" in out
    cells_run.clear()
    shell(*line)
    assert {name.rsplit("_", 1)[1] for name in cells_run} == {"seed1"}


def test_bench_of_a_missing_structure_is_one_line(shell, tmp_path):
    """A structure file that is not there is refused before anything runs."""
    code, _, error = shell(
        "bench", "abinitio", "--json", tmp_path / "o.json", "--structure", tmp_path / "a.pdb"
    )
    assert code == 2
    assert "a.pdb" in error
    assert not (tmp_path / "o.json").exists()


def test_a_cell_simulates_runs_and_evaluates(monkeypatch, tmp_path):
    """A cell calls simulate, abinitio, evaluate with its own seeds, and counts abinitio's wall time."""
    lines = []

    def command(*arguments, threads, log):
        lines.append([str(a) for a in arguments])
        if arguments[0] == "simulate":
            (tmp_path / "a_snr0.1_seed2" / "data").mkdir()
            (tmp_path / "a_snr0.1_seed2" / "data" / "particles.mrcs").touch()
        if arguments[0] == "abinitio":
            (tmp_path / "a_snr0.1_seed2" / "run").mkdir()
            (tmp_path / "a_snr0.1_seed2" / "run" / "evaluation.json").write_text(json.dumps(NUMBERS))
        return 12.5

    monkeypatch.setattr(tasks, "command", command)
    numbers = run_cell(Cell("a", 0.1, 2), BenchmarkSettings(), work=tmp_path, threads=1)
    assert [line[0] for line in lines] == ["simulate", "abinitio", "evaluate"]
    assert lines[1][lines[1].index("--seed") + 1] == "2"
    assert numbers["seconds"] == 12.5
    assert numbers["seconds_computing"] == 9.0
    assert not (tmp_path / "a_snr0.1_seed2" / "data" / "particles.mrcs").exists()


def test_a_failed_command_tells_its_last_lines(tmp_path):
    """The log's end is in the error, so that a failed run explains itself."""
    with pytest.raises(RunFailed, match="no such file"):
        tasks.command("check", tmp_path / "absent.cs.star", "--json", threads=1, log=tmp_path / "log.txt")
