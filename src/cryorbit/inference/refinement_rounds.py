"""The stages of a refinement: a search where poses are wanting, rounds of pose and map, straightening, a last pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cryorbit.data import ParticleStack, Volume
from cryorbit.geometry.rotations import geodesic_angle
from cryorbit.geometry.symmetry import is_cubic, point_group
from cryorbit.inference.engine import Progress, Workers, generator_from
from cryorbit.inference.half_maps import HalfMaps, solve_halves
from cryorbit.inference.half_sets import half_sets, has_half_sets
from cryorbit.inference.known_map import PoseSearch
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.local_search import Near, search_near
from cryorbit.inference.locate import disk_data
from cryorbit.inference.map_fit import fit_to_images
from cryorbit.inference.observations import contrast_of, observe
from cryorbit.inference.particle_model import ParticleModel
from cryorbit.inference.ranks import Deal, even_count
from cryorbit.inference.refinement_plan import RefinementPlan
from cryorbit.inference.refinement_settings import RefinementSettings
from cryorbit.inference.registration import SmallMotion, motion_between
from cryorbit.inference.rounds import (
    PoseTable,
    balanced_blocks,
    centre_px,
    insert_block,
    refine_block,
    spread_px,
)
from cryorbit.inference.searches import Searches
from cryorbit.inference.start_maps import below, start_maps, support
from cryorbit.inference.straightening import follow_pull

GROW_ABOVE = 0.143
"""Correlation of the halves that the radius follows."""
STILL_BELOW = 0.25
"""Median turn of the poses in a round, in units of their own uncertainty, below which they stand still."""
NEAR_STEPS = 2.5
"""Reach of the first round's local search, in turns of 1 radian of phase at the particle's rim."""


class RefinementRounds:
    """One refinement: what is fixed from the start, and its stages."""

    def __init__(
        self, stack: ParticleStack, settings: RefinementSettings, reference: Volume | None, team: Workers
    ) -> None:
        self.stack, self.settings, self.reference, self.team = stack, settings, reference, team
        self.group = point_group(settings.symmetry).float()
        generator = generator_from(None, seed=settings.seed)
        self.observed = observe(
            stack,
            sign=contrast_of(stack, settings.contrast),
            particle_diameter_A=settings.particle_diameter_A,
            nearly_round=is_cubic(settings.symmetry),
            generator=generator,
        )
        given = None if settings.search else stack.pose
        if given is not None:
            # The frame stays as it is: users have maps and masks in it. The particle may lie anywhere in it.
            alike = torch.ones(len(stack))
            x, y, z = centre_px(
                given.rotation, given.shift_A / stack.pixel_size_A, alike, self.group
            ).tolist()
            self.observed = replace(self.observed, centre_px=(x, y, z))
        self.own_halves = has_half_sets(stack)
        self.halves = half_sets(stack, generator=generator)
        self.model = ParticleModel.of(self.observed, self.halves)
        self._solved: tuple[int, HalfMaps] | None = None
        """Maps of the last sweep, and the round that compares with them."""
        self.plan = RefinementPlan.of(self.observed, settings, group_order=len(self.group))

    def go(self, state: dict[str, Any]) -> Iterator[Progress]:
        """All stages, from wherever `state` stands; at the end it holds the sums of the last sweep."""
        if state:
            self.model = self.model.restored(state)
        else:
            state |= self._beginning()
        poses = PoseTable.restore(state)
        if state["stage"] == "search":
            yield from self._search(state, poses)
        while state["stage"] in ("refine", "straighten"):
            if state["stage"] == "straighten":
                yield from self._straighten(state, poses)
                continue
            maps = self._maps_of(state)
            if maps is not None and state["round"] == 2 and not state.get("looked_twice"):
                yield from self._second_look(state, poses, maps)
            reach = min(self.plan.limit, int(1.4 * state["radius"]) + 4)
            reach = reach if maps is not None else self.plan.limit
            yield from self._sweep(state, poses, maps, reach=reach)
            self._learn(state, poses, maps, reach=reach)
        for spent in ("last0", "last1"):
            state.pop(spent, None)
        yield from self._sweep(state, poses, None, reach=self.plan.last_shell)

    def last_maps(self, state: dict[str, Any]) -> HalfMaps:
        """Half maps out to the last shell from the sums of the last sweep."""
        return self._solve(state["raw0"], state["raw1"], self.plan.last_shell)

    def _beginning(self) -> dict[str, Any]:
        poses = PoseTable.empty(len(self.stack))
        given = self.stack.pose
        search = self.settings.search or given is None
        if given is not None and not search:
            poses.rotation[:] = given.rotation
            poses.shift_px[:] = given.shift_A / self.stack.pixel_size_A
            poses.confidence[:] = 1
        return {
            "stage": "search" if search else "refine",
            "round": 0 if self.reference is None else 1,
            "block": 0,
            "visits": 0,
            "fraction": 0.0,
            "radius": self.plan.start_radius,
            "start_radius": self.plan.start_radius,
            "shift_sd_px": spread_px(poses),
            **poses.state(),
            **self.model.state(),
        }

    def _lattice(self, reach: int) -> Lattice:
        return Lattice(min(2 * (reach + 2), self.stack.box + self.stack.box % 2))

    def _solve(self, raw0: Tensor, raw1: Tensor, reach: int) -> HalfMaps:
        lattice = self._lattice(reach)
        mask = support(lattice, self.observed)
        radius = min(reach, lattice.n // 2 - 1)
        return solve_halves((raw0, raw1), lattice, mask, radius=radius, joined_radius=0.0, team=self.team)

    def _maps_of(self, state: dict[str, Any]) -> HalfMaps | None:
        """What the images of this round are compared with; None in round 0, which only adds images at given poses."""
        if state["round"] == 0:
            return None
        if "last0" not in state:
            return self._start_maps()
        current, maps = self._solved or (None, None)
        self._solved = None
        if maps is None or current != state["round"]:  # a run that goes on from a checkpoint
            maps = self._solve(state["last0"], state["last1"], state["last_reach"])
        if state["round"] == 1 and not self.own_halves:
            return below(maps, self.plan.start_radius, self.observed)
        return maps

    def _start_maps(self) -> HalfMaps:
        assert self.reference is not None  # asked for only by stages that have one
        snr = self.settings.start_snr
        return start_maps(self.reference, self.observed, radius=self.plan.start_radius, snr=snr)

    def _pose_search(self, half: Tensor, shift_sd_px: float, radius: int) -> PoseSearch:
        return PoseSearch(
            self.model,
            half,
            shift_sd_px,
            box=self.plan.crop,
            grid_radius=min(radius, self.plan.search_radius),
            radius=radius,
            group=self.group,
        )

    def _search(self, state: dict[str, Any], poses: PoseTable) -> Iterator[Progress]:
        """Every image over all poses, against the low-passed reference."""
        radius = self.plan.start_radius
        half = self._start_maps().halves[0]
        if "searched_sd" not in state:
            fit = fit_to_images(
                self.observed,
                half,
                box_px=min(2 * (min(radius, self.plan.search_radius) + 2), self.plan.crop),
                generator=generator_from(None, seed=self.settings.seed),
                team=self.team,
            )
            state["searched_sd"] = fit.shift_sd_px
        search = self._pose_search(half, state["searched_sd"], radius)
        rows = torch.arange(len(self.stack))
        looked = Searches((search, search), self.halves, self.team, label="search of all poses", share=0.3)
        yield from looked.through(rows, state, poses)
        state |= {"stage": "refine", "block": 0, "fraction": 0.3, "shift_sd_px": spread_px(poses)}

    def _second_look(self, state: dict[str, Any], poses: PoseTable, maps: HalfMaps) -> Iterator[Progress]:
        """Search all poses, with the better maps, for the images that are explained worst."""
        if "doubtful" not in state:
            state |= {"doubtful": poses.doubtful(), "block": 0}
        radius = min(state["radius"], int(1.5 * self.plan.search_radius))
        # One particle in ninety sits beyond three standard deviations in the plane.
        wide = 1.4 * state["shift_sd_px"]
        first, second = (self._pose_search(half, wide, radius) for half in maps.halves)
        looked = Searches(
            (first, second), self.halves, self.team, label="second look", share=0.02, known=True
        )
        yield from looked.through(state["doubtful"], state, poses)
        state |= {"looked_twice": True, "block": 0}
        del state["doubtful"]

    def _straighten(self, state: dict[str, Any], poses: PoseTable) -> Iterator[Progress]:
        """Turn views as fine detail pulls them and make new maps; where it does not, the rounds go on."""
        if state["block"] == 0:  # else the views are turned already, and a run goes on within the sweep
            maps = self._maps_of(state)
            assert maps is not None  # rounds came before
            if not follow_pull(state, self.model, poses, maps, self.group, self.team):
                self._solved = (state["round"], maps)
                ends = state["still"] and not state.get("pulls")
                state |= {"stage": "final" if ends else "refine", "straight": True}
                return
            state |= poses.state()
        yield from self._sweep(state, poses, None, reach=state["last_reach"], label="straightening")
        state |= {"last0": state.pop("raw0"), "last1": state.pop("raw1"), "block": 0}
        self._solved = (state["round"], self._solve(state["last0"], state["last1"], state["last_reach"]))

    def _sweep(
        self,
        state: dict[str, Any],
        poses: PoseTable,
        maps: HalfMaps | None,
        *,
        reach: int,
        label: str = "final half maps",
    ) -> Iterator[Progress]:
        """One pass over all images: poses against `maps`, then into the sums of their half out to `reach`."""
        lattice, current, radius = self._lattice(reach), state["round"], state["radius"]
        if state["block"] == 0:
            state |= {"raw0": lattice.zeros(), "raw1": lattice.zeros(), "before": poses.rotation.clone()}
            n_blocks = max(1, len(self.stack) // (256 * max(self.team.count, 2)))
            state["blocks"] = even_count(n_blocks, self.team.ranks)
        blocks = balanced_blocks(self.halves, state["blocks"])
        raw = (state["raw0"], state["raw1"])
        label = "maps of given poses" if not current else f"round {current}" if maps else label
        motion = SmallMotion.none()
        if maps is not None and maps.halves[0] is not maps.halves[1]:
            motion = motion_between(maps, self.group, box=self.stack.box)
        begun, share = state["fraction"], (0.98 - state["fraction"]) / (2 if maps else 3)
        deal = Deal(
            self.team.ranks,
            blocks,
            state["block"],
            columns=list(vars(poses).values()),
            sums={"raw0": raw[0], "raw1": raw[1]},
        )
        for hand in deal:
            rows = hand.mine
            halves = self.halves[rows]
            if maps is not None:
                if current == 1:
                    self._look_near(state, poses, rows, maps)
                refine_block(
                    self.model,
                    poses,
                    rows,
                    halves,
                    maps,
                    radius=radius,
                    iterations=3 if current == 1 else 2,
                    shift_sd_px=state["shift_sd_px"],
                    team=self.team,
                )
                state["visits"] += len(hand.every)
                second = rows[halves == 1]
                moved = motion.moved(poses.rotation[second], poses.shift_px[second])
                poses.rotation[second], poses.shift_px[second] = moved
            insert_block(
                self.model, poses, rows, halves, lattice, raw, self.group, radius=reach, team=self.team
            )
            state |= {"block": hand.done, **poses.state()}
            metrics = {"image_visits": float(state["visits"]), "radius": float(radius)}
            done = begun + share * hand.done / len(blocks)
            yield Progress(label, hand.done, len(blocks), done, metrics, **deal.kept(hand, state))
        state["fraction"] = begun + share

    def _look_near(self, state: dict[str, Any], poses: PoseTable, rows: Tensor, maps: HalfMaps) -> None:
        """The first round's local search, around the poses that were given or found."""
        radius, turn = min(state["radius"], self.plan.search_radius), self.settings.near_deg
        if turn is None:
            # Poses that come with half sets come from a refinement, and are as good as their maps.
            step_rad = 1 / (2 * math.pi * radius * self.plan.waves_per_px)
            turn = 0.0 if self.own_halves and not self.reference else math.degrees(NEAR_STEPS * step_rad)
        if not turn:
            return
        near = Near(turn, self.observed.box / (4 * radius))

        def work(part: tuple[Tensor, int]) -> None:
            chosen, h = part
            poses.rotation[chosen], poses.shift_px[chosen] = search_near(
                disk_data(self.model, chosen, self.model.transforms(chosen), radius),
                maps.halves[h],
                poses.rotation[chosen],
                poses.shift_px[chosen],
                near,
                particle_radius_px=self.observed.particle_radius_px,
                shift_sd_px=state["shift_sd_px"],
            )

        sides = self.halves[rows]
        self.team.map(work, [(p, h) for h in (0, 1) for p in rows[sides == h].split(8) if len(p)])

    def _learn(self, state: dict[str, Any], poses: PoseTable, maps: HalfMaps | None, *, reach: int) -> None:
        """After a sweep: the radius the halves support, what the images are like, and whether anything still moves."""
        radius, current = state["radius"], state["round"]
        solved = self._solve(state["raw0"], state["raw1"], reach)
        self._solved = (current + 1, solved)
        supported = solved.radius_at(GROW_ABOVE)
        supported = min(max(supported, self.plan.least), self.plan.limit, reach)
        still = False
        if maps is None:
            grown = supported if self.own_halves else self.plan.start_radius
        else:
            grown = min(supported, int(1.5 * radius) + 2)
            moved = math.degrees(float(geodesic_angle(state["before"], poses.rotation).median()))
            still = moved < STILL_BELOW * float(poses.angle_sd_deg.median())
            self._measure(state, poses, maps, reach=reach)
        # What decides how the run goes on comes from one process: another processor may round otherwise.
        grown, still = self.team.ranks.agree((grown, still))
        settled = current >= 2 and grown <= radius + 1
        state |= {
            "last0": state.pop("raw0"),
            "last1": state.pop("raw1"),
            "last_reach": reach,
            "block": 0,
            "round": current + 1,
            "radius": grown,
            **self.model.state(),
        }
        if settled and not state.get("straight") and current < self.settings.rounds:
            state |= {"stage": "straighten", "still": still}
        elif (settled and still) or current >= self.settings.rounds:
            state |= {"stage": "final", "still": still}

    def _measure(self, state: dict[str, Any], poses: PoseTable, maps: HalfMaps, *, reach: int) -> None:
        """Scales, noise and defocus, each half by its own map."""
        s = self.settings
        if s.scale:
            self.model = self.model.with_scales(poses)
        self.model = self.model.with_noise(poses, maps, radius=reach, team=self.team)
        if s.defocus and state["round"] >= 2 and self.stack.ctf is not None:
            radius = min(state["radius"], maps.lattice.n // 2 - 2)
            self.model, _ = self.model.with_defocus(
                poses, maps, radius=radius, sd_A=s.defocus_sd_A, team=self.team
            )
        state["shift_sd_px"] = spread_px(poses)
