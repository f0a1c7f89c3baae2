"""The stages of an ab initio run: random starts, a search of all poses, rounds of refinement, half maps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cryorbit.data import ParticleStack
from cryorbit.geometry.symmetry import is_cubic, point_group
from cryorbit.inference.abinitio_settings import AbinitioSettings
from cryorbit.inference.coarse import CoarsePlan, CoarseStage
from cryorbit.inference.engine import Progress, Workers, generator_from
from cryorbit.inference.half_maps import HalfMaps, solve_halves
from cryorbit.inference.half_sets import half_sets
from cryorbit.inference.known_map import PoseSearch
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import Observations, contrast_of, observe
from cryorbit.inference.ranks import Deal, even_count
from cryorbit.inference.ring_em import crop_small
from cryorbit.inference.rounds import (
    PoseTable,
    balanced_blocks,
    centre_px,
    insert_block,
    move_origin,
    refine_block,
    spread_px,
)
from cryorbit.inference.searches import Searches
from cryorbit.inference.start_maps import support


class AbinitioRounds:
    """What is fixed from the start, and the stages; all that a stage leaves is in its `state`, so that a run can go on."""

    def __init__(self, stack: ParticleStack, settings: AbinitioSettings, team: Workers) -> None:
        self.stack, self.settings, self.team = stack, settings, team
        self.group = point_group(settings.symmetry).float()
        generator = generator_from(None, seed=settings.seed)
        self.observed: Observations = observe(
            stack,
            sign=contrast_of(stack, settings.contrast),
            particle_diameter_A=settings.particle_diameter_A,
            nearly_round=is_cubic(settings.symmetry),
            generator=generator,
        )
        self.halves = half_sets(stack, generator=generator)
        box, radius = stack.box, self.observed.particle_radius_px
        self.limit = box // 2 - 2
        if settings.max_resolution_A is not None:
            self.limit = min(self.limit, int(box * stack.pixel_size_A / settings.max_resolution_A))
        fold = len(self.group) ** (1 / 3)
        annealed = is_cubic(settings.symmetry)
        first = min(max(3, round(1.05 * box / radius)), self.limit - 1)
        last = min(
            max(first + 2, round((1.9 if annealed else 2.9) * fold * box / radius)), self.limit, box // 2 - 4
        )
        self.coarse_rows = (
            torch.randperm(len(stack), generator=generator)[: settings.coarse_images].sort().values
        )
        # Nothing but a ball is seen of a cubic particle before its asymmetric unit is: it starts at the last radius.
        batches, size = (5 * settings.batches // 2, 3) if annealed else (settings.batches, 1)
        ramp = max(int((0.7 if annealed else 0.8) * batches), 4)
        self.plan = CoarsePlan(
            n_starts=settings.starts * (2 if annealed else 1),
            ramp=ramp,
            hold=batches - ramp,
            batch=min(size * settings.batch_images, len(stack)),
            forgetting=settings.forgetting**size,
            first_radius=last if annealed else first,
            last_radius=last,
            box=min(2 * (last + 3), 2 * (box // 2)),
            annealed=annealed,
        )
        self.visits = 0

    def go(self, state: dict[str, Any]) -> Iterator[Progress]:
        """All stages, from wherever `state` stands; it ends with the sums of the final half maps in it."""
        if not state or state["stage"] == "coarse":
            yield from self._coarse(state)
        if state["stage"] == "locate":
            yield from self._locate(state)
        if state["stage"] == "refine":
            yield from self._refine(state)
        poses, reach = PoseTable.restore(state), (self.stack.box - 1) // 2
        yield from self._sweep(
            state, poses, None, radius=state["radius"], reach=reach, label="final half maps"
        )

    def last_maps(self, state: dict[str, Any]) -> HalfMaps:
        """Half maps of the sums that `go` ended with; they share nothing."""
        lattice = Lattice(self.stack.box + self.stack.box % 2)
        mask, reach = support(lattice, self.observed), (self.stack.box - 1) // 2
        return solve_halves((state["raw0"], state["raw1"]), lattice, mask, radius=reach, joined_radius=0.0)

    def _coarse(self, state: dict[str, Any]) -> Iterator[Progress]:
        small = crop_small(self.observed, self.coarse_rows, self.plan.box, self.team)
        stage = CoarseStage(small, self.plan, self.group, seed=self.settings.seed, team=self.team)
        stage.restore(state) if state else stage.begin()
        while not stage.done:
            stage.step()
            best = stage.best
            metrics = {
                "image_visits": float(stage.image_visits),
                "radius": float(self.plan.radius(stage.batch - 1)),
                "log_evidence": best.log_evidence[-1],
                "starts": float(len(stage.starts)),
                "parity_gain": stage.parity_gain,
                "shift_sd_A": best.shift_sd_px * self.stack.pixel_size_A,
            }
            yield Progress(
                "random starts",
                stage.batch,
                self.plan.batches,
                0.3 * stage.batch / self.plan.batches,
                metrics,
                **self._alike({"stage": "coarse", **stage.state()}),
            )
        # Made by all alike; the first one's is taken, since another processor may round otherwise.
        found = self.team.ranks.agree(self._found(stage))
        state.clear()
        state |= found

    def _alike(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` and `whole` of a record that every process has alike."""
        return {"state": state, "whole": None if self.team.ranks.size == 1 else lambda: state}

    def _found(self, stage: CoarseStage) -> dict[str, Any]:
        best = stage.best
        return {
            "stage": "locate",
            "block": 0,
            "fraction": 0.3,
            "visits": stage.image_visits,
            "coarse_map": best.map,
            "shift_sd_px": best.shift_sd_px,
            "coarse_evidence": best.recent_evidence(),
            "parity_gain": stage.parity_gain,
            **PoseTable.empty(len(self.stack)).state(),
        }

    def _pose_search(self, half: Tensor, shift_sd_px: float, *, radius: int, reach_sd: float) -> PoseSearch:
        plan = self.plan
        return PoseSearch(
            self.observed,
            half,
            shift_sd_px,
            box=plan.box,
            grid_radius=max(plan.first_radius, round(0.75 * plan.last_radius)),
            radius=radius,
            reach_sd=reach_sd,
            group=self.group,
        )

    def _locate(self, state: dict[str, Any]) -> Iterator[Progress]:
        """Every image over all poses, against the best start's map."""
        half = Lattice(self.plan.box).to_half(state["coarse_map"])
        search = self._pose_search(half, state["shift_sd_px"], radius=self.plan.last_radius, reach_sd=3.3)
        poses = PoseTable.restore(state)
        looked = Searches((search, search), self.halves, self.team, label="search of all poses", share=0.3)
        yield from looked.through(torch.arange(len(self.stack)), state, poses)
        self._centre(state, poses)
        state |= {"stage": "refine", "round": 0, "block": 0, "radius": self.plan.last_radius}
        state["shift_sd_px"] = spread_px(poses)

    def _centre(self, state: dict[str, Any], poses: PoseTable) -> None:
        """Put the origin where the images' middles meet, between stages: the next one begins with maps of given poses.

        Random starts leave particles anywhere within what shifts allow, and a mask around the origin then cuts their ends.
        """
        middle = centre_px(poses.rotation, poses.shift_px, poses.confidence, self.group)
        move_origin(poses, self.team.ranks.agree(middle))
        state |= poses.state()

    def _lattice(self, radius: int) -> Lattice:
        return Lattice(min(2 * (radius + 2), self.stack.box + self.stack.box % 2))

    def _sweep(
        self,
        state: dict[str, Any],
        poses: PoseTable,
        maps: HalfMaps | None,
        *,
        radius: int,
        reach: int,
        label: str,
    ) -> Iterator[Progress]:
        """One pass over all images: refine against `maps` if given, insert out to `reach`; the sums are in `state`."""
        lattice = self._lattice(reach)
        if state["block"] == 0:
            state |= {"raw0": lattice.zeros(), "raw1": lattice.zeros()}
            n_blocks = max(1, len(self.stack) // (256 * max(self.team.count, 2)))
            state["blocks"] = even_count(n_blocks, self.team.ranks)
        blocks = balanced_blocks(self.halves, state["blocks"])
        raw = (state["raw0"], state["raw1"])
        deal = Deal(
            self.team.ranks,
            blocks,
            state["block"],
            columns=list(vars(poses).values()),
            sums={"raw0": raw[0], "raw1": raw[1]},
        )
        for hand in deal:
            rows = hand.mine
            if maps is not None:
                refine_block(
                    self.observed,
                    poses,
                    rows,
                    self.halves[rows],
                    maps,
                    radius=radius,
                    iterations=2,
                    shift_sd_px=state["shift_sd_px"],
                    team=self.team,
                )
                state["visits"] += len(hand.every)
            insert_block(
                self.observed,
                poses,
                rows,
                self.halves[rows],
                lattice,
                raw,
                self.group,
                radius=reach,
                team=self.team,
            )
            state |= {"block": hand.done, **poses.state()}
            metrics = {"image_visits": float(state["visits"]), "radius": float(radius)}
            state["fraction"] = self._share(state["round"] + hand.done / len(blocks))
            yield Progress(
                label, hand.done, len(blocks), state["fraction"], metrics, **deal.kept(hand, state)
            )

    def _solve(self, state: dict[str, Any], reach: int) -> HalfMaps:
        lattice = self._lattice(reach)
        return solve_halves(
            (state["raw0"], state["raw1"]),
            lattice,
            support(lattice, self.observed),
            radius=min(reach, lattice.n // 2 - 1),
            joined_radius=0.6 * self.plan.last_radius,
            team=self.team,
        )

    def _refine(self, state: dict[str, Any]) -> Iterator[Progress]:
        """Round 0 only inserts, at the poses of the search; each later one refines first."""
        poses = PoseTable.restore(state)
        while True:
            current, radius = state["round"], state["radius"]
            reach = min(self.limit, int(1.4 * radius) + 4)
            maps = None
            if current:
                maps = self._solve({"raw0": state["last0"], "raw1": state["last1"]}, state["last_reach"])
            if maps is not None and current == 2 and not state.get("looked_twice"):
                yield from self._second_look(state, poses, maps)
            yield from self._sweep(
                state, poses, maps, radius=radius, reach=reach, label=f"refinement, round {current}"
            )
            del maps
            solved = self._solve(state, reach)
            supported = min(max(solved.radius_at(0.3), self.plan.last_radius), self.limit, reach)
            grown, sharp = self.team.ranks.agree((min(supported, int(1.5 * radius) + 2), self._sharp(poses)))
            state |= {
                "last0": state.pop("raw0"),
                "last1": state.pop("raw1"),
                "last_reach": reach,
                "block": 0,
                "round": current + 1,
                "radius": grown,
            }
            done = current > 1 and (grown <= radius + 1 or sharp)
            if done or current >= self.settings.rounds:
                self._centre(state, poses)
                state |= {"stage": "final"}
                del state["last0"], state["last1"]
                return

    def _second_look(self, state: dict[str, Any], poses: PoseTable, maps: HalfMaps) -> Iterator[Progress]:
        """Search all poses again, with the better maps, for the images that are explained worst."""
        if "doubtful" not in state:
            state |= {"doubtful": poses.doubtful(), "block": 0, "fraction": self._share(state["round"])}
        radius = min(state["radius"], int(1.5 * self.plan.last_radius))
        # One particle in ninety sits beyond three standard deviations in the plane.
        first, second = (
            self._pose_search(h, state["shift_sd_px"], radius=radius, reach_sd=4.5) for h in maps.halves
        )
        looked = Searches((first, second), self.halves, self.team, label="second look", share=0.0, known=True)
        yield from looked.through(state["doubtful"], state, poses)
        state |= {"looked_twice": True, "block": 0}
        del state["doubtful"]

    def _share(self, rounds: float) -> float:
        """Of the run's time when so many rounds are done."""
        return 0.6 + 0.4 * rounds / (self.settings.rounds + 2)

    def _sharp(self, poses: PoseTable) -> bool:
        """Whether the poses' errors, by their curvature, no longer blur the finest shell of a particle of this size."""
        error = float(poses.angle_sd_deg.median()) * math.pi / 180
        wave = 2 * math.pi * self.limit / self.observed.box
        return error * self.observed.particle_radius_px * wave < 0.5
