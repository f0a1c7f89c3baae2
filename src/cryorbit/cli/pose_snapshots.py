"""Poses of some particles at moments of a run, kept while it goes on, for its report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryorbit.inference.engine import Progress

EVERY = 0.02
"""Share of a run between snapshots."""


def with_snapshots(records: Iterable[Progress], folder: Path, *, resumed: bool) -> Iterator[Progress]:
    """The records as they are; now and then the poses in their state are added to the folder's pose history."""
    from cryorbit.analysis.pose_history import PoseSnapshot
    from cryorbit.cli.diagnostics import POSE_HISTORY, read_pose_history, snapshot_of, write_pose_history

    path = folder / POSE_HISTORY
    shots = read_pose_history(path)[0] if resumed else []
    after = 0.0
    for record in records:
        visits = record.metrics.get("image_visits")
        if visits is not None and record.fraction >= after and (not shots or visits > shots[-1].time):
            shot = None
            if len(record.state.get("recent_row", ())):
                rows, rotation = record.state["recent_row"], record.state["recent_rotation"]
                shot = PoseSnapshot(visits, rows.clone(), rotation.clone())
            elif record.state:
                shot = snapshot_of(record.state, image_visits=visits)
            if shot is not None:
                shots.append(shot)
                write_pose_history(path, shots)
                after = record.fraction + EVERY
        yield record
