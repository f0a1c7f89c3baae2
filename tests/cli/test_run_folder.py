from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field

import pytest
import torch

from cryorbit.cli.progress import read_metrics
from cryorbit.cli.run_folder import (
    CHECKPOINT,
    METRICS,
    RUN,
    RunFolder,
    already_finished,
    open_run,
)
from cryorbit.errors import BadFile, BadInput


@dataclass
class Record:
    step: int
    state: dict = field(default_factory=dict)
    result: int | None = None
    stage: str = "search"
    steps: int = 20

    @property
    def fraction(self):
        return self.step / self.steps

    @property
    def metrics(self):
        return {"image_visits": 100.0 * self.step, "loss": float("nan")}


def walk(state=None, *, stop_at=None):
    """A run in miniature: a sum of random numbers, with all that goes on in its state."""
    generator = torch.Generator().manual_seed(1)
    total, first = torch.zeros(()), 0
    if state is not None:
        generator.set_state(state["generator"])
        total, first = state["total"].clone(), state["step"]
    for step in range(first + 1, 21):
        total = total + torch.randn((), generator=generator)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        now = {"total": total, "generator": generator.get_state(), "step": step}
        yield Record(step, now, result=float(total) if step == 20 else None)


def start(path, **options) -> RunFolder:
    return open_run(path, verb="abinitio", settings_yaml="a: 1\n", outputs=("map.mrc",), **options)


def test_stop_and_resume_gives_the_unbroken_result(tmp_path):
    """A run stopped by SIGTERM exits 143, and resumes to the same bits, metrics and image visits."""
    whole = start(tmp_path / "whole").follow(walk(), checkpoint_every_s=1e9).result
    with pytest.raises(SystemExit) as stopped:
        start(tmp_path / "run").follow(walk(stop_at=7), checkpoint_every_s=1e9)
    assert stopped.value.code == 143
    again = start(tmp_path / "run", resume=True)
    assert again.state is not None
    assert again.state["step"] == 7
    result = again.follow(walk(again.state), checkpoint_every_s=1e9).result
    again.finish()
    assert result == whole
    assert [row["step"] for row in read_metrics(tmp_path / "run" / METRICS)] == list(range(1, 21))
    facts = json.loads((tmp_path / "run" / RUN).read_text())
    assert facts["image_visits"] == 2000
    assert facts["finished"]
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    assert already_finished(tmp_path / "run")


def test_metrics_after_the_checkpoint_are_dropped_at_resume(tmp_path):
    """Rows written between the last checkpoint and a crash are not told twice."""
    run = start(tmp_path / "run")
    for record in list(walk())[:12]:
        run.metrics.append(record, seconds=0.0)
        if record.step == 9:
            run.save(record.state)
    again = start(tmp_path / "run", resume=True)
    again.follow(walk(again.state), checkpoint_every_s=1e9)
    assert [row["step"] for row in read_metrics(tmp_path / "run" / METRICS)] == list(range(1, 21))


def test_every_interval_a_checkpoint_is_written(tmp_path):
    """With an interval of 0 every record but the last is saved."""
    run = start(tmp_path / "run")
    run.follow(walk(), checkpoint_every_s=0.0)
    assert (tmp_path / "run" / CHECKPOINT).exists()
    assert start(tmp_path / "run", resume=True).state["step"] == 19


@pytest.mark.parametrize("name", ["map.mrc", "settings.yaml", "run.json"])
def test_a_folder_with_another_run_is_refused(tmp_path, name):
    """Nothing of another run is ever written over."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(BadInput, match="another run"):
        start(tmp_path)


def test_a_run_of_another_verb_cannot_be_resumed(tmp_path):
    """The folder of `reconstruct` does not go on as `abinitio`."""
    open_run(tmp_path / "run", verb="reconstruct", settings_yaml="a: 1\n", outputs=())
    with pytest.raises(BadInput, match="reconstruct"):
        start(tmp_path / "run", resume=True)


def test_an_abandoned_start_leaves_nothing(tmp_path):
    """What fails before the first checkpoint takes back its folder; a resumable run stays."""
    failed = start(tmp_path / "run")
    (tmp_path / "run" / "map.mrc").write_text("the next file found no room")
    (tmp_path / "run" / "samples").mkdir()
    (tmp_path / "run" / "samples" / "sample_001.mrc").write_text("so was this")
    failed.abandon(["map.mrc", "half1.mrc", "samples"])
    assert not (tmp_path / "run").exists()
    run = start(tmp_path / "run")
    run.save({"total": torch.zeros(1)})
    run.abandon()
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    """-o FILE is one line of error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        start(tmp_path / "file")
    with pytest.raises(BadFile, match="cannot be made"):
        start(tmp_path / "file" / "below")


def test_not_finite_metrics_are_null(tmp_path):
    """metrics.jsonl is JSON: NaN becomes null."""
    start(tmp_path / "run").follow(walk(), checkpoint_every_s=1e9)
    assert read_metrics(tmp_path / "run" / METRICS)[0]["loss"] is None
