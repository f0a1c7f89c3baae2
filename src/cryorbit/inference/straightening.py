"""Views that are wrong together: the stretch of a map that rounds of pose and map leave, found by fine detail alone.

Views may all be wrong by n cross A n (`geometry.stretch`), and their map then agrees with itself: coarse shells do not
feel it at all, and a pose that follows all shells follows them most. On an RNA polymerase from ab initio, 0.35 degrees fell
to 0.14 in four rounds and stood there, more than the poses' own uncertainty. The finer half of the shells alone pulls a
third to a half of it out at a time, so some images are asked where they would move by these, each against the map of its
half; the stretch in the answer, five numbers, is taken out of all poses of that half, and new maps are made. Nothing
else of the answer is kept: single poses know less by half their shells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.geometry.stretch import stretch_equations, stretch_of, stretched, typical_turn
from cryorbit.inference.engine import Workers
from cryorbit.inference.half_maps import HalfMaps
from cryorbit.inference.locate import disk_data
from cryorbit.inference.particle_model import ParticleModel
from cryorbit.inference.refine import refine_poses
from cryorbit.inference.rounds import CHUNK, PoseTable

ASKED = 2000
"""Images of each half that are asked."""
FINE = 0.5
"""Of the radius: shells from here on are fine."""
LARGEST_GAIN = 4.0
MOST = 4
"""Pulls that are followed at most."""
WORTH = 0.1
"""Pull, in units of the poses' own uncertainty, below which it is not followed."""
CLEAR = 2.0
"""How many times the halves' pull must exceed what they differ by."""


@dataclass(frozen=True, eq=False)
class Pull:
    """The stretch towards which fine detail pulls the views of each half, radians."""

    of_half: Float[Tensor, "2 3 3"]

    def strength_deg(self) -> float:
        """Typical turn of what the halves have in common, degrees; 0 where they differ by half as much."""
        common = typical_turn(self.of_half.mean(0))
        noise = typical_turn((self.of_half[0] - self.of_half[1]) / 2)
        return math.degrees(common) if common > CLEAR * noise else 0.0

    def gain_after(self, before: Pull, gain: float) -> float:
        """How far to follow this pull, when following the one before by `gain` left it: a secant step, 1 to 4.

        A pull is a share of what is wrong; what it has become tells the share.
        """
        left = float((self.of_half * before.of_half).sum() / before.of_half.square().sum().clamp_min(1e-300))
        share = (1 - left) / gain
        return min(max(1 / max(share, 1e-3), 1.0), LARGEST_GAIN)


def follow_pull(
    state: dict[str, Any],
    model: ParticleModel,
    poses: PoseTable,
    maps: HalfMaps,
    group: Float[Tensor, "g 3 3"],
    team: Workers,
) -> bool:
    """Turn all views the way that fine detail pulls them, in place; False where the pull is not worth it, or was often.

    `state` is that of `RefinementRounds`: radius and spread of the shifts are read, and what was followed last is kept, so
    that the next pull is followed as far as this one should have been.
    """
    if state.get("pulls", 0) >= MOST:
        return False
    pull = pull_of(
        model, poses, maps, group, radius=state["radius"], shift_sd_px=state["shift_sd_px"], team=team
    )
    # What decides how the run goes on comes from one process: another processor may round otherwise.
    if not team.ranks.agree(pull.strength_deg() > WORTH * float(poses.angle_sd_deg.median())):
        return False
    gain = pull.gain_after(Pull(state["pull"]), state["pull_gain"]) if "pull" in state else 1.0
    for half in (0, 1):
        rows = model.half == half
        poses.rotation[rows] = stretched(poses.rotation[rows], gain * pull.of_half[half])
    state |= {"pull": pull.of_half, "pull_gain": gain, "pulls": state.get("pulls", 0) + 1}
    return True


def pull_of(
    model: ParticleModel,
    poses: PoseTable,
    maps: HalfMaps,
    group: Float[Tensor, "g 3 3"],
    *,
    radius: int,
    shift_sd_px: float,
    team: Workers,
) -> Pull:
    """Ask some images of each half where they would move by the shells from `FINE` of `radius` to `radius`."""

    def work(part: tuple[Int[Tensor, "m"], int]) -> tuple[Tensor, Tensor]:
        rows, half = part
        data = disk_data(model, rows, model.transforms(rows), radius, inner=FINE * radius)
        moved = refine_poses(
            data,
            maps.halves[half],
            poses.rotation[rows],
            poses.shift_px[rows],
            iterations=2,
            shift_sd_px=shift_sd_px,
        )
        return stretch_equations(poses.rotation[rows], moved.rotation)

    parts: list[tuple[Tensor, int]] = []
    for half in (0, 1):
        of_half = torch.nonzero(model.half == half)[:, 0]
        chosen = of_half[:: max(1, -(-len(of_half) // ASKED))]
        dealt = chosen[team.ranks.rank :: team.ranks.size]
        parts += [(rows, half) for rows in dealt.split(CHUNK) if len(rows)]
    normal, right = torch.zeros(2, 8, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64)
    for (_, half), (one, side) in zip(parts, team.map(work, parts), strict=True):
        normal[half] += one
        right[half] += side
    team.ranks.sum_(normal, right)
    return Pull(torch.stack([stretch_of(normal[h], right[h], group) for h in (0, 1)]))
