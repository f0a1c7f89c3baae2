from __future__ import annotations

import subprocess
import sys

import torch

from cryorbit.benchmarks.peers import _stop, _watch, arguments
from cryorbit.data import Pose
from cryorbit.geometry.rotations import random_rotations
from cryorbit.io.cryodrgn import write_pose_pickle

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def poses(seed):
    generator = torch.Generator().manual_seed(seed)
    return Pose(random_rotations(50, generator=generator), torch.zeros(50, 2))


def test_the_peer_is_stopped_when_its_poses_are_right(tmp_path):
    """The first pose file with an error below 0.1 ends the watch, at the file's own time."""
    write_pose_pickle(tmp_path / "pose.0.pkl", poses(1), box=32, pixel_size_A=1.0)
    write_pose_pickle(tmp_path / "pose.1.pkl", poses(0), box=32, pixel_size_A=1.0)
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    start = (tmp_path / "pose.0.pkl").stat().st_mtime - 10.0
    run = _watch(process, tmp_path, poses(0), start=start, limit_s=1e9, box=32)
    _stop(process)
    assert run.reached
    assert 9.9 < run.seconds < 12.0
    assert len(run.trace) == 2
    assert process.poll() is not None


def test_the_peer_is_stopped_when_its_time_is_up(tmp_path):
    """Without right poses the watch ends at the limit, and says that it was not reached."""
    write_pose_pickle(tmp_path / "pose.0.pkl", poses(1), box=32, pixel_size_A=1.0)
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    run = _watch(process, tmp_path, poses(0), start=0.0, limit_s=5.0, box=32)
    _stop(process)
    assert not run.reached
    assert run.seconds == 5.0


def test_a_half_written_pose_file_is_looked_at_again(tmp_path):
    """A pickle that does not read yet is no answer."""
    (tmp_path / "pose.0.pkl").write_bytes(b"\x80\x04")
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    run = _watch(process, tmp_path, poses(0), start=0.0, limit_s=5.0, box=32)
    assert run.trace == []


def test_the_peer_gets_its_own_defaults(tmp_path):
    """Images are not inverted, and poses are written each epoch, for both commands."""
    for command in ("abinit", "abinit_homo_old"):
        line = arguments(
            command, star=tmp_path / "a.star", ctf=tmp_path / "c.pkl", out=tmp_path, box=32, seed=0
        )
        assert line[0] == command
        assert "--uninvert-data" in line
        assert line[line.index("--checkpoint") + 1] == "1"
