"""The benchmark of scale, on few particles: files that others read, and aims that can be missed."""

from __future__ import annotations

import sys

import pytest
import torch

from cryorbit.benchmarks import million
from cryorbit.errors import BadInput
from cryorbit.io.particles import read_particles


@pytest.fixture
def few(tmp_path, monkeypatch):
    monkeypatch.setattr(million, "SIGNALS", 6)
    monkeypatch.setattr(million, "PER_STACK", 8)
    return million.write_particles_of(20, tmp_path)


def test_particles_are_complete_and_no_two_alike(few):
    stack = read_particles(few)
    assert len(stack) == 20
    assert stack.box == million.BOX
    assert stack.pose is not None
    assert stack.ctf is not None
    images = stack.images[:].flatten(1)
    same_signal = torch.corrcoef(images[[0, 6]])[0, 1]
    assert float(same_signal) < 0.9  # the noise is each image's own
    assert torch.equal(stack.pose.rotation[0], stack.pose.rotation[6])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
def test_parts_measure_something(few):
    table, images = million.table_part(few), million.images_part(few)
    assert table["table_seconds"] >= 0
    assert images["images_read_per_second"] > 0


def test_missed_aims_are_named():
    good = {"particles": 10, "check_seconds": 1.0, "table_bytes_per_row": 10, "image_memory_MB": 50}
    assert million.misses([good, good]) == []
    bad = good | {
        "check_seconds": 61.0,
        "table_bytes_per_row": 2000,
        "image_memory_MB": 500,
        "rate_ratio": 0.5,
    }
    assert len(million.misses([good, bad])) == 4


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match="are free"):
        million.write_particles_of(10**12, tmp_path)
    assert list(tmp_path.iterdir()) == []
