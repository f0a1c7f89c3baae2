"""Laws of the local search: it finds what a continuous step cannot reach, and never loses what it was given."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from cryorbit.geometry.rotations import geodesic_angle, rotvec_to_matrix
from cryorbit.inference.local_search import Near, _ball, search_near
from cryorbit.inference.locate import disk_data
from cryorbit.inference.refine import DiskData, refine_poses
from posed_stacks import PosedStack, posed_stack

N, RADIUS = 24, 10
TURN_DEG, SHIFT_PX = 20.0, 3.0
FINEST = 1.6
"""Of the last level's grid step: half the diagonal of its cell, and the trilinear error of a read."""
CLOSE_DEG = 1.5
"""Error of refined poses of these images: a few times their Cramer-Rao bound."""


@lru_cache(maxsize=2)
def stack(box: int = 32) -> PosedStack:
    return posed_stack(N, box=box, noise=0.3, ctf=True, seed=11)


def data_of(s: PosedStack) -> DiskData:
    rows = torch.arange(N)
    return disk_data(s.observed, rows, s.observed.transforms(rows), RADIUS)


def half_of(s: PosedStack) -> Tensor:
    """Of the true map on the scale of the images, which `observe` may have divided."""
    return s.half() * scale_of(s)


def scale_of(s: PosedStack) -> float:
    raw, seen = s.observed.stack.images[torch.arange(N)], s.observed.images(torch.arange(N))
    return float(seen.std() / raw.std())


def displaced(s: PosedStack, turn_deg: float, shift_px: float) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    axis = torch.nn.functional.normalize(torch.randn(N, 3, generator=g), dim=1)
    turn = rotvec_to_matrix(axis * math.radians(turn_deg))
    step = torch.nn.functional.normalize(torch.randn(N, 2, generator=g), dim=1) * shift_px
    return turn @ s.rotation, s.shift_px + step


@pytest.mark.parametrize("box", [32, 33])
def test_poses_far_off_are_found_where_continuous_steps_fail(box):
    s = stack(box)
    data, half = data_of(s), half_of(s)
    start = displaced(s, TURN_DEG, SHIFT_PX)
    near = Near(1.2 * TURN_DEG, 1.2 * SHIFT_PX)
    radius_px = s.observed.particle_radius_px
    rotation, shift = search_near(data, half, *start, near, particle_radius_px=radius_px, shift_sd_px=3.0)
    found = refine_poses(data, half, rotation, shift, iterations=4, shift_sd_px=3.0)
    alone = refine_poses(data, half, *start, iterations=4, shift_sd_px=3.0)

    def right(r: Tensor) -> float:
        return float((geodesic_angle(r, s.rotation).rad2deg() < 2 * CLOSE_DEG).float().mean())

    assert right(found.rotation) > 0.9
    assert right(alone.rotation) < right(found.rotation) - 0.2


def test_a_right_pose_stays_within_the_finest_step():
    s = stack()
    near = Near(TURN_DEG, SHIFT_PX)
    radius_px = s.observed.particle_radius_px
    rotation, shift = search_near(
        data_of(s), half_of(s), s.rotation, s.shift_px, near, particle_radius_px=radius_px, shift_sd_px=3.0
    )
    step_deg = math.degrees(s.box / (2 * math.pi * radius_px * RADIUS))
    assert geodesic_angle(rotation, s.rotation).rad2deg().median() < FINEST * step_deg
    assert (shift - s.shift_px).norm(dim=1).median() < FINEST * s.box / (5 * RADIUS)


def test_the_ball_of_turns_is_covered():
    """No turn within the reach is farther from a grid point than the covering radius of a body-centred lattice."""
    reach, step = 0.3, 0.1
    grid = _ball(reach, step)
    g = torch.Generator().manual_seed(0)
    point = torch.nn.functional.normalize(torch.randn(4000, 3, generator=g), dim=1)
    point *= (reach - step) * torch.rand(4000, 1, generator=g) ** (1 / 3)
    covering = math.sqrt(5) / 4 * step * 2 / math.sqrt(3)
    assert torch.cdist(point, grid).min(1).values.max() <= covering * 1.0001
    assert not grid[0].any()
