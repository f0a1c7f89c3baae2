"""Laws of refinement: the halves never meet, poses come to what the truth gives, a run resumes to the same result."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cryorbit.analysis.pose_error import pose_errors
from cryorbit.benchmarks.gold_standard import Independence, Leaking, independence
from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.data.particles import MemoryImages
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.inference.engine import workers
from cryorbit.inference.refinement import RefinementResult, result_of, run_refinement
from cryorbit.inference.refinement_rounds import RefinementRounds
from cryorbit.inference.refinement_settings import RefinementSettings
from physics_models import uniform_rotations
from posed_stacks import PIXEL_A, PosedStack, posed_stack

N, BOX = 500, 32
SETTINGS = RefinementSettings(rounds=4, start_resolution_A=30.0, particle_diameter_A=125.0, threads=1)


def last(stack: ParticleStack, settings: RefinementSettings = SETTINGS, **given) -> RefinementResult:
    *_, done = run_refinement(stack, settings, **given)
    return done.result


@pytest.fixture(scope="module", params=[32, 33])
def truth(request) -> PosedStack:
    return posed_stack(N, box=request.param, noise=1.0, ctf=True, seed=21)


def with_poses(s: PosedStack, turn_rad: float, shift_px: float) -> ParticleStack:
    g = torch.Generator().manual_seed(2)
    turn = rotvec_to_matrix(turn_rad * torch.randn(N, 3, generator=g))
    shift = s.shift_px + shift_px * torch.randn(N, 2, generator=g)
    return replace(s.observed.stack, pose=Pose(turn @ s.rotation, shift * PIXEL_A))


def medse(s: PosedStack, found: RefinementResult) -> float:
    """Median squared error of the poses, the frame that no image tells taken out."""
    return pose_errors(found.pose, Pose(s.rotation, s.shift_px * PIXEL_A)).medse_refined


MORE_THAN_THE_TRUTH = 1.5
"""Squared error of poses refined from a wrong start, over that of the same refinement started at the truth."""


START_A = 48.0
BY_CHANCE = 3.5
"""Standard deviations: ten shells reach it once in two hundred tries."""

WITHIN_DEG = 4.0
"""Median error of poses found from a map, of images this noisy: half a step of the grid that was searched."""


def test_poses_refine_to_what_a_start_at_the_truth_gives(truth):
    from_truth = medse(truth, last(with_poses(truth, 0.0, 0.0)))
    from_afar = medse(truth, last(with_poses(truth, 0.1, 1.0)))
    assert from_afar < MORE_THAN_THE_TRUTH * from_truth


def test_a_particle_off_the_origin_refines_as_well_and_stays_there(truth):
    """Its middle is where the images show it, and the mask goes there (decision 15)."""
    centred = with_poses(truth, 0.0, 0.0)
    assert centred.pose is not None
    moved = centred.pose.shift_A + (truth.rotation @ torch.tensor([5.0, -4.0, 3.0]))[:, :2] * PIXEL_A
    found = last(replace(centred, pose=Pose(centred.pose.rotation, moved)))
    given = Pose(truth.rotation, moved)
    assert pose_errors(found.pose, given).medse_refined < MORE_THAN_THE_TRUTH * medse(truth, last(centred))
    assert float((found.pose.shift_A - moved).norm(dim=1).median()) < 0.5 * PIXEL_A


def test_a_map_alone_is_enough(truth):
    reference = Volume(truth.blobs.values(truth.box).float() * 37.0, PIXEL_A)
    found = last(truth.observed.stack, reference=reference)
    assert medse(truth, found) < 8 * math.sin(math.radians(WITHIN_DEG) / 2) ** 2
    assert set(found.half_set.tolist()) == {1, 2}


def test_agreement_no_further_than_the_reference_is_no_result(truth):
    """A reference that is hardly low-passed leaves nothing that only the images can tell; the verdict says so."""
    reference = Volume(truth.blobs.values(truth.box).float() * 37.0, PIXEL_A)
    settings = replace(SETTINGS, rounds=1, start_resolution_A=2 * PIXEL_A)
    found = last(with_poses(truth, 0.0, 0.0), settings, reference=reference)
    assert not found.converged
    assert "--start-resolution-A" in found.verdict


def noise_alone(seed: int) -> ParticleStack:
    g = torch.Generator().manual_seed(seed)
    return ParticleStack(
        images=MemoryImages(torch.randn(N, BOX, BOX, generator=g)),
        pixel_size_A=PIXEL_A,
        ids=np.array([str(i) for i in range(N)]),
        pose=Pose(uniform_rotations(N, seed=seed).float(), torch.zeros(N, 2)),
    )


def deviations(kind: type[RefinementRounds]) -> Independence:
    settings = replace(SETTINGS, rounds=3, start_resolution_A=START_A)
    with workers(1) as team:
        state: dict[str, Any] = {}
        run = kind(noise_alone(0), settings, None, team)
        for _ in run.go(state):
            pass
        return independence(*result_of(run, state).half_maps, start_A=START_A)


def test_noise_alone_does_not_correlate_beyond_the_start():
    """Each half fits its own noise: with nothing shared their maps are independent."""
    assert deviations(RefinementRounds).largest < BY_CHANCE


def test_a_shared_reference_is_caught_by_the_same_measure():
    """The measure can fail: refined against one map of all images, halves of noise agree where they should not."""
    assert deviations(Leaking).largest > 2 * BY_CHANCE


def test_a_run_goes_on_from_any_record_to_the_same_result(truth):
    stack = with_poses(truth, 0.05, 0.5)
    settings = replace(SETTINGS, rounds=2)
    records, states = [], []
    for record in run_refinement(stack, settings):
        records.append(record)
        states.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in record.state.items()})
    whole = records[-1].result
    for at in (0, len(records) // 2, len(records) - 2):
        *_, again = run_refinement(stack, settings, state=states[at])
        assert torch.equal(again.result.pose.rotation, whole.pose.rotation)
        assert torch.equal(again.result.half_maps[0].values, whole.half_maps[0].values)


def test_bad_input_is_refused(truth):
    stack = truth.observed.stack
    with pytest.raises(BadInput, match="Give --map"):
        next(iter(run_refinement(stack, SETTINGS)))
    with pytest.raises(BadInput, match="--search needs a map"):
        next(iter(run_refinement(with_poses(truth, 0, 0), replace(SETTINGS, search=True))))
    with pytest.raises(BadInput, match="too few"):
        next(iter(run_refinement(with_poses(truth, 0, 0).select(torch.arange(20)), SETTINGS)))
    halves = torch.arange(N) % 2 + 1
    halves[7] = 0
    with pytest.raises(BadInput, match="row 8: half set 0"):
        next(iter(run_refinement(replace(with_poses(truth, 0, 0), half_set=halves), SETTINGS)))
    with pytest.raises(BadInput, match="--rounds"):
        RefinementSettings(rounds=0)
