"""What `evaluate` learns of a run's poses beyond numbers, kept in the folder for the report; and a run's poses in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryorbit.cli.reading import spread_rows

if TYPE_CHECKING:
    import torch

    from cryorbit.analysis.mirror import MirrorSymmetry
    from cryorbit.analysis.pose_error import PoseErrors
    from cryorbit.analysis.pose_history import PoseSnapshot
    from cryorbit.data import ParticleStack, Pose, Volume

DIAGNOSTICS = "pose_diagnostics.safetensors"
"""Poses beside the truth and what follows from them; `evaluate` writes it, the report shows it."""
POSE_HISTORY = "pose_history.safetensors"
"""Poses of some particles at moments of a run; a run may write it, `evaluate` compares it with the truth."""

POSES_KEPT = 3000
RIGHT_BELOW_DEG = 10.0
"""A pose is right if it is in the true mode: half of how far modes are apart."""


def evaluate_poses(
    folder: Path, solved: ParticleStack, true_pose: Pose, errors: PoseErrors, *, symmetry: str
) -> dict[str, Any]:
    """Write `DIAGNOSTICS` and return the numbers for evaluation.json.

    Raises
    ------
    BadFile
        If the folder's pose history cannot be read, or the disk refuses.
    """
    from cryorbit.analysis.calibration import reliability
    from cryorbit.analysis.pose_history import pose_history
    from cryorbit.analysis.pose_subsets import consistent_subsets
    from cryorbit.io.checkpoint import save_state

    assert solved.pose is not None
    group = None if symmetry == "C1" else symmetry
    subsets = consistent_subsets(solved.pose.rotation, true_pose.rotation, group=group)
    numbers: dict[str, Any] = subsets.summary()
    rows = spread_rows(len(solved), POSES_KEPT)
    tensors = {
        "rotation": errors.rotation[rows].float(),
        "truth": nearest_mates(errors.rotation[rows], true_pose.rotation[rows], group).float(),
    }
    meta: dict[str, Any] = {"symmetry": symmetry}
    confidence = column(solved, "rlnMaxValueProbDistribution")
    if confidence is not None:
        confidence = confidence.clamp(0.0, 1.0)
        right = (errors.rotation_error_deg < RIGHT_BELOW_DEG).cpu()
        found = reliability(confidence, right)
        numbers |= {
            "mean_confidence": float(confidence.mean()),
            "confidence_right": float(right.double().mean()),
        }
        tensors |= {"confidence": confidence[rows], "reliability_confidence": found.confidence}
        tensors |= {"reliability_correct": found.correct, "reliability_count": found.count}
        meta["brier"] = found.brier
    snapshots, label = read_pose_history(folder / POSE_HISTORY)
    if snapshots:
        history = pose_history(snapshots, true_pose.rotation, time_label=label, group=group)
        tensors |= {f"history_{name}": value for name, value in history.tensors().items()}
        meta["time_label"] = label
        numbers["converged_at"] = history.converged_at()
    save_state(folder / DIAGNOSTICS, tensors, meta)
    return numbers


def nearest_mates(rotation: torch.Tensor, truth: torch.Tensor, group: str | None) -> torch.Tensor:
    """Of the truths R S that a symmetric particle cannot tell apart, the nearest to each rotation."""
    import torch

    from cryorbit.geometry.symmetry import point_group

    if group is None:
        return truth
    mates = truth.double()[:, None] @ point_group(group).double()
    overlap = torch.einsum("nij,ngij->ng", rotation.double(), mates)
    return mates[torch.arange(len(mates)), overlap.argmax(1)]


def column(stack: ParticleStack, name: str) -> torch.Tensor | None:
    """A column of numbers of the particles' table, if it is there."""
    import torch

    table = stack.tables.get("particles")
    return None if table is None or name not in table else torch.tensor(table[name].to_numpy(float))


def mirror_of(volume: Volume) -> MirrorSymmetry | None:
    """The map against its reflections; None for a map without density."""
    from cryorbit.analysis.mirror import mirror_symmetry
    from cryorbit.errors import BadInput

    try:
        return mirror_symmetry(volume)
    except BadInput:
        return None


def of_diagnostics(folder: Path) -> dict[str, Any]:
    """The report's entries about poses against the truth; none if the run was not evaluated."""
    from cryorbit.analysis.calibration import Reliability
    from cryorbit.analysis.pose_history import PoseHistory
    from cryorbit.analysis.pose_subsets import consistent_subsets
    from cryorbit.io.checkpoint import load_state
    from cryorbit.report.data import PosesBesideTruth

    if not (folder / DIAGNOSTICS).exists():
        return {}
    tensors, meta = load_state(folder / DIAGNOSTICS)
    rotation, truth = tensors["rotation"], tensors["truth"]
    group = None if meta["symmetry"] == "C1" else meta["symmetry"]
    entries: dict[str, Any] = {
        "poses_beside_truth": PosesBesideTruth(rotation, truth, tensors.get("confidence")),
        "subsets": consistent_subsets(rotation, truth, group=group),
    }
    if "reliability_count" in tensors:
        entries["reliability"] = Reliability(
            confidence=tensors["reliability_confidence"],
            correct=tensors["reliability_correct"],
            count=tensors["reliability_count"],
            brier=meta["brier"],
        )
    history = {k.removeprefix("history_"): v for k, v in tensors.items() if k.startswith("history_")}
    if history:
        entries["pose_history"] = PoseHistory(time_label=meta["time_label"], **history)
    return entries


def write_pose_history(
    path: Path, snapshots: Sequence[PoseSnapshot], *, time_label: str = "Image visits"
) -> None:
    """Keep a run's snapshots, whose rows count in the order of its particles.star."""
    from cryorbit.io.checkpoint import save_state

    tensors: dict[str, torch.Tensor] = {}
    for i, shot in enumerate(snapshots):
        tensors |= {f"row_{i}": shot.row, f"rotation_{i}": shot.rotation}
    save_state(path, tensors, {"time": [shot.time for shot in snapshots], "time_label": time_label})


def read_pose_history(path: Path) -> tuple[list[PoseSnapshot], str]:
    """The snapshots that `write_pose_history` kept and their time's name; none where there is no file.

    Raises
    ------
    BadFile
        If the file is not whole.
    """
    from cryorbit.analysis.pose_history import PoseSnapshot
    from cryorbit.io.checkpoint import load_state

    if not path.exists():
        return [], ""
    tensors, meta = load_state(path)
    shots = [
        PoseSnapshot(time, tensors[f"row_{i}"], tensors[f"rotation_{i}"])
        for i, time in enumerate(meta["time"])
    ]
    return shots, str(meta["time_label"])


def snapshot_of(state: Mapping[str, Any], *, image_visits: float, keep: int = 1000) -> PoseSnapshot | None:
    """The poses in the state of an ab initio record, None where it has none yet.

    While random starts compete, those of the images that the likeliest start saw last; later an even sample of all.
    """
    import torch

    from cryorbit.analysis.pose_history import PoseSnapshot

    if state.get("coarse_starts"):
        evidence = [sum(s[2][-8:]) / max(len(s[2][-8:]), 1) for s in state["coarse_starts"]]
        recent = state[f"coarse_recent{max(range(len(evidence)), key=evidence.__getitem__)}"][-keep:]
        if not len(recent):
            return None
        return PoseSnapshot(image_visits, recent[:, 0].long(), recent[:, 1:10].reshape(-1, 3, 3).clone())
    if "pose_rotation" in state:
        rows = spread_rows(len(state["pose_rotation"]), keep)
        return PoseSnapshot(image_visits, torch.as_tensor(rows), state["pose_rotation"][rows].clone())
    return None
