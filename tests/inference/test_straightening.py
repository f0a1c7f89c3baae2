"""Laws of straightening: fine detail pulls a stretch of all views out, and only that."""

from dataclasses import replace

import pytest
import torch

from cryorbit.data import Pose
from cryorbit.geometry.stretch import stretch_equations, stretch_of, stretched, typical_turn
from cryorbit.inference.engine import workers
from cryorbit.inference.ranks import Ranks
from cryorbit.inference.refinement_rounds import RefinementRounds
from cryorbit.inference.refinement_settings import RefinementSettings
from cryorbit.inference.rounds import PoseTable
from cryorbit.inference.straightening import LARGEST_GAIN, Pull, follow_pull, pull_of
from posed_stacks import PIXEL_A, posed_stack

STRETCH = 0.03 * torch.diag(torch.tensor([1.0, 0.2, -1.2], dtype=torch.float64))
"""Radians; its typical turn, 1.2 degrees, is what ab initio maps of long molecules come with in finer images."""
LEFT = 0.25
"""Of the stretch, after two pulls: each is near half of it, and the second is followed further."""
SAME_WAY = 0.95
"""Cosine of the pull and the stretch; the noise of 300 images in each half turns it by a few degrees."""
OF_ITSELF = 0.12
"""Of the stretch: what noise and reading between lattice points pull at views that are right, in boxes this small."""


@pytest.fixture(scope="module", params=[32, 33])
def stack(request):
    return posed_stack(600, box=request.param, noise=0.3, seed=3)


def rounds_of(s, rotation, team):
    """A refinement just after the maps of these poses were made."""
    posed = replace(s.observed.stack, pose=Pose(rotation, s.shift_px * PIXEL_A))
    # Blobs reach out to 12.8 px at three of their widths; a mask that cuts them pulls at the views (decision 14).
    settings = RefinementSettings(start_resolution_A=2.2 * PIXEL_A, particle_diameter_A=154.0, threads=1)
    run = RefinementRounds(posed, settings, None, team)
    state = run._beginning()
    poses = PoseTable.restore(state)
    for _ in run._sweep(state, poses, None, reach=run.plan.limit):
        pass
    run._learn(state, poses, None, reach=run.plan.limit)
    return run, state


def maps_of(run, state):
    maps = run._maps_of(state)
    assert maps is not None
    return maps


def to_truth(rotation, truth):
    return stretch_of(*stretch_equations(rotation, truth), torch.eye(3)[None])


def test_pulls_straighten_the_views(stack):
    with workers(1) as team:
        run, state = rounds_of(stack, stretched(stack.rotation, STRETCH), team)
        poses = PoseTable.restore(state)
        poses.angle_sd_deg[:] = 0.3
        before = to_truth(poses.rotation, stack.rotation)
        for turn in range(2):
            assert follow_pull(state, run.model, poses, maps_of(run, state), run.group, team)
            if turn == 0:
                cosine = (state["pull"] * before).sum((1, 2)) / (
                    state["pull"].norm(dim=(1, 2)) * before.norm()
                )
                assert cosine.min() > SAME_WAY
            state |= poses.state()
            for _ in run._sweep(state, poses, None, reach=run.plan.limit):
                pass
            state |= {"last0": state.pop("raw0"), "last1": state.pop("raw1"), "block": 0}
        assert typical_turn(to_truth(poses.rotation, stack.rotation)) < LEFT * typical_turn(before)


def test_views_that_are_right_are_left_alone(stack):
    with workers(1) as team:
        run, state = rounds_of(stack, stack.rotation, team)
        poses = PoseTable.restore(state)
        poses.angle_sd_deg[:] = 0.3
        pull = pull_of(
            run.model,
            poses,
            maps_of(run, state),
            run.group,
            radius=state["radius"],
            shift_sd_px=1.0,
            team=team,
        )
        assert max(typical_turn(a) for a in pull.of_half) < OF_ITSELF * typical_turn(STRETCH)


def test_a_run_goes_on_in_the_midst_of_straightening(stack):
    def run_from(state, run):
        seen = []
        for record in run.go(state):
            kept = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in record.state.items()}
            seen.append((record.stage, kept))
        return state["pose_rotation"], seen

    with workers(1) as team:
        run, state = rounds_of(stack, stretched(stack.rotation, STRETCH), team)
        state |= {
            "stage": "straighten",
            "still": False,
            "pose_angle_sd_deg": torch.full((600,), 0.3),
            "round": 3,
        }
        whole, seen = run_from(state, run)
        stages = [stage for stage, _ in seen]
        assert {"straightening", "round 3", "final half maps"} <= set(stages)
        saved = seen[stages.index("straightening")][1]
        again, _ = run_from(saved, run)
    assert torch.equal(again, whole)


def test_whether_to_follow_is_the_first_process_word(stack):
    """One process that goes on alone would wait for the others for ever."""

    class Second(Ranks):
        def agree(self, value):
            return False if isinstance(value, bool) else value

    with workers(1, Second()) as team:
        run, state = rounds_of(stack, stretched(stack.rotation, STRETCH), team)
        state["radius"] = run.plan.start_radius
        poses = PoseTable.restore(state)
        poses.angle_sd_deg[:] = 0.0
        assert not follow_pull(state, run.model, poses, maps_of(run, state), run.group, team)
        assert "pulls" not in state


def test_no_pull_has_no_strength():
    """Of a cubic particle, for one: neither a nan nor a pull."""
    assert Pull(torch.zeros(2, 3, 3, dtype=torch.float64)).strength_deg() == 0


def test_what_halves_do_not_share_is_noise():
    assert Pull(torch.stack((STRETCH, -STRETCH))).strength_deg() == 0
    assert Pull(torch.stack((STRETCH, STRETCH))).strength_deg() > 0


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_gain_is_what_the_last_pull_shows(share):
    """Where pulls are a fixed share of what is wrong, following the second one by the gain leaves nothing."""
    first = Pull(torch.stack((STRETCH, STRETCH)) * share)
    second = Pull(first.of_half * (1 - share))
    gain = second.gain_after(first, 1.0)
    torch.testing.assert_close(gain * second.of_half, torch.stack((STRETCH, STRETCH)) * (1 - share))


def test_the_gain_has_an_end():
    pull = Pull(torch.stack((STRETCH, STRETCH)))
    assert pull.gain_after(pull, 1.0) == LARGEST_GAIN
