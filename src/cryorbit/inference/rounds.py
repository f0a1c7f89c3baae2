"""Rounds of refinement: every image against the map of its own half, then two new half maps, further out each time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.pose_error import centre_offset
from cryorbit.inference.engine import Workers
from cryorbit.inference.half_maps import HalfMaps
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.locate import Located, disk_data
from cryorbit.inference.observations import Observations
from cryorbit.inference.refine import half_disk, refine_poses

CHUNK = 32
"""Images handled at a time by one worker, so that its arrays stay in cache."""


@dataclass(eq=False)
class PoseTable:
    """Poses of all particles as they are refined; shifts in pixels of the box."""

    rotation: Float[Tensor, "n 3 3"]
    shift_px: Float[Tensor, "n 2"]
    log_likelihood: Float[Tensor, "n"]
    confidence: Float[Tensor, "n"]
    entropy: Float[Tensor, "n"]
    explained: Float[Tensor, "n"]
    deviation: Float[Tensor, "n"]
    angle_sd_deg: Float[Tensor, "n"]

    def scatter(self) -> float:
        """Spread of `deviation` between its 10 % and 90 % points, in units of a normal distribution of spread 1."""
        low, high = self.deviation.quantile(torch.tensor([0.1, 0.9]))
        return float(high - low) / 2.563

    def doubtful(self) -> Int[Tensor, "m"]:
        """Rows that the map explains worse than most, or whose pose has a rival: at most 40 %, at least the worst 5 %."""
        middle = self.explained.median()
        spread = 1.4826 * (self.explained - middle).abs().median()
        low = self.explained < middle - 1.5 * spread
        worst = torch.argsort(self.explained)
        n = len(worst)
        chosen = low | (self.confidence < 0.99)
        keep = torch.zeros(n, dtype=torch.bool)
        keep[worst[: max(n // 20, 1)]] = True
        keep |= chosen
        if int(keep.sum()) > 0.4 * n:
            keep[:] = False
            keep[worst[: int(0.4 * n)]] = True
        return torch.nonzero(keep)[:, 0]

    def of(self, rows: Int[Tensor, "m"]) -> PoseTable:
        """The table of some rows."""
        return PoseTable(**{name: column[rows] for name, column in vars(self).items()})

    def put(self, rows: Int[Tensor, "m"], found: Located) -> None:
        """Take over what the search found for some rows."""
        for field in fields(found):
            getattr(self, field.name)[rows] = getattr(found, field.name)

    @classmethod
    def empty(cls, n: int) -> PoseTable:
        """A table to be filled."""
        return cls(
            torch.eye(3).repeat(n, 1, 1),
            torch.zeros(n, 2),
            torch.zeros(n),
            torch.zeros(n),
            torch.zeros(n),
            torch.zeros(n),
            torch.zeros(n),
            torch.full((n,), 180.0),
        )

    def state(self) -> dict[str, Tensor]:
        """Columns by name, for a checkpoint."""
        return {f"pose_{name}": value for name, value in vars(self).items()}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> PoseTable:
        """The table that `state` described."""
        return cls(**{name.removeprefix("pose_"): v for name, v in state.items() if name.startswith("pose_")})


def spread_px(poses: PoseTable) -> float:
    """Root mean square shift per axis, half a pixel at least."""
    return max(float(poses.shift_px.square().mean()) ** 0.5, 0.5)


def centre_px(
    rotation: Float[Tensor, "n 3 3"],
    shift_px: Float[Tensor, "n 2"],
    weight: Float[Tensor, "n"],
    group: Float[Tensor, "g 3 3"],
) -> Float[Tensor, "3"]:
    """The point c of the particle that images show nearest to their middles, pixels: 0 = (R c)_xy + shift by least squares.

    Images are cut around particles, so it lies near the particle's middle, and as near to all its ends as may be. It is
    averaged over the point group, which keeps the origin.
    """
    offset = centre_offset(rotation.double(), shift_px.double(), weight.double().clamp_min(1e-6))
    return -group.double().mean(0) @ offset


def move_origin(poses: PoseTable, point_px: Float[Tensor, "3"]) -> None:
    """Make a point of the particle, pixels, the origin of its frame, in place: images stay, and their map moves."""
    poses.shift_px += torch.einsum("nij,j->ni", poses.rotation[:, :2].double(), point_px).to(poses.shift_px)


def balanced_blocks(halves: Int[Tensor, "n"], count: int) -> tuple[Int[Tensor, "b"], ...]:
    """All rows in `count` blocks, the two halves (0 and 1) balanced in each."""
    order = torch.argsort(halves, stable=True)
    first, second = order[: int((halves == 0).sum())], order[int((halves == 0).sum()) :]
    pairs = zip(first.tensor_split(count), second.tensor_split(count), strict=True)
    return tuple(torch.cat(pair) for pair in pairs)


def refine_block(
    observed: Observations,
    poses: PoseTable,
    rows: Int[Tensor, "b"],
    halves: Int[Tensor, "b"],
    maps: HalfMaps,
    *,
    radius: int,
    iterations: int,
    shift_sd_px: float,
    team: Workers,
) -> None:
    """Refine the poses of `rows`, each against the map of its half (0 or 1), in place."""

    def work(part: tuple[Tensor, int]) -> None:
        chosen, half = part
        data = disk_data(observed, chosen, observed.transforms(chosen), radius)
        found = refine_poses(
            data,
            maps.halves[half],
            poses.rotation[chosen],
            poses.shift_px[chosen],
            iterations=iterations,
            shift_sd_px=shift_sd_px,
        )
        poses.rotation[chosen] = found.rotation
        poses.shift_px[chosen] = found.shift_px
        poses.log_likelihood[chosen] = found.log_likelihood
        poses.explained[chosen] = found.explained
        poses.deviation[chosen] = found.deviation
        poses.angle_sd_deg[chosen] = found.angle_sd_deg

    parts = [(p, h) for h in (0, 1) for p in rows[halves == h].split(CHUNK) if len(p)]
    team.map(work, parts)


def insert_block(
    observed: Observations,
    poses: PoseTable,
    rows: Int[Tensor, "b"],
    halves: Int[Tensor, "b"],
    lattice: Lattice,
    raw: tuple[Tensor, Tensor],
    group: Float[Tensor, "g 3 3"],
    *,
    radius: float,
    team: Workers,
) -> None:
    """Add images to the sums of their half at their poses and all symmetry-related ones, in place."""
    points = half_disk(radius, inner=0.0)
    centre = observed.box // 2
    radii = points.norm(dim=1)

    def work(half: int) -> None:
        for chosen in rows[halves == half].split(CHUNK):
            if not len(chosen):
                continue
            values = observed.transforms(chosen)[:, points[:, 1].long() + centre, points[:, 0].long()]
            values = observed.undo_odd_phase(values, chosen, points)
            ctf = observed.ctf(chosen, points)
            noise = observed.noise_of(chosen, radii, floor=0.0)
            phase = poses.shift_px[chosen] @ points.T * (2 * torch.pi / observed.box)
            values = values * torch.polar(ctf / noise, phase)
            weights = ctf.square() / noise
            for element in group:
                rotation = poses.rotation[chosen] @ element
                at = points[:, :1] * rotation[:, None, 0] + points[:, 1:] * rotation[:, None, 1]
                lattice.add(raw[half], at, values, weights)

    team.map(work, (0, 1))
