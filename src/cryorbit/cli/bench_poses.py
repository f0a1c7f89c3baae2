"""`cryorbit bench poses`: what encoders know about the orientation of unseen images, against Bayes and chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cryorbit.errors import BadInput

if TYPE_CHECKING:
    from cryorbit.cli.bench import Settings

PoseTask = Literal["S1", "S2", "S3", "S4", "S5", "S6", "P1"]


def run_poses(settings: Settings) -> int:
    """Run the tasks that the file does not have yet, print the table and the bars; 1 if a bar is missed."""
    import torch

    from cryorbit.benchmarks.pose_scores import PoseBenchmark, bars, run_pose_benchmark, table
    from cryorbit.cli.progress import say

    if len(settings.structure) != 1 or not settings.structure[0].exists():
        given = ", ".join(str(path) for path in settings.structure)
        raise BadInput(
            f"--structure {given}: bench poses wants one structure file; the published table's is lysozyme (6lyz)."
        )
    torch.set_num_threads(settings.threads or 1)
    benchmark = PoseBenchmark(
        structure=settings.structure[0], tasks=settings.pose_tasks, seeds=settings.task.seeds
    )
    rows = run_pose_benchmark(benchmark, settings.json, published=settings.published, say=say)
    print(table(rows))
    return 1 if any(text.startswith("MISS") for text in bars(rows)) else 0
