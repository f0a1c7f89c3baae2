"""Poses, half maps and a verdict from particle images, with no start map.

Four stages, each a loop over blocks of work that can stop and go on anywhere: random starts in ring space (`coarse`); the
posterior of every image on the whole grid of poses against the best start's map (`searches`); rounds of continuous
refinement of the two halves, each image against the map of its own half, to the radius their agreement supports
(`rounds`); and the final half maps at full radius.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation
from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.abinitio_rounds import AbinitioRounds
from cryorbit.inference.abinitio_settings import AbinitioSettings
from cryorbit.inference.coarse import KICK_ABOVE
from cryorbit.inference.engine import Progress, workers
from cryorbit.inference.lattice import on_image_grid
from cryorbit.inference.memory import free_bytes, require_memory
from cryorbit.inference.ranks import Ranks
from cryorbit.inference.rounds import PoseTable

SCATTER_LIMIT, RANGE_LIMIT = 2.2, 0.25
"""Scatter of the images' fit over that of noise, and its plain 10-90 % range, above both of which a map is not believed.

Right maps of simulated particles measured 1.5 to 1.6 and 0.17 to 0.18, one that mixed poses 3.1 and 0.40."""


@dataclass(frozen=True, eq=False)
class AbinitioResult:
    """What a run found."""

    pose: Pose
    half_set: Int[Tensor, "n"]
    confidence: Float[Tensor, "n"]
    entropy: Float[Tensor, "n"]
    log_likelihood: Float[Tensor, "n"]
    angle_sd_deg: Float[Tensor, "n"]
    map: Volume
    half_maps: tuple[Volume, Volume]
    curve: ShellCorrelation
    verdict: str
    converged: bool


def run_abinitio(
    stack: ParticleStack,
    settings: AbinitioSettings,
    *,
    state: dict[str, Any] | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Progress]:
    """Yield progress; the last record carries the `AbinitioResult`. `state` of any record continues from there.

    With `ranks`, every process calls this with the same stack and state, and gets the whole result. The random starts are
    made by each alike; search and refinement are shared out.

    Raises
    ------
    BadInput
        If there are too few images, they are unusable, or the maps do not fit into memory.
    """
    require_memory(stack.box, "refine", free=free_bytes(), processes=(ranks or Ranks()).neighbours)
    if len(stack) < 2 * settings.batch_images // 2 or len(stack) < 50:
        raise BadInput(f"{stack.source}: {len(stack)} images are too few for a map from nothing.")
    count = settings.threads or torch.get_num_threads()
    with workers(count, ranks) as team:
        rounds, now = AbinitioRounds(stack, settings, team), dict(state or {})
        yield from rounds.go(now)
        result = result_of(rounds, now)
        metrics = {
            "image_visits": float(now["visits"]),
            "resolution_0143_A": result.curve.resolution_A(threshold=0.143),
            "confidence": float(result.confidence.mean()),
        }
        yield Progress("done", 1, 1, 1.0, metrics, {}, result)


def result_of(rounds: AbinitioRounds, state: dict[str, Any]) -> AbinitioResult:
    """What the state of a run that is through says."""
    poses, solved = PoseTable.restore(state), rounds.last_maps(state)
    box, pixel = rounds.stack.box, rounds.stack.pixel_size_A
    halves = [Volume(on_image_grid(m, box), pixel) for m in solved.maps]
    curve = fourier_shell_correlation(halves[0], halves[1])
    filtered = (solved.filtered[0] + solved.filtered[1]) / 2
    verdict, converged = _verdict(
        poses, curve, state["parity_gain"] / max(abs(state["coarse_evidence"]), 1e-6)
    )
    return AbinitioResult(
        pose=Pose(poses.rotation, poses.shift_px * pixel),
        half_set=rounds.halves + 1,
        confidence=poses.confidence,
        entropy=poses.entropy,
        log_likelihood=poses.log_likelihood,
        angle_sd_deg=poses.angle_sd_deg,
        map=Volume(on_image_grid(filtered, box), pixel),
        half_maps=(halves[0], halves[1]),
        curve=curve,
        verdict=verdict,
        converged=converged,
    )


def _verdict(poses: PoseTable, curve: ShellCorrelation, parity_share: float) -> tuple[str, bool]:
    """What a user may believe, without any truth at hand."""
    if parity_share > 1.5 * KICK_ABOVE:
        return (
            f"Not converged: the images still split into two groups ({parity_share:.0%} of what the map explains), as they "
            "do when it mixes the two hands. Run again with another --seed or more --starts.",
            False,
        )
    spread = poses.scatter()
    low, high = poses.explained.quantile(torch.tensor([0.1, 0.9])).tolist()
    if spread > SCATTER_LIMIT and high - low > RANGE_LIMIT:
        return (
            f"Not converged: how well the map explains the images varies {spread:.1f} times more than noise alone would "
            "make it, so some images do not belong to this map. Run again with another --seed or more --starts.",
            False,
        )
    confident = float((poses.confidence > 0.9).float().mean())
    resolution = curve.resolution_A(threshold=0.143)
    if confident > 0.8:
        return f"Converged: {confident:.0%} of the particles have one clear pose; {resolution:.1f} A.", True
    return (
        f"Not shown to have converged: only {confident:.0%} of the particles have one clear pose, while the half maps "
        f"agree to {resolution:.1f} A. Compare runs with other --seed values: right ones show the same map.",
        False,
    )
