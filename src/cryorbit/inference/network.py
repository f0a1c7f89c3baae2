"""Ab initio by a network: poses from `amortised`, then the rounds of refinement and the half maps of `abinitio`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from cryorbit.data import ParticleStack
from cryorbit.errors import BadInput
from cryorbit.inference.abinitio import run_abinitio
from cryorbit.inference.abinitio_settings import AbinitioSettings
from cryorbit.inference.amortised import AmortisedResult, run_amortised
from cryorbit.inference.amortised_settings import AmortisedSettings
from cryorbit.inference.engine import Progress
from cryorbit.inference.rounds import PoseTable

SHARE = 0.7
"""Share of the run, by expected time, that is the network's."""


def run_network(
    stack: ParticleStack,
    settings: AbinitioSettings,
    network: AmortisedSettings,
    *,
    state: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """As `run_abinitio`, with its random starts and search replaced by a network (with a teacher or without).

    Raises
    ------
    BadInput
        If the particle is symmetric, or the images are too few or unusable.
    """
    if settings.symmetry != "C1":
        raise BadInput(
            f"--method with a network knows no symmetry, got {settings.symmetry}. Use --method search."
        )
    state = dict(state or {})
    if state.get("stage", "network") == "network":
        state.pop("stage", None)
        for record in run_amortised(stack, network, state=state or None):
            if record.result is None:
                yield replace(
                    record, fraction=SHARE * record.fraction, state={**record.state, "stage": "network"}
                )
            else:
                state = handed_over(stack, record.result)
    for record in run_abinitio(stack, settings, state=state):
        yield replace(record, fraction=SHARE + (1 - SHARE) * record.fraction)


def handed_over(stack: ParticleStack, found: AmortisedResult) -> dict[str, Any]:
    """The state of an ab initio run whose search has just ended with these poses.

    The search that ab initio repeats for images it doubts is left out, so that nothing is searched behind a network whose
    teacher is off.
    """
    poses = PoseTable.empty(len(stack))
    poses.rotation = found.pose.rotation.float().clone()
    poses.shift_px = found.pose.shift_A.float() / stack.pixel_size_A
    poses.confidence, poses.entropy = found.confidence.clone(), found.entropy.clone()
    return {
        "stage": "refine",
        "round": 0,
        "block": 0,
        "radius": found.radius,
        "visits": found.image_visits,
        "shift_sd_px": max(float(poses.shift_px.square().mean()) ** 0.5, 0.5),
        "coarse_evidence": 1.0,
        "parity_gain": found.parity_share,
        "looked_twice": not found.searched,
        **poses.state(),
    }
