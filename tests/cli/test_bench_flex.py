from __future__ import annotations

import json

from cryorbit.benchmarks.flex_methods import CHANCE, ORACLE


def test_bench_flex_keeps_rows_and_prints_the_table(shell, tmp_path):
    """The bounds of a small made-up set end in the file and in the table; a second call adds nothing."""
    line = ["bench", "flex", "--json", tmp_path / "o.json", "--dataset", "hinge", "--images", 60, "--box", 16]
    line += ["--seeds", 1, "--decoded", 4, "--method", "chance", "oracle", "--threads", 1]
    for _ in range(2):
        code, out, _ = shell(*line)
        assert code == 0
        assert CHANCE in out
        rows = json.loads((tmp_path / "o.json").read_text())
        assert [row["method"] for row in rows] == [CHANCE, ORACLE]


def test_bench_flex_refuses_a_missing_folder(shell, tmp_path):
    """Before anything is simulated, in one line."""
    code, _, error = shell("bench", "flex", "--json", tmp_path / "o.json", "--structures", tmp_path / "none")
    assert code == 2
    assert "no such folder" in error
    assert not (tmp_path / "o.json").exists()
