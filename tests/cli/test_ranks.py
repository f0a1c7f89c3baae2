"""Verbs under torchrun: one voice, one set of files, one message where it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cryorbit.cli.ranks import refuse_several, several_processes
from cryorbit.errors import BadInput

LAUNCH = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "cryorbit",
]


def launched(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAUNCH, *map(str, arguments)], capture_output=True, text=True, timeout=240)


def test_what_fails_in_one_process_ends_both_and_is_said_once(simulated, tmp_path):
    """The first process alone looks into the output folder."""
    (tmp_path / "map.mrc").write_text("of another run")
    done = launched("reconstruct", simulated / "truth.star", "-o", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error:") == 1
    assert "another run" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["map.mrc"]


def test_what_fails_in_both_is_said_once(tmp_path):
    done = launched("refine", tmp_path / "no.star", "-o", tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("error:") == 1
    assert "no.star" in done.stderr


def test_a_stopped_run_of_two_goes_on_to_its_end(shell, simulated, tmp_path):
    """SIGTERM to the launcher, as a queue sends it; one process may finish what two began."""
    options = ["--threads", 1, "--particle-diameter-A", 200, "--start-resolution-A", 60, "--rounds", 2]
    line = ["refine", simulated / "particles.star", "--map", simulated / "truth.mrc", "-o", tmp_path / "run"]
    run = subprocess.Popen([*LAUNCH, *map(str, [*line, *options])], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while run.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGTERM)
    said = run.communicate(timeout=120)[1]
    if json.loads((tmp_path / "run" / "run.json").read_text())["finished"]:
        pytest.skip("the run was over before the signal came")
    assert said.count("Stopped and saved") == 1
    assert "--resume" in said
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    code, _, said = shell("refine", "-o", tmp_path / "run", "--resume")
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_alone_without_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    refuse_several("anything")
    with several_processes() as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)


def test_what_runs_in_one_process_says_so(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="without torchrun"):
        refuse_several("--method amortised")
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(BadInput, match="WORLD_SIZE"), several_processes():
        pass
