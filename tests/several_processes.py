"""What a test runs under torchrun: inference by several processes, its results left in a folder for the test to read.

`torchrun --nproc-per-node 2 several_processes.py FOLDER`
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.inference import ranks as ranks_module
from cryorbit.inference.abinitio import run_abinitio
from cryorbit.inference.abinitio_settings import AbinitioSettings
from cryorbit.inference.engine import Progress
from cryorbit.inference.ranks import Deal, Ranks
from cryorbit.inference.reconstruct import ReconstructSettings, reconstruct
from cryorbit.inference.refinement import run_refinement
from cryorbit.inference.refinement_settings import RefinementSettings
from cryorbit.io.checkpoint import load_state, save_state
from posed_stacks import PIXEL_A, posed_stack

N, BOX = 256, 32
REFINEMENT = RefinementSettings(rounds=3, start_resolution_A=30.0, particle_diameter_A=125.0, threads=1)
ABINITIO = AbinitioSettings(threads=1, starts=2, batches=4, batch_images=25, rounds=1)


def stack_and_map() -> tuple[ParticleStack, Volume]:
    """Images with nearly right poses, and the map they are of."""
    s = posed_stack(N, box=BOX, noise=0.3, ctf=True, seed=3)
    stack = replace(s.observed.stack, pose=Pose(s.rotation, s.shift_px * PIXEL_A))
    return stack, Volume(s.blobs.values(BOX).float() * 37.0, PIXEL_A)


def results(ranks: Ranks | None) -> dict[str, Tensor]:
    """Of all verbs, by name."""
    stack, reference = stack_and_map()
    out: dict[str, Tensor] = {}
    *_, last = reconstruct(stack, ReconstructSettings(), ranks=ranks)
    for i, half in enumerate(last.result.half_maps, 1):
        out[f"reconstruct half{i}"] = half.values
    runs = {
        "refine": run_refinement(stack, REFINEMENT, ranks=ranks),
        "search": run_refinement(replace(stack, pose=None), REFINEMENT, reference=reference, ranks=ranks),
        "abinitio": run_abinitio(replace(stack, pose=None), ABINITIO, ranks=ranks),
    }
    for name, records in runs.items():
        *_, last = records
        out[f"{name} rotation"], out[f"{name} shift"] = last.result.pose.rotation, last.result.pose.shift_A
    return out


def resumed(ranks: Ranks, folder: Path) -> dict[str, Tensor]:
    """A search that all processes stop half-way, save, and go on with from the file."""
    stack, reference = stack_and_map()
    stack = replace(stack, pose=None)
    for progress in run_refinement(stack, REFINEMENT, reference=reference, ranks=ranks):
        if progress.whole is not None and not progress.state:  # in the middle of a stage
            _save(ranks, folder, progress)
            break
    tensors, meta = load_state(folder / "checkpoint.safetensors")
    state = {**tensors, **meta}
    *_, last = run_refinement(stack, REFINEMENT, reference=reference, state=state, ranks=ranks)
    return {"resumed rotation": last.result.pose.rotation, "resumed shift": last.result.pose.shift_A}


def _save(ranks: Ranks, folder: Path, progress: Progress) -> None:
    assert progress.whole is not None
    state = progress.whole()
    if ranks.first:
        tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        rest = {k: v for k, v in state.items() if k not in tensors}
        save_state(folder / "checkpoint.safetensors", tensors, rest)
    ranks.any(False)  # all wait until the file is there


def dealt(ranks: Ranks, *, stop_after: int | None = None) -> tuple[Tensor, Tensor]:
    """A column of squares and their sum, 23 rows in 7 blocks; if asked, saved in the middle and begun anew from there."""
    blocks = torch.randperm(23, generator=torch.Generator().manual_seed(0)).tensor_split(7)
    state: dict[str, Any] = {"column": torch.full((25,), -1.0), "total": torch.zeros(1), "block": 0}
    while state["block"] < len(blocks):
        deal = Deal(ranks, blocks, state["block"], columns=[state["column"]], sums={"total": state["total"]})
        for hand in deal:
            state["column"][hand.mine] = hand.mine.float().square()
            state["total"] += hand.mine.float().square().sum()
            state["block"] = hand.done
            kept = deal.kept(hand, state)
            if stop_after is not None and hand.done > stop_after:
                stop_after, state = None, kept["whole"]() if ranks.size > 1 else kept["state"]
                break
    return state["column"], state["total"]


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    ranks_module.MEET_EVERY_S = 0.0  # after every hand
    out = results(ranks) | resumed(ranks, folder)
    for name, stop in (("whole", None), ("stopped", 2)):
        out[f"dealt {name} column"], out[f"dealt {name} total"] = dealt(ranks, stop_after=stop)
    save_state(folder / f"rank{ranks.rank}.safetensors", out, {})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
