"""Refinement to the limit of the data: two half sets that never meet, each image against the map of its own half.

From poses that are roughly known, or from a map alone, to the resolution the images hold. A round compares every image with
its half's map out to the radius at which the two halves agree, moves its pose (`local_search` in the first round,
`refine` in all), and adds it to the sums of its half; the images that fit worst are searched over all poses again. Noise
spectra, scales and defocus are measured per half as well (`particle_model`). The rounds end when neither the radius nor
the poses move any more.

Gold standard: what the halves have in common is the reference they start from, low-passed, and nothing afterwards. The
radius and the weights of the maps follow the correlation of the halves, as in Scheres and Chen (2012).
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
from cryorbit.inference.engine import Progress, workers
from cryorbit.inference.half_maps import HalfMaps
from cryorbit.inference.lattice import on_image_grid
from cryorbit.inference.memory import free_bytes, require_memory
from cryorbit.inference.ranks import Ranks
from cryorbit.inference.refinement_rounds import RefinementRounds
from cryorbit.inference.refinement_settings import RefinementSettings
from cryorbit.inference.rounds import PoseTable

LEAST_IMAGES = 50


@dataclass(frozen=True, eq=False)
class RefinementResult:
    """What a refinement found."""

    stack: ParticleStack
    """The particles with their poses, half sets and, if it was asked for, refined defocus."""
    confidence: Float[Tensor, "n"]
    entropy: Float[Tensor, "n"]
    log_likelihood: Float[Tensor, "n"]
    angle_sd_deg: Float[Tensor, "n"]
    scale: Float[Tensor, "n"]
    map: Volume
    half_maps: tuple[Volume, Volume]
    curve: ShellCorrelation
    rounds: int
    shared_to_A: float | None
    """Low-pass of the reference that both halves started from; None where each started from poses of its own."""
    verdict: str
    converged: bool

    @property
    def pose(self) -> Pose:
        """Of all particles."""
        assert self.stack.pose is not None
        return self.stack.pose

    @property
    def half_set(self) -> Int[Tensor, "n"]:
        """1 or 2 per particle."""
        assert self.stack.half_set is not None
        return self.stack.half_set


def run_refinement(
    stack: ParticleStack,
    settings: RefinementSettings,
    *,
    reference: Volume | None = None,
    state: dict[str, Any] | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Progress]:
    """Yield progress; the last record carries the `RefinementResult`. `state` of any record continues from there.

    With `ranks`, every process calls this with the same stack and state, and gets the whole result.

    Raises
    ------
    BadInput
        If there are neither poses nor a reference, too few images or too little memory, or images and reference do not go
        together.
    """
    if stack.pose is None and reference is None:
        raise BadInput(
            f"{stack.source}: no poses, and no map to find them with. Give --map, or run `cryorbit abinitio` first."
        )
    if settings.search and reference is None:
        raise BadInput("--search needs a map to search with: give --map.")
    if len(stack) < LEAST_IMAGES:
        raise BadInput(
            f"{stack.source}: {len(stack)} images are too few to refine; {LEAST_IMAGES} is the least."
        )
    require_memory(stack.box, "refine", free=free_bytes(), processes=(ranks or Ranks()).neighbours)
    with workers(settings.threads or torch.get_num_threads(), ranks) as team:
        rounds = RefinementRounds(stack, settings, reference, team)
        now = dict(state or {})
        yield from rounds.go(now)
        result = result_of(rounds, now)
    metrics = {
        "image_visits": float(now["visits"]),
        "resolution_0143_A": result.curve.resolution_A(threshold=0.143),
    }
    yield Progress("done", 1, 1, 1.0, metrics, {}, result)


def result_of(rounds: RefinementRounds, state: dict[str, Any]) -> RefinementResult:
    """Maps, poses and verdict from the sums of the last sweep."""
    poses, solved = PoseTable.restore(state), rounds.last_maps(state)
    stack, box, pixel = rounds.model.stack, rounds.stack.box, rounds.stack.pixel_size_A
    halves = [Volume(on_image_grid(m, box), pixel) for m in solved.maps]
    curve = fourier_shell_correlation(halves[0], halves[1])
    verdict, converged = _verdict(rounds, state, poses, solved, curve)
    return RefinementResult(
        stack=_posed(stack, Pose(poses.rotation, poses.shift_px * pixel), rounds.halves + 1),
        confidence=poses.confidence,
        entropy=poses.entropy,
        log_likelihood=poses.log_likelihood,
        angle_sd_deg=poses.angle_sd_deg,
        scale=rounds.model.scale,
        map=Volume(on_image_grid((solved.filtered[0] + solved.filtered[1]) / 2, box), pixel),
        half_maps=(halves[0], halves[1]),
        curve=curve,
        rounds=state["round"] - 1,
        shared_to_A=None
        if rounds.reference is None and rounds.own_halves
        else rounds.plan.field_A / rounds.plan.start_radius,
        verdict=verdict,
        converged=converged,
    )


def _posed(stack: ParticleStack, pose: Pose, half_set: Tensor) -> ParticleStack:
    from dataclasses import replace

    return replace(stack, pose=pose, half_set=half_set)


def _verdict(
    rounds: RefinementRounds,
    state: dict[str, Any],
    poses: PoseTable,
    solved: HalfMaps,
    curve: ShellCorrelation,
) -> tuple[str, bool]:
    """What a user may believe, without any truth at hand."""
    resolution = curve.resolution_A(threshold=0.143)
    if rounds.reference is not None and solved.radius_at(0.143) <= state["start_radius"] + 1:
        found = (
            f"the half maps agree to {resolution:.1f} A, no further than the reference that both started from"
        )
        if state["start_radius"] + 1 >= rounds.plan.limit:
            return (
                f"Not shown: {found}, which was hardly low-passed. Give a larger --start-resolution-A, so that the "
                "images can show more than it does.",
                False,
            )
        return (
            f"Not refined: {found}. Do particles and map belong together? Is the pixel size right?",
            False,
        )
    turn = float(poses.angle_sd_deg.median())
    found = f"half maps agree to {resolution:.1f} A (unmasked, FSC 0.143), angles to {turn:.2g} degrees"
    if not state["still"]:
        return f"Still moving after {state['round'] - 1} rounds: {found}. Give more --rounds.", False
    return f"Refined in {state['round'] - 1} rounds: {found}.", True
