"""The coarse stage: several random starts of `ring_em`, the worse half dropped twice, the best one carried on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cryorbit.inference.engine import Workers, generator_from
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import Observations, support_mask
from cryorbit.inference.parity import ParitySplit, PosedImages, insert_posed, parity_split
from cryorbit.inference.refine import half_disk
from cryorbit.inference.ring_em import (
    NOISE_FLOOR,
    Level,
    SmallImages,
    coarse_map,
    expectation_maximisation_batch,
    level_for,
    make_view,
    random_directions,
    random_start,
)

KICKED = 900
"""Number of the start that the parity kick made."""
KICK_ABOVE = 0.06
"""Gain of a two-signed component, as a share of the log evidence, above which the kick is tried.

Maps of one hand show about 0.03, which is the grid's own error in the poses; a map of both hands more than 0.1."""
COLD = 0.45
"""Temperature at the end of an annealed ramp.

At 1 the posterior of a nearly round particle is so flat that the map, damped by its own power, fades; from 0.45 at once most
starts end in a map that mixes poses. Cooling from 1 to 0.45 has neither fault."""
MAP_REGULARISER = 0.1
"""Share of the shell-wise Wiener term; the full term makes the early map too smooth to break its symmetry."""


@dataclass(frozen=True, kw_only=True)
class CoarsePlan:
    """What the coarse stage does, in batches."""

    n_starts: int
    ramp: int
    """Batches in which the radius grows from first_radius to last_radius."""
    hold: int
    """Batches at the last radius."""
    batch: int
    forgetting: float
    first_radius: int
    last_radius: int
    box: int
    annealed: bool = False
    """For cubic symmetries, whose maps differ from a ball in fine detail only: no parity kick, and temperatures."""

    @property
    def batches(self) -> int:
        """Batches of one start that is carried to the end."""
        return self.ramp + self.hold

    def radius(self, batch: int) -> int:
        """Radius of the rings in this batch."""
        grown = self.first_radius + (self.last_radius - self.first_radius + 1) * batch / self.ramp
        return min(self.last_radius, int(grown))

    def temperature(self, batch: int) -> float:
        """Factor on the noise power in this batch."""
        if not self.annealed:
            return 1.0
        return COLD ** min(1.0, batch / self.ramp)

    @property
    def shifts_per_wave(self) -> float:
        """Trial shifts per period of the finest ring."""
        return 3.8 if self.annealed else 2.6

    @property
    def mask_room(self) -> float:
        """Radius of the map's mask over that of the particle.

        A radius from the mean image is padded already; more lets neighbours into the map, and then poses follow them.
        """
        return 1.0 if self.annealed else 1.15

    def alive(self, batch: int) -> int:
        """Starts still carried on in this batch: all, then half, then one, and after the ramp that and its kicked twin."""
        if batch < 0.45 * self.ramp:
            return self.n_starts
        if batch < 0.75 * self.ramp:
            return max(1, self.n_starts // 2)
        if self.annealed:
            return max(1, self.n_starts // 4)
        return 1 if batch < self.ramp else 2


@dataclass(eq=False)
class Start:
    """One random start: sums, map and what it learnt of shifts and likelihood."""

    number: int
    raw: Tensor
    map: Tensor
    shift_sd_px: float
    log_evidence: list[float]
    recent: Tensor = field(default_factory=lambda: torch.zeros(0, 12))
    """Image, rotation and shift of the images of the last batches, a row each: what the parity kick works on."""

    def recent_evidence(self) -> float:
        """Mean log evidence of the last eight batches."""
        recent = self.log_evidence[-8:]
        return sum(recent) / max(len(recent), 1)


class CoarseStage:
    """Random starts carried on batch by batch; `state` and `restore` make it resumable."""

    def __init__(
        self, small: SmallImages, plan: CoarsePlan, group: Tensor, *, seed: int, team: Workers
    ) -> None:
        self.small, self.plan, self.group, self.team = small, plan, group, team
        self.observed: Observations = small.observed
        self.lattice = Lattice(plan.box)
        scale = plan.box / self.observed.box
        self.mask = support_mask(plan.box, plan.mask_room * self.observed.particle_radius_px * scale)
        self.seed = seed
        self.batch = 0
        self.starts: list[Start] = []
        self.parity_gain = 0.0

    @property
    def done(self) -> bool:
        """Whether the last batch is through."""
        return self.batch >= self.plan.batches

    @property
    def best(self) -> Start:
        """The start with the highest likelihood."""
        return max(self.starts, key=Start.recent_evidence)

    @property
    def image_visits(self) -> int:
        """Images compared with a map so far, all starts together."""
        return self.plan.batch * sum(len(s.log_evidence) for s in self.starts) + self._dropped_visits

    _dropped_visits = 0

    def begin(self) -> None:
        """Draw the random starts."""
        level = self._level(self.plan.first_radius)
        for k in range(self.plan.n_starts):
            generator = generator_from(None, seed=self._seed(k, -1))
            raw = random_start(self.small, self.lattice, level, self.group, count=200, generator=generator)
            first = self._solve(raw, self.plan.first_radius)
            self.starts.append(Start(k, raw, first, self.observed.shift_sd_px, []))

    def step(self) -> None:
        """One batch of every start that is still alive; all of them see the same images."""
        if self.batch == self.plan.ramp and not self.plan.annealed:
            self._kick()
        alive = self.plan.alive(self.batch)
        if alive < len(self.starts):
            ranked = sorted(self.starts, key=Start.recent_evidence, reverse=True)
            self._dropped_visits += self.plan.batch * sum(len(s.log_evidence) for s in ranked[alive:])
            self.starts = ranked[:alive]
        index = self._images_of_batch()
        for start in self.starts:
            self._advance(start, index)
        self.batch += 1
        if self.done and not self.plan.annealed:
            self.parity_gain = self._split(self.best)[1].gain

    def _kick(self) -> None:
        """If the residuals of the best start have a two-signed component, let the map of one sign compete with it."""
        best = self.best
        data, split = self._split(best)
        self.parity_gain = split.gain
        if split.gain < KICK_ABOVE * abs(best.recent_evidence()):
            return
        raw = insert_posed(data, split.sign > 0, self.lattice, torch.ones(len(split.sign)))
        kicked = self._solve(raw, self.plan.last_radius)
        self.starts = [best, Start(KICKED, raw, kicked, best.shift_sd_px, [], best.recent)]
        # The two are compared on the batches to come only.
        self._dropped_visits += self.plan.batch * len(best.log_evidence)
        best.log_evidence = []

    def _split(self, start: Start) -> tuple[PosedImages, ParitySplit]:
        """The rank-1 split of the images that the start saw last."""
        index, rotation, shift = start.recent[:, 0].long(), start.recent[:, 1:10], start.recent[:, 10:]
        radius = self.plan.last_radius
        points = half_disk(radius)
        rows, n = self.small.rows[index], self.plan.box
        transform = torch.fft.rfft2(torch.fft.ifftshift(self.small.images[index], dim=(-2, -1)))
        values = transform[:, points[:, 1].long() % n, points[:, 0].long()]
        values = self.observed.undo_odd_phase(values, rows, points)
        deviation = self.observed.noise_at(points.norm(dim=1), floor=NOISE_FLOOR).sqrt()
        phase = shift @ points.T * (2 * math.pi / self.observed.box)
        rotation = rotation.reshape(-1, 3, 3)
        at = points[:, :1] * rotation[:, None, 0] + points[:, 1:] * rotation[:, None, 1]
        data = PosedImages(
            values * torch.polar((1 / deviation).expand_as(phase), phase),
            self.observed.ctf(rows, points) / deviation,
            at,
        )
        generator = generator_from(None, seed=self._seed(998, 0))
        half = self.lattice.to_half(start.map)
        split = parity_split(
            data, half, self.lattice, self.mask, radius=radius, iterations=12, generator=generator
        )
        return data, split

    def _advance(self, start: Start, index: Tensor) -> None:
        radius = self.plan.radius(self.batch)
        level = self._level(radius)
        generator = generator_from(None, seed=self._seed(start.number, self.batch))
        view = make_view(
            self.lattice.to_half(start.map),
            level,
            random_directions(level.order, self.group.double(), generator),
            n=self.plan.box,
            box=self.observed.box,
            reach_px=min(max(3 * start.shift_sd_px, level.shift_step_px), 0.25 * self.observed.box),
            shift_sd_px=start.shift_sd_px,
            ctf=self.observed.stack.ctf,
            pixel_size_A=self.observed.pixel_size_A,
        )
        start.raw *= self.plan.forgetting
        small = replace(self.small, temperature=self.plan.temperature(self.batch))
        result = expectation_maximisation_batch(
            small, index, view, self.lattice, self.group, start.raw, self.team
        )
        start.map = self._solve(start.raw, radius)
        share, floor = (0.3, 0.5) if self.plan.annealed else (0.1, 0.25)
        spread = max(float(result.shift_px.square().mean()), floor * level.shift_step_px**2)
        start.shift_sd_px = ((1 - share) * start.shift_sd_px**2 + share * spread) ** 0.5
        start.log_evidence.append(float(result.log_evidence.mean()))
        seen = torch.cat((index[:, None].float(), result.rotation.flatten(1), result.shift_px), 1)
        start.recent = torch.cat((start.recent, seen))[-12 * self.plan.batch :]

    def _level(self, radius: int) -> Level:
        return level_for(
            radius,
            self.observed.particle_radius_px,
            box=self.observed.box,
            shifts_per_wave=self.plan.shifts_per_wave,
        )

    def _solve(self, raw: Tensor, radius: int) -> Tensor:
        return coarse_map(raw, self.lattice, radius=radius, mask=self.mask, regulariser=MAP_REGULARISER)

    def _images_of_batch(self) -> Tensor:
        """Images of this batch: pass after pass over the stack, each in its own random order."""
        n, size = len(self.small.rows), min(self.plan.batch, len(self.small.rows))
        per_pass = n // size
        order = torch.randperm(
            n, generator=generator_from(None, seed=self._seed(997, self.batch // per_pass))
        )
        at = (self.batch % per_pass) * size
        return order[at : at + size]

    def _seed(self, start: int, batch: int) -> int:
        return (self.seed * 1_000_003 + start * 10_007 + batch + 1) % (2**63)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        out: dict[str, Any] = {
            "coarse_batch": self.batch,
            "coarse_dropped": self._dropped_visits,
            "coarse_parity_gain": self.parity_gain,
            "coarse_starts": [[s.number, s.shift_sd_px, s.log_evidence] for s in self.starts],
        }
        for i, s in enumerate(self.starts):
            out |= {f"coarse_raw{i}": s.raw, f"coarse_map{i}": s.map, f"coarse_recent{i}": s.recent}
        return out

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.batch = state["coarse_batch"]
        self._dropped_visits = state["coarse_dropped"]
        self.parity_gain = state["coarse_parity_gain"]
        self.starts = [
            Start(
                number,
                state[f"coarse_raw{i}"],
                state[f"coarse_map{i}"],
                sd,
                list(evidence),
                state[f"coarse_recent{i}"],
            )
            for i, (number, sd, evidence) in enumerate(state["coarse_starts"])
        ]
