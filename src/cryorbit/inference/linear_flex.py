"""The linear baseline of heterogeneity: probabilistic PCA of volumes from images with known poses and CTF.

E-M as in `linear_em`, from low to high frequencies. Noise in the components is held down by a prior of power per shell and
component, estimated from the data between iterations. The fit is exact for what varies linearly: two states, small motions,
parts that come and go; a large motion takes more components than it has degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import soft_sphere_mask
from cryorbit.fourier.resample import box_crop, box_pad, fourier_resample
from cryorbit.inference.engine import Progress, Workers, workers
from cryorbit.inference.linear_em import Expectation, Problem, expect, maximise, principal
from cryorbit.inference.linear_images import LinearImages, largest_radius
from cryorbit.inference.linear_model import LinearModel
from cryorbit.inference.observations import Contrast, Observations, contrast_of, observe
from cryorbit.physics.map_family import MapLattice

_START_SCALE = 0.1
"""Size of the random components at the start over that of the mean map."""
_FAR = 1.8
"""Of the way that E-M proposes, tried once steps succeed: E-M creeps along weak components, and a step that does worse is
cut down. Eight steps so came further than twelve plain ones (sixteen states of a ribosome)."""
_LEAST_STEP = 0.05
"""A step cut down to less than this is not taken."""


@dataclass(frozen=True, kw_only=True)
class LinearSettings:
    """How the linear model is fitted."""

    rank: int = 10
    """Components."""
    iterations: int = 14
    """Of E-M per stage; twice as many in the first, which starts from random components."""
    stages: int = 3
    """Resolutions, each about twice as fine as the one before."""
    resolution_A: float | None = None
    """Finest resolution used; None: what the pixels allow."""
    particle_diameter_A: float | None = None
    """Maps are zero outside a soft ball of this size; None: measured. A mask takes its place."""
    prior: bool = True
    """Whether the power of maps per shell is estimated and used; without, noise fills the highest frequencies."""
    contrast: Contrast = "auto"
    """Protein light on dark ice, or dark on light; auto asks the images."""
    seed: int = 0
    """Of the random start."""
    threads: int = 1
    """Batches of images handled at a time."""

    def __post_init__(self) -> None:
        for name in ("rank", "iterations", "stages", "threads"):
            if getattr(self, name) < 1:
                raise BadInput(f"LinearSettings: {name} must be at least 1, got {getattr(self, name)}.")


def fit_linear(
    stack: ParticleStack,
    settings: LinearSettings,
    *,
    mask: Volume | None = None,
    state: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Yield progress; the last record's `result` is a `LinearModel`.

    Parameters
    ----------
    stack
        With poses; CTF if the images have one.
    mask
        Soft mask on the images' grid, outside which no map has density.
    state
        Of an earlier record of the same run: it goes on from there to the same result.

    Raises
    ------
    BadInput
        If the stack has no poses, fewer images than components, or the mask is on another grid.
    """
    run = _Run(observed_for(stack, settings), settings, mask)
    at = _State(**state) if state else _State()
    with workers(settings.threads) as team:
        while at.stage < len(run.radii):
            yield from run.refine(at, team)
            at.stage, at.step = at.stage + 1, 0
        result = run.finish(at, team)
    last = {"log_likelihood": result.log_likelihood[-1], "rank": float(settings.rank)}
    yield Progress("done", 1, 1, 1.0, last, vars(at), result)


def observed_for(stack: ParticleStack, settings: LinearSettings) -> Observations:
    """What a fit sees of a stack: sign and scale settled, noise measured.

    Raises
    ------
    BadInput
        If the stack has no poses, or no more images than components.
    """
    if stack.pose is None:
        raise BadInput(f"{stack.source}: no poses. Find them first, or give a stack that has them.")
    if len(stack) <= settings.rank:
        raise BadInput(f"{stack.source}: {len(stack)} images for {settings.rank} components. Lower the rank.")
    return observe(
        stack,
        sign=contrast_of(stack, settings.contrast),
        particle_diameter_A=settings.particle_diameter_A,
        generator=torch.Generator().manual_seed(settings.seed),
    )


@dataclass(eq=False)
class _State:
    """Where a run stands: the maps accepted last, and where the step under trial leads."""

    stage: int = 0
    step: int = 0
    maps: Tensor | None = None
    goal: Tensor | None = None
    share: float = 1.0
    """Of the way from `maps` to `goal` that is tried."""
    power: Tensor | None = None
    previous: float = -math.inf
    """Objective of `maps`."""
    voxels: int = 0
    log_likelihood: list[float] = field(default_factory=list)
    radius: list[float] = field(default_factory=list)


class _Run:
    def __init__(self, observed: Observations, settings: LinearSettings, mask: Volume | None) -> None:
        self.observed, self.settings = observed, settings
        self.mask = _mask_on_grid(observed, mask)
        self.reach_px = _reach_px(self.mask)
        self._ready: tuple[int, LinearImages, Problem] | None = None
        most = largest_radius(observed)
        if settings.resolution_A is not None:
            wanted = observed.box * observed.pixel_size_A / settings.resolution_A
            most = max(4, min(most, math.floor(wanted)))
        self.radii = sorted({max(min(most, 6), round(most * 0.56**i)) for i in range(settings.stages)})

    def grid(self, stage: int) -> tuple[int, int]:
        """Voxels across the field of view at a stage, and across the maps."""
        box, radius = self.observed.box, self.radii[stage]
        voxels = min(box, 2 * radius + 2)
        # More than half, so that the highest frequency stays on the lattice.
        edge = max(2 * math.ceil(self.reach_px * voxels / box), voxels // 2) + 2
        return voxels, min(voxels, edge)

    def refine(self, at: _State, team: Workers) -> Iterator[Progress]:
        """E-M at one resolution."""
        steps = self.settings.iterations * (2 if at.stage == 0 else 1)
        images, problem = self._setting(at.stage)
        voxels, edge = self.grid(at.stage)
        if at.maps is None:
            at.maps = _start(images, problem, self.settings, team)
        elif at.voxels != voxels:
            at.maps = box_crop(_regridded(at.maps, at.voxels, voxels), edge, ndim=3) * problem.mask
        if at.step == 0:
            at.goal, at.share, at.previous = at.maps, 1.0, -math.inf
            at.power = self._first_power(problem)
        at.voxels = voxels
        while at.step < steps and at.share >= _LEAST_STEP:
            self._iterate(at, images, problem, team)
            metrics = {"log_likelihood": at.log_likelihood[-1], "radius": float(self.radii[at.stage])}
            yield Progress(
                f"linear model to {self._resolution_A(at.stage):.1f} A",
                at.step,
                steps,
                self._fraction(at, steps),
                metrics,
                dict(vars(at)),
            )

    def _setting(self, stage: int) -> tuple[LinearImages, Problem]:
        """Images and system of a stage, kept until the next one."""
        if self._ready is None or self._ready[0] != stage:
            voxels, edge = self.grid(stage)
            radius, lattice = self.radii[stage], MapLattice(edge)
            images = LinearImages(self.observed, radius=radius, voxels=voxels, lattice=lattice)
            mask = box_crop(_resampled(self.mask, voxels), edge, ndim=3).clamp(0, 1)
            problem = Problem(lattice, images.density(), mask, math.ceil(radius * edge / voxels))
            self._ready = stage, images, problem
        return self._ready[1:]

    def _iterate(self, at: _State, images: LinearImages, problem: Problem, team: Workers) -> None:
        """Measure the maps under trial; take them and make new ones, or try a smaller step."""
        assert at.maps is not None
        assert at.goal is not None
        straight = at.maps + at.share * (at.goal - at.maps)
        penalty = problem.penalty(straight, at.power)
        trial, _ = principal(straight)
        found = expect(images, trial, team)
        objective = found.gain - penalty
        at.step += 1
        if objective < at.previous:
            at.share *= 0.5
            at.log_likelihood.append(at.log_likelihood[-1])
        else:
            at.log_likelihood.append(found.gain)
            if at.power is not None:
                at.power = problem.power_of(trial, at.power)
            at.previous = found.gain - problem.penalty(trial, at.power)
            # Not in a stage's first steps, which make up for the last one's coarser maps.
            at.maps, at.share = trial, _FAR if at.share >= 1 and at.step > 2 else 1.0
            at.goal = maximise(problem, trial, found, at.power, team)
        at.radius.append(float(images.radius))

    def _first_power(self, problem: Problem) -> Tensor | None:
        """A prior as strong as the data."""
        if not self.settings.prior:
            return None
        return (0.25 / problem.per_shell).expand(self.settings.rank + 1, -1).clone()

    def _resolution_A(self, stage: int) -> float:
        return self.observed.box * self.observed.pixel_size_A / self.radii[stage]

    def _fraction(self, at: _State, steps: int) -> float:
        costs = [r**2 * (2 if i == 0 else 1) for i, r in enumerate(self.radii)]
        return 0.97 * (sum(costs[: at.stage]) + costs[at.stage] * at.step / steps) / sum(costs)

    def finish(self, at: _State, team: Workers) -> LinearModel:
        """Posteriors at the maps where the last step led, if they are better; all on the images' grid."""
        assert at.maps is not None
        assert at.goal is not None
        images, problem = self._setting(len(self.radii) - 1)
        chosen = at.maps + at.share * (at.goal - at.maps)
        found = expect(images, chosen, team, with_gradient=False)
        if found.gain - problem.penalty(chosen, at.power) < at.previous:
            chosen, found = at.maps, expect(images, at.maps, team, with_gradient=False)
        maps, turn = principal(_regridded(chosen, at.voxels, self.observed.box))
        return _model(maps, turn, found, at, Volume(self.mask, self.observed.pixel_size_A))


def _model(maps: Tensor, turn: Tensor, found: Expectation, at: _State, mask: Volume) -> LinearModel:
    size = maps[1:].flatten(1).double().norm(dim=1).clamp_min(1e-30)
    to = size[:, None] * turn
    return LinearModel(
        mean=Volume(maps[0], mask.pixel_size_A),
        components=maps[1:] / size.to(maps)[:, None, None, None],
        variance=size.square().float(),
        latent=(found.mean.double() @ to.T).float(),
        latent_covariance=(to @ found.covariance.double() @ to.T).float(),
        log_likelihood=[*at.log_likelihood, found.gain],
        radius=[*at.radius, at.radius[-1]],
        mask=mask.values,
    )


def _start(
    images: LinearImages, problem: Problem, settings: LinearSettings, team: Workers
) -> Float[Tensor, "c n n n"]:
    """The mean map after two steps, and random components."""
    n = problem.lattice.box
    mean = torch.zeros(1, n, n, n)
    for _ in range(2):
        mean = maximise(problem, mean, expect(images, mean, team), None, team)
    noise = torch.randn(settings.rank, n, n, n, generator=torch.Generator().manual_seed(settings.seed))
    k = torch.fft.fftfreq(n) * n
    radius = (k[:, None, None].square() + k[:, None].square() + torch.arange(n // 2 + 1).square()).sqrt()
    spectrum = torch.fft.rfftn(noise, dim=(1, 2, 3)) * (radius <= problem.last_shell)
    noise = torch.fft.irfftn(spectrum, s=(n, n, n)) * problem.mask
    scale = _START_SCALE * mean.norm() / noise.flatten(1).norm(dim=1)
    return torch.cat((mean, noise * scale[:, None, None, None]))


def _mask_on_grid(observed: Observations, mask: Volume | None) -> Float[Tensor, "n n n"]:
    box = observed.box
    if mask is None:
        radius = min(observed.particle_radius_px, 0.45 * box)
        return soft_sphere_mask(box, radius_px=radius, edge_px=min(max(3.0, 0.05 * box), box / 2 - radius))
    if mask.box != box or abs(mask.pixel_size_A / observed.pixel_size_A - 1) > 1e-3:
        raise BadInput(
            f"fit_linear: a mask of {mask.box} voxels of {mask.pixel_size_A:g} A for images of {box} pixels of "
            f"{observed.pixel_size_A:g} A. Resample it with `cryorbit map resample`."
        )
    if not bool((mask.values > 0.5).any()):
        raise BadInput("fit_linear: the mask is empty. Give one with values of 1 inside the particle.")
    return mask.values.float().clamp(0, 1)


def _reach_px(mask: Float[Tensor, "n n n"]) -> float:
    """How far from the origin, along an axis, the mask goes."""
    inside = torch.nonzero(mask > 1e-3) - mask.shape[0] // 2
    return float(inside.abs().max()) + 1.0


def _resampled(values: Float[Tensor, "... n n n"], box: int) -> Float[Tensor, "... m m m"]:
    return values if box == values.shape[-1] else fourier_resample(values, box, ndim=3)


def _regridded(maps: Float[Tensor, "c m m m"], old: int, new: int) -> Float[Tensor, "c n n n"]:
    """Maps cut out of `old` voxels across the field of view, on all of `new` voxels, their transforms kept."""
    return _resampled(box_pad(maps, old, ndim=3), new) * (old / new) ** 3
