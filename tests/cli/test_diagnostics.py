"""What evaluate keeps for the report of how poses stand to the truth, and the poses of a run in time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

from cryorbit.analysis.pose_error import pose_errors
from cryorbit.analysis.pose_history import PoseSnapshot
from cryorbit.cli.diagnostics import (
    POSE_HISTORY,
    evaluate_poses,
    of_diagnostics,
    read_pose_history,
    snapshot_of,
    write_pose_history,
)
from cryorbit.data import Pose
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.geometry.rotations import random_rotations
from cryorbit.geometry.symmetry import point_group

N = 300


class Solved(SimpleNamespace):
    """The part of a stack that evaluation of poses reads."""

    def __len__(self) -> int:
        return N


def uniform(seed: int) -> torch.Tensor:
    return random_rotations(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluated(folder: Path, rotation: torch.Tensor, truth: torch.Tensor, *, symmetry: str = "C1") -> dict:
    table = pd.DataFrame({"rlnMaxValueProbDistribution": torch.linspace(0, 1, N).tolist()})
    found, true = (Pose(r, r.new_zeros(N, 2)) for r in (rotation, truth))
    errors = pose_errors(found, true, group=None if symmetry == "C1" else symmetry)
    solved = Solved(pose=found, tables={"particles": table})
    return evaluate_poses(folder, solved, true, errors, symmetry=symmetry)


def test_what_evaluate_keeps_the_report_shows(tmp_path: Path):
    """Verdict and numbers come back, with the history if the run kept one; without evaluation there is nothing."""
    assert of_diagnostics(tmp_path) == {}
    truth = uniform(0)
    mixed = torch.where((torch.arange(N) % 2 == 0)[:, None, None], truth, mirror_pose_rotation(truth))
    shots = [PoseSnapshot(5.0, torch.arange(N), mixed), PoseSnapshot(9.0, torch.arange(10, 60), truth[10:60])]
    write_pose_history(tmp_path / POSE_HISTORY, shots, time_label="Time (s)")
    numbers = evaluated(tmp_path, mixed, truth)
    assert numbers["pose_state"] == "hands mixed"
    assert numbers["converged_at"] == 9.0
    assert abs(numbers["mean_confidence"] - 0.5) < 1e-6
    entries = of_diagnostics(tmp_path)
    assert entries["subsets"].verdict() == numbers["pose_verdict"]
    assert entries["pose_history"].time_label == "Time (s)"
    assert entries["pose_history"].time.tolist() == [5.0, 9.0]
    assert entries["poses_beside_truth"].rotation.shape == (N, 3, 3)
    assert float(entries["reliability"].count.sum()) == N


def test_symmetric_particles_are_shown_beside_the_nearest_mate(tmp_path: Path):
    """With D2 known, poses R S lie on their truths."""
    truth, group = uniform(1), point_group("D2")
    mates = truth @ group[torch.arange(N) % len(group)]
    assert evaluated(tmp_path, mates, truth, symmetry="D2")["pose_state"] == "one hand"
    shown = of_diagnostics(tmp_path)["poses_beside_truth"]
    torch.testing.assert_close(shown.rotation, shown.truth, rtol=0, atol=1e-5)


def test_snapshots_come_back(tmp_path: Path):
    """Snapshots of different particles are read as they were written; no file is no history."""
    assert read_pose_history(tmp_path / "none") == ([], "")
    shots = [
        PoseSnapshot(1.0, torch.tensor([3, 1]), uniform(2)[:2]),
        PoseSnapshot(2.0, torch.tensor([0]), uniform(3)[:1]),
    ]
    write_pose_history(tmp_path / POSE_HISTORY, shots)
    found, label = read_pose_history(tmp_path / POSE_HISTORY)
    assert label == "Image visits"
    assert [shot.time for shot in found] == [1.0, 2.0]
    for one, two in zip(shots, found, strict=True):
        assert torch.equal(one.row, two.row)
        assert torch.equal(one.rotation, two.rotation)


def test_a_record_of_ab_initio_gives_a_snapshot():
    """The likeliest start's last images while starts compete; then the table; before the first batch nothing."""
    recent = torch.cat(
        (torch.arange(4.0)[:, None], torch.eye(3).reshape(1, 9).expand(4, 9), torch.zeros(4, 2)), 1
    )
    starts = [[0, 1.0, [-5.0]], [1, 1.0, [-2.0]]]
    state = {"coarse_starts": starts, "coarse_recent0": recent[:1], "coarse_recent1": recent}
    found = snapshot_of(state, image_visits=400.0)
    assert found is not None
    assert found.row.tolist() == [0, 1, 2, 3]
    later = snapshot_of({"pose_rotation": torch.eye(3).repeat(50, 1, 1)}, image_visits=800.0, keep=10)
    assert later is not None
    assert (later.time, later.rotation.shape) == (800.0, (10, 3, 3))
    assert snapshot_of({}, image_visits=0.0) is None
