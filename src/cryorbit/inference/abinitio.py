"""Poses, half maps and a verdict from particle images, with no start map.

Four stages, each a loop over blocks of work that can stop and go on anywhere: random starts in ring space (`coarse`); the
posterior of every image on the whole grid of poses against the best start's map (`locate`); rounds of continuous
refinement of the two halves, each image against the map of its own half, to the radius their agreement supports
(`rounds`); and the final half maps at full radius.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation
from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.so3_grid import healpix_directions
from cryorbit.geometry.symmetry import in_asymmetric_unit, is_cubic, point_group
from cryorbit.inference.coarse import KICK_ABOVE, CoarsePlan, CoarseStage
from cryorbit.inference.engine import Progress, Workers, generator_from, workers
from cryorbit.inference.half_maps import HalfMaps, solve_halves
from cryorbit.inference.half_sets import half_sets
from cryorbit.inference.lattice import Lattice, on_image_grid
from cryorbit.inference.locate import locate
from cryorbit.inference.memory import free_bytes, require_memory
from cryorbit.inference.observations import Contrast, Observations, contrast_of, observe
from cryorbit.inference.ranks import Deal, Ranks, even_count
from cryorbit.inference.ring_em import View, crop_small, level_for, make_view
from cryorbit.inference.rounds import PoseTable, balanced_blocks, insert_block, refine_block
from cryorbit.inference.start_maps import support


@dataclass(frozen=True, kw_only=True)
class AbinitioSettings:
    """How to find poses and a map from nothing."""

    symmetry: str = "C1"
    """Point group in RELION's settings: C1, C2, D2, T, O, I ..."""
    seed: int = 0
    """Seed of everything random; the same seed, threads and machine give the same result, bit for bit."""
    starts: int = 4
    """Random starts; the less likely half is dropped twice on the way."""
    batches: int = 60
    """Batches of the start that is carried to the end of the coarse stage."""
    batch_images: int = 100
    """Images per batch. Large early batches average to a ball."""
    forgetting: float = 0.9
    """What a batch leaves of the sums of those before it."""
    coarse_images: int = 20000
    """At most this many images, drawn at random, feed the coarse stage."""
    particle_diameter_A: float | None = None
    """Diameter of the particle; measured from the images when not given."""
    max_resolution_A: float | None = None
    """Do not use finer detail than this."""
    rounds: int = 6
    """Rounds of refinement at most; they end when the radius no longer grows."""
    contrast: Contrast = "auto"
    """Protein light on dark ice, or dark on light; auto asks the images."""
    threads: int = 0
    """Workers; 0 for one per core."""


SCATTER_LIMIT, RANGE_LIMIT = 2.2, 0.25
"""Scatter of the images' fit over that of noise, and its plain 10-90 % range, above both of which a map is not believed.

Right maps of simulated particles measured 1.5 to 1.6 and 0.17 to 0.18, one that mixed poses 3.1 and 0.40."""


@dataclass(frozen=True, eq=False)
class AbinitioResult:
    """What a run found."""

    pose: Pose
    half_set: Int[Tensor, "n"]
    confidence: Float[Tensor, "n"]
    entropy: Float[Tensor, "n"]
    log_likelihood: Float[Tensor, "n"]
    angle_sd_deg: Float[Tensor, "n"]
    map: Volume
    half_maps: tuple[Volume, Volume]
    curve: ShellCorrelation
    verdict: str
    converged: bool


def run_abinitio(
    stack: ParticleStack,
    settings: AbinitioSettings,
    *,
    state: dict[str, Any] | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Progress]:
    """Yield progress; the last record carries the `AbinitioResult`. `state` of any record continues from there.

    With `ranks`, every process calls this with the same stack and state, and gets the whole result. The random starts are
    made by each alike; search and refinement are shared out.

    Raises
    ------
    BadInput
        If there are too few images, they are unusable, or the maps do not fit into memory.
    """
    require_memory(stack.box, "refine", free=free_bytes(), processes=(ranks or Ranks()).neighbours)
    if len(stack) < 2 * settings.batch_images // 2 or len(stack) < 50:
        raise BadInput(f"{stack.source}: {len(stack)} images are too few for a map from nothing.")
    count = settings.threads or torch.get_num_threads()
    with workers(count, ranks) as team:
        run = _Run(stack, settings, team)
        yield from run.go(dict(state or {}))


class _Run:
    """One ab initio run: what is fixed from the start, and the stages."""

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
        """All stages, from wherever `state` stands."""
        if state.get("stage", "coarse") == "coarse":
            state = yield from self._coarse(state)
        if state["stage"] == "locate":
            state = yield from self._locate(state)
        if state["stage"] == "refine":
            state = yield from self._refine(state)
        yield from self._final(state)

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
        return self.team.ranks.agree(self._found(stage))

    def _alike(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` and `whole` of a record that every process has alike."""
        return {"state": state, "whole": None if self.team.ranks.size == 1 else lambda: state}

    def _found(self, stage: CoarseStage) -> dict[str, Any]:
        best = stage.best
        return {
            "stage": "locate",
            "block": 0,
            "visits": stage.image_visits,
            "coarse_map": best.map,
            "shift_sd_px": best.shift_sd_px,
            "coarse_evidence": best.recent_evidence(),
            "parity_gain": stage.parity_gain,
            **PoseTable.empty(len(self.stack)).state(),
        }

    def _view(self, half: Tensor, sd: float, *, reach_sd: float) -> View:
        """Templates of a map, given by its transform, on the grid of all poses; shifts out to `reach_sd` times `sd`."""
        plan, observed = self.plan, self.observed
        radius = max(plan.first_radius, round(0.75 * plan.last_radius))
        level = level_for(radius, observed.particle_radius_px, box=observed.box)
        directions = healpix_directions(level.order)
        if len(self.group) > 1:
            directions = directions[in_asymmetric_unit(directions, self.group.double())]
        return make_view(
            half,
            level,
            directions,
            n=plan.box,
            box=observed.box,
            reach_px=min(max(reach_sd * sd, level.shift_step_px), 0.35 * observed.box),
            shift_sd_px=sd,
            ctf=self.stack.ctf,
            pixel_size_A=self.stack.pixel_size_A,
        )

    def _locate(self, state: dict[str, Any]) -> Iterator[Progress]:
        half = Lattice(self.plan.box).to_half(state["coarse_map"])
        view = self._view(half, state["shift_sd_px"], reach_sd=3.3)
        poses = PoseTable.restore(state)
        if state["block"] == 0:
            # Kept, so that a run goes on with other threads or processes.
            state |= {"block_rows": 64 * self.team.count, "seen": (0, 0.0, 0.0)}
        blocks = torch.arange(len(self.stack)).split(state["block_rows"])
        shift_sd_px = state["shift_sd_px"]

        def work(rows: Tensor) -> None:
            found = locate(
                self.observed,
                rows,
                view,
                half,
                self.group,
                radius=self.plan.last_radius,
                iterations=3,
                shift_sd_px=shift_sd_px,
                crop=self.plan.box,
            )
            poses.put(rows, found)

        deal = Deal(self.team.ranks, blocks, state["block"], columns=list(vars(poses).values()))
        for hand in deal:
            self.team.map(work, [p for p in hand.mine.split(16) if len(p)])
            done = int(hand.every[-1]) + 1
            seen, sure, entropy = state["seen"]
            seen += len(hand.mine)
            sure += float(poses.confidence[hand.mine].sum())
            entropy += float(poses.entropy[hand.mine].sum())
            state["seen"] = (seen, sure, entropy)
            state |= {"block": hand.done, **poses.state()}
            metrics = {
                "image_visits": state["visits"] + float(done),
                "confidence": sure / max(seen, 1),
                "entropy_nats": entropy / max(seen, 1),
            }
            share = 0.3 + 0.3 * done / len(self.stack)
            yield Progress(
                "search of all poses", done, len(self.stack), share, metrics, **deal.kept(hand, state)
            )
        state |= {"stage": "refine", "round": 0, "block": 0, "radius": self.plan.last_radius}
        state["shift_sd_px"] = max(float(poses.shift_px.square().mean()) ** 0.5, 0.5)
        state["visits"] += len(self.stack)
        return state

    def _lattice(self, radius: int) -> Lattice:
        return Lattice(min(2 * (radius + 2), self.stack.box + self.stack.box % 2))

    def _mask(self, lattice: Lattice) -> Tensor:
        return support(lattice, self.observed)

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
            share = (state["round"] + hand.done / len(blocks)) / (self.settings.rounds + 2)
            fraction = 0.6 + 0.4 * share
            yield Progress(label, hand.done, len(blocks), fraction, metrics, **deal.kept(hand, state))

    def _solve(self, state: dict[str, Any], reach: int) -> HalfMaps:
        lattice = self._lattice(reach)
        return solve_halves(
            (state["raw0"], state["raw1"]),
            lattice,
            self._mask(lattice),
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
                state |= {"stage": "final"}
                del state["last0"], state["last1"]
                return state

    def _second_look(self, state: dict[str, Any], poses: PoseTable, maps: HalfMaps) -> Iterator[Progress]:
        """Search all poses again, with the better maps, for the images that are explained worst."""
        if "doubtful" not in state:
            state |= {"doubtful": poses.doubtful(), "doubt_block": 0, "doubt_rows": 32 * self.team.count}
        # One particle in ninety sits beyond three standard deviations in the plane.
        views = [self._view(h, state["shift_sd_px"], reach_sd=4.5) for h in maps.halves]
        blocks = state["doubtful"].split(state["doubt_rows"])
        radius, shift_sd_px = min(state["radius"], int(1.5 * self.plan.last_radius)), state["shift_sd_px"]

        def work(part: tuple[Tensor, int]) -> None:
            rows, half = part
            found = locate(
                self.observed,
                rows,
                views[half],
                maps.halves[half],
                self.group,
                radius=radius,
                iterations=3,
                shift_sd_px=shift_sd_px,
                crop=self.plan.box,
                known=(poses.rotation[rows], poses.shift_px[rows]),
            )
            poses.put(rows, found)

        deal = Deal(self.team.ranks, blocks, state["doubt_block"], columns=list(vars(poses).values()))
        for hand in deal:
            sides = self.halves[hand.mine]
            self.team.map(work, [(p, h) for h in (0, 1) for p in hand.mine[sides == h].split(16) if len(p)])
            state["visits"] += len(hand.every)
            state |= {"doubt_block": hand.done, **poses.state()}
            metrics = {"image_visits": float(state["visits"]), "doubtful": float(len(state["doubtful"]))}
            fraction = 0.6 + 0.4 * state["round"] / (self.settings.rounds + 2)
            yield Progress("second look", hand.done, len(blocks), fraction, metrics, **deal.kept(hand, state))
        state["looked_twice"] = True
        del state["doubtful"]

    def _sharp(self, poses: PoseTable) -> bool:
        """Whether the poses' errors, by their curvature, no longer blur the finest shell of a particle of this size."""
        error = float(poses.angle_sd_deg.median()) * math.pi / 180
        wave = 2 * math.pi * self.limit / self.observed.box
        return error * self.observed.particle_radius_px * wave < 0.5

    def _final(self, state: dict[str, Any]) -> Iterator[Progress]:
        poses = PoseTable.restore(state)
        reach = (self.stack.box - 1) // 2
        yield from self._sweep(
            state, poses, None, radius=state["radius"], reach=reach, label="final half maps"
        )
        lattice = Lattice(self.stack.box + self.stack.box % 2)
        mask = self._mask(lattice)
        solved = solve_halves((state["raw0"], state["raw1"]), lattice, mask, radius=reach, joined_radius=0.0)
        result = self._result(state, poses, solved)
        metrics = {
            "image_visits": float(state["visits"]),
            "resolution_0143_A": result.curve.resolution_A(threshold=0.143),
            "confidence": float(poses.confidence.mean()),
        }
        yield Progress("done", 1, 1, 1.0, metrics, {}, result)

    def _result(self, state: dict[str, Any], poses: PoseTable, solved: HalfMaps) -> AbinitioResult:
        box, pixel = self.stack.box, self.stack.pixel_size_A
        halves = [Volume(on_image_grid(m, box), pixel) for m in solved.maps]
        curve = fourier_shell_correlation(halves[0], halves[1])
        filtered = (solved.filtered[0] + solved.filtered[1]) / 2
        verdict, converged = _verdict(
            poses, curve, state["parity_gain"] / max(abs(state["coarse_evidence"]), 1e-6)
        )
        return AbinitioResult(
            pose=Pose(poses.rotation, poses.shift_px * pixel),
            half_set=self.halves + 1,
            confidence=poses.confidence,
            entropy=poses.entropy,
            log_likelihood=poses.log_likelihood,
            angle_sd_deg=poses.angle_sd_deg,
            map=Volume(on_image_grid(filtered, box), pixel),
            half_maps=(halves[0], halves[1]),
            curve=curve,
            verdict=verdict,
            converged=converged,
        )


def _verdict(poses: PoseTable, curve: ShellCorrelation, parity_share: float) -> tuple[str, bool]:
    """What a user may believe, without any truth at hand."""
    if parity_share > 1.5 * KICK_ABOVE:
        return (
            f"Not converged: the images still split into two groups ({parity_share:.0%} of what the map explains), as they "
            "do when it mixes the two hands. Run again with another --seed or more --starts.",
            False,
        )
    spread = poses.scatter()
    low, high = poses.explained.quantile(torch.tensor([0.1, 0.9])).tolist()
    if spread > SCATTER_LIMIT and high - low > RANGE_LIMIT:
        return (
            f"Not converged: how well the map explains the images varies {spread:.1f} times more than noise alone would "
            "make it, so some images do not belong to this map. Run again with another --seed or more --starts.",
            False,
        )
    confident = float((poses.confidence > 0.9).float().mean())
    resolution = curve.resolution_A(threshold=0.143)
    if confident > 0.8:
        return f"Converged: {confident:.0%} of the particles have one clear pose; {resolution:.1f} A.", True
    return (
        f"Not shown to have converged: only {confident:.0%} of the particles have one clear pose, while the half maps "
        f"agree to {resolution:.1f} A. Compare runs with other --seed values: right ones show the same map.",
        False,
    )
