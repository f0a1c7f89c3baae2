"""The prior benchmark, unknown poses: the prior in the loop with the exact pose posterior, and the same loop without it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.align import refine_alignment
from cryorbit.analysis.fsc_area import fsc_area
from cryorbit.analysis.map_scores import pearson
from cryorbit.analysis.pose_error import PoseErrors, pose_errors
from cryorbit.benchmarks.prior_methods import method_of
from cryorbit.benchmarks.prior_proteins import MapGrid, Protein
from cryorbit.benchmarks.prior_table import bar
from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import low_pass
from cryorbit.geometry.so3_grid import healpix_directions
from cryorbit.inference.collapse import collapse
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import Observations, crop_images, observe
from cryorbit.inference.posterior import PosteriorSamples, PosteriorSettings, sample_posterior
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.prior_maps import data_only
from cryorbit.inference.ring_em import Level, level_for, make_view, poses_of, ring_data
from cryorbit.inference.search import image_matrix, score
from cryorbit.models.volume_prior import VolumePrior
from cryorbit.physics.simulate import Simulation, simulate
from cryorbit.physics.stack_plan import SimulationSettings

Row = dict[str, Any]

TASK = "poses"
START, PLAIN, OURS = (
    "model at 20 A, the start of both",
    "pose draws, no learned prior",
    "pose draws, prior in the loop",
)
METHODS = (START, PLAIN, OURS)
SHIFT_SD_A = 3.0
START_A = 20.0
"""Of the true map that both begin with, as one begins with the model of a relative: of 300 images of a small protein
`cryorbit abinitio` finds no map to begin with."""
_RADIUS = 12
"""Fourier pixels of 16 that poses are judged by: beyond, maps of 8 A on voxels of 3 A are empty."""
SLACK_DEG, SLACK_AREA = 0.5, 0.005
"""What counts as no worse."""
FEW = 500
"""Images up to which the prior has to help."""


@dataclass(frozen=True, kw_only=True)
class PosesTask:
    """Images without poses."""

    images: tuple[int, ...] = (300, 2000)
    """Numbers of images."""
    pose_snr: float = 0.5
    """Their SNR; they have CTFs of 1 to 3 um."""
    rounds: int = 3
    """Draws of all poses from their posterior; the volume step in between is one part of a chain, or a linear map."""

    def __post_init__(self) -> None:
        if min((*self.images, 50)) < 50 or not self.pose_snr > 0 or self.rounds < 1:
            raise BadInput("--images of 50 or more, a positive --pose-snr and one of --rounds are wanted.")


@dataclass(frozen=True, eq=False)
class PosesCell:
    """One stack of images."""

    protein: Protein
    grid: MapGrid
    task: PosesTask
    images: int
    seed: int = 0

    def key(self, method: str, prior: str) -> Row:
        """The fields that tell its rows apart; all rows of this task share the prior's spectrum."""
        about = {"task": TASK, "protein": self.protein.name, "views": self.images, "snr": self.task.pose_snr}
        return {**about, "method": method, "seed": self.seed, "prior": prior}

    @cached_property
    def made(self) -> Simulation:
        """The images."""
        drawn = SimulationSettings(
            n_particles=self.images,
            box=self.grid.box,
            pixel_size_A=self.grid.voxel_size_A,
            snr=self.task.pose_snr,
            shift_sd_A=SHIFT_SD_A,
            seed=self.seed,
        )
        return simulate(Volume(self.grid.map_of(self.protein.atoms), self.grid.voxel_size_A), drawn)

    def rows(self, prior: VolumePrior, name: str) -> Iterator[Row]:
        """The start, and both loops from it."""
        begun = time.monotonic()
        loop = PoseLoop.of(self.made, prior, self.grid, self.task.rounds, self.seed)
        model = low_pass(
            self.made.volume.values, resolution_A=START_A, pixel_size_A=self.grid.voxel_size_A, ndim=3
        )
        start = loop.draw_poses(model)
        yield self._scored(START, name, loop.best_poses(model), model, time.monotonic() - begun, 0)
        for method, run in ((PLAIN, loop.plain), (OURS, loop.guided)):
            begun = time.monotonic()
            values, passes = run(start)
            pose = loop.best_poses(values)
            yield self._scored(method, name, pose, values, time.monotonic() - begun, passes)

    def _scored(self, method: str, name: str, pose: Pose, values: Tensor, seconds: float, passes: int) -> Row:
        truth = self.made.volume
        errors = pose_errors(pose, self.made.truth)
        found = aligned(Volume(values.to(torch.float32), truth.pixel_size_A), truth, errors)
        return {
            **self.key(method, name),
            "pearson": round(pearson(found.values, truth.values), 5),
            "fsc_area": round(float(fsc_area(found.values[None], truth.values[None])), 5),
            "coverage90": None,
            "pose_error_deg": round(float(errors.rotation_error_deg.median()), 3),
            "shift_error_A": round(float(errors.shift_error_A.median()), 3),
            "hand": errors.hand,
            "seconds": round(seconds, 1),
            "network_passes": passes,
        }


def aligned(moving: Volume, truth: Volume, errors: PoseErrors) -> Volume:
    """The map in the true frame and hand, beginning from its poses' gauge."""
    return refine_alignment(
        moving, truth, rotation=errors.gauge, shift_A=errors.map_shift_A, hand=errors.hand
    ).aligned


@dataclass(frozen=True, eq=False)
class PoseLoop:
    """Images, the exact posterior of their poses given a map, and the two ways to a map given poses."""

    stack: ParticleStack
    observed: Observations
    sigma: float
    prior: VolumePrior
    grid: MapGrid
    rounds: int
    generator: torch.Generator

    @classmethod
    def of(cls, made: Simulation, prior: VolumePrior, grid: MapGrid, rounds: int, seed: int) -> PoseLoop:
        """The noise's level is told, as it is to the likelihood of the maps."""
        g = torch.Generator().manual_seed(seed)
        seen = observe(made.stack, generator=g)
        n = grid.box
        told = torch.full_like(seen.noise_power, n**2 * made.sigma**2)
        seen = replace(seen, scale_each=False, noise_power=told, total_power=torch.zeros_like(told))
        return cls(made.stack, seen, made.sigma, prior, grid, rounds, g)

    def likelihood(self, pose: Pose) -> TwoVolumes:
        """Of the prior's unit, given poses."""
        n = self.grid.box
        power = torch.full((n // 2 + 1,), n**2 * self.sigma**2)
        return collapse(self.stack, power, pose=pose).scaled(self.prior.shape.density_scale)

    def plain(self, pose: Pose) -> tuple[Tensor, int]:
        """Maps by the Wiener filter of the mean spectrum, poses drawn given each."""
        values = self._linear(pose)
        for _ in range(self.rounds):
            values = self._linear(self.draw_poses(values))
        return values, 0

    def guided(self, pose: Pose) -> tuple[Tensor, int]:
        """One run of the sampler, in whose later part poses are drawn given the mean of its clean maps."""
        settings = PosteriorSettings(samples=4, steps=30, seed=0)
        first = settings.steps // 2
        due = set(torch.linspace(first, settings.steps - 4, self.rounds).round().long().tolist())

        def refresh(clean: Float[Tensor, "s 1 n n n"], step: int) -> TwoVolumes | None:
            if step not in due:
                return None
            return self.likelihood(self.draw_poses(clean.mean((0, 1)) * self.prior.shape.density_scale))

        denoiser = self.prior.denoiser(voxel_size=self.grid.voxel_size_A, resolution=self.grid.resolution_A)
        method = method_of("diffpir-spectrum", self.prior, self.grid)
        run = sample_posterior(denoiser, self.likelihood(pose), method, settings, refresh=refresh)
        found = _result(run, PosteriorSamples)
        return found.mean() * self.prior.shape.density_scale, found.network_passes

    def _linear(self, pose: Pose) -> Tensor:
        found = data_only(
            self.likelihood(pose), self.prior.spectrum, resolution_A=self.grid.resolution_A, cutoff_A=None
        )
        return found.map * self.prior.shape.density_scale

    def draw_poses(self, values: Float[Tensor, "n n n"]) -> Pose:
        """One draw for each image from its posterior over the whole grid of rotations and shifts."""

        def drawn(logits: Float[Tensor, "b k"]) -> Tensor:
            return torch.multinomial(logits.softmax(1), 1, generator=self.generator)[:, 0]

        return self._poses(values, drawn)

    def best_poses(self, values: Float[Tensor, "n n n"]) -> Pose:
        """The most probable pose of each image."""
        return self._poses(values, lambda logits: logits.argmax(1))

    def _poses(self, values: Tensor, choose: Callable[[Tensor], Tensor]) -> Pose:
        n, seen = self.grid.box, self.observed
        view = make_view(
            Lattice(n).to_half(values),
            _level(seen),
            healpix_directions(3),
            n=n,
            box=n,
            reach_px=2.5 * SHIFT_SD_A / self.grid.voxel_size_A,
            shift_sd_px=SHIFT_SD_A / self.grid.voxel_size_A,
            ctf=self.stack.ctf,
            pixel_size_A=self.grid.voxel_size_A,
        )
        rotation, shift = [], []
        for rows in torch.arange(len(self.stack)).split(16):
            cropped = crop_images(seen.transforms(rows), n)
            data = ring_data(seen, rows, cropped, view.grid, view.kernel, floor=0.0)
            scores = score(data, image_matrix(data, view.plan), view.plan, view.templates)
            # (psi, image, shift, view) -> the order of `poses_of`
            found = poses_of(view, choose(scores.transpose(0, 1).flatten(1)))
            rotation.append(found[0])
            shift.append(found[1])
        return Pose(torch.cat(rotation), torch.cat(shift) * self.grid.voxel_size_A)


def _level(seen: Observations) -> Level:
    """Rings and in-plane angles for steps of 7.5 degrees, shifts of a pixel."""
    return level_for(min(_RADIUS, (seen.box - 1) // 2), seen.particle_radius_px, box=seen.box)


def poses_table(rows: Sequence[Row]) -> str:
    """Every run."""
    rows = [r for r in rows if r["task"] == TASK]
    if not rows:
        return ""
    head = f"{'unknown poses':13s} {'images':>6s} {'method':34s} {'pose error':>11s} {'shift':>7s} {'fsc area':>9s}"
    head += f" {'pearson':>8s} {'seconds':>8s}"
    lines = [
        f"{r['protein'][:13]:13s} {r['views']:6d} {r['method']:34s} {r['pose_error_deg']:7.1f} deg "
        f"{r['shift_error_A']:5.2f} A {r['fsc_area']:9.4f} {r['pearson']:8.3f} {r['seconds']:8.1f}"
        for r in sorted(
            rows, key=lambda r: (r["prior"], r["protein"], r["views"], METHODS.index(r["method"]))
        )
    ]
    return "\n".join([head, *lines])


def poses_verdict(rows: Sequence[Row], prior: str) -> list[str]:
    """Never worse than the same run without the prior, and better with few images."""
    rows = [r for r in rows if r["task"] == TASK and r["prior"] == prior]
    lines = []
    for ours in (r for r in rows if r["method"] == OURS):
        same = ("protein", "views", "seed")
        other = next((r for r in rows if r["method"] == PLAIN and all(r[k] == ours[k] for k in same)), None)
        if other is None:
            continue
        few = ours["views"] <= FEW
        degrees = ours["pose_error_deg"] - other["pose_error_deg"]
        area = ours["fsc_area"] - other["fsc_area"]
        met = (degrees < 0 and area > 0) if few else (degrees <= SLACK_DEG and area >= -SLACK_AREA)
        wanted = "better" if few else f"no worse ({SLACK_DEG:g} degrees, {SLACK_AREA:g})"
        text = f"unknown poses, {ours['protein']}, {ours['views']} images: pose error and fsc area {wanted} with the prior"
        lines.append(bar(text, f"{degrees:+.2f} degrees, {area:+.4f}", met=met))
    return lines


def _result(run: Iterator[Any], kind: type) -> Any:
    last = deque(run, maxlen=1)[0].result
    if not isinstance(last, kind):
        raise BadInput(f"{kind.__name__}: the run ended without a result.")
    return last
