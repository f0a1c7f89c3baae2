"""Maps drawn given images and a learned prior: one loop for every method, a cost per step that no image enters.

A chain goes down a ladder of noise levels. At each the denoiser of the prior gives an estimate of the clean map, the two
volumes of the likelihood correct it, and noise of the next level is put back; how is the method's matter
(`inference.posterior_methods`). Maps are in the prior's unit: give `data.scaled(prior.density_scale)`.

    data = collapse(stack, noise).scaled(prior.density_scale)
    for progress in sample_posterior(denoiser, data, DiffPIR(), PosteriorSettings()):
        ...
    maps = progress.result.samples * prior.density_scale
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.fourier.filters import low_pass
from cryorbit.inference.engine import Progress, generator_from
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.posterior_methods import CountedDenoiser, Method, Problem
from cryorbit.inference.prior_sampling import noise_levels
from cryorbit.models.score import Denoiser

Refresh = Callable[[Float[Tensor, "s 1 n n n"], int], TwoVolumes | None]
"""Given the present clean maps and the step: the likelihood from now on, or None to keep it."""


@dataclass(frozen=True, kw_only=True)
class PosteriorSettings:
    """How to draw from the posterior, whatever the method."""

    samples: int = 8
    """Maps to draw, each a chain of its own."""
    steps: int = 100
    """Levels of noise."""
    highest: float = 50.0
    """First level, in standard deviations of the prior's maps."""
    lowest: float = 0.01
    """Last level before zero, likewise."""
    seed: int = 0
    """Decides all noise."""
    at_a_time: int = 8
    """Chains that go through the network together."""
    beyond_data: bool = False
    """Keep detail finer than the data's own resolution, which only the prior vouches for."""

    def __post_init__(self) -> None:
        if min(self.samples, self.steps, self.at_a_time) < 1 or not 0 < self.lowest <= self.highest:
            raise BadInput(
                "PosteriorSettings: samples, steps and at_a_time must be at least 1, and 0 < lowest <= highest; "
                f"got {self}."
            )


@dataclass(frozen=True, eq=False)
class PosteriorSamples:
    """Maps drawn from a posterior.

    Parameters
    ----------
    samples
        Shape (s, n, n, n), in the prior's unit.
    cutoff_A
        Where they were low-passed; None if they were not.
    network_passes
        Per chain: forward passes and backward passes, each counted as one.
    """

    samples: Float[Tensor, "s n n n"]
    cutoff_A: float | None
    network_passes: int

    def mean(self) -> Float[Tensor, "n n n"]:
        """The posterior mean's estimate."""
        return self.samples.mean(0)

    def spread(self) -> Float[Tensor, "n n n"]:
        """Standard deviation over samples, voxel by voxel."""
        if len(self.samples) < 2:
            raise BadInput("PosteriorSamples.spread: one sample has none. Draw at least two, better eight.")
        return self.samples.std(0)


def sample_posterior(
    denoiser: Denoiser,
    data: TwoVolumes,
    method: Method,
    settings: PosteriorSettings,
    *,
    refresh: Refresh | None = None,
    state: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Yield progress after every level; the last record carries the `PosteriorSamples`.

    Parameters
    ----------
    denoiser
        The prior, in the unit of `data`, its conditions bound; x has shape (batch, 1, n, n, n).
    refresh
        Called after every step with the clean maps: where poses are not known, it draws them given these maps (never
        given the noisy state) and collapses the images anew. All chains share what it returns, so draw poses jointly with
        one chain, or given the mean of several.
    state
        Of an earlier record: goes on from there to the same result. What `refresh` returned is not in it, and is asked
        for again.

    Raises
    ------
    BadInput
        If the state is not of this run.
    """
    n, device = data.box, data.back_projection.device
    generator = generator_from(None if state is None else state["generator"], seed=settings.seed)
    unit = denoiser.sigma_data
    levels = noise_levels(settings.steps, settings.lowest * unit, settings.highest * unit).tolist()
    shape = (settings.samples, 1, n, n, n)
    denoise = CountedDenoiser(denoiser, settings.at_a_time)
    if state is None:
        x, first = levels[0] * torch.randn(shape, generator=generator).to(data.back_projection), 0
        clean = torch.zeros_like(x)
    else:
        x, clean, first = state["x"].to(device), state["clean"].to(device), int(state["step"])
        denoise.passes = int(state["network_passes"])
        if tuple(x.shape) != shape or first > settings.steps:
            raise BadInput(
                f"sample_posterior: a state of {tuple(x.shape)} at step {first} is not of a run of {shape} and "
                f"{settings.steps} steps. Give the settings it was made with."
            )
        if refresh is not None and first:
            data = refresh(clean, first - 1) or data
    problem = Problem(denoise, data, generator)
    for step in range(first, settings.steps):
        x, clean = method.step(problem, x, levels[step], levels[step + 1], clean)
        new = None if refresh is None else refresh(clean, step)
        if new is not None:
            problem = Problem(denoise, new, generator)
        done = step + 1
        metrics = {
            "sigma": levels[step],
            "network_passes": float(denoise.passes),
            "misfit": float(problem.data.chi_square(clean).mean()) / max(problem.data.count, 1.0),
        }
        keep = {
            "x": x,
            "clean": clean,
            "generator": generator.get_state(),
            "step": done,
            "network_passes": denoise.passes,
        }
        last = done == settings.steps
        result = _result(clean, problem.data, settings, denoise.passes) if last else None
        yield Progress(
            "posterior", done, settings.steps, done / settings.steps, metrics, {} if last else keep, result
        )


def _result(clean: Tensor, data: TwoVolumes, settings: PosteriorSettings, passes: int) -> PosteriorSamples:
    maps, cutoff = clean[:, 0], None if settings.beyond_data else data.cutoff_A
    if cutoff is not None:
        maps = low_pass(maps, resolution_A=cutoff, pixel_size_A=data.pixel_size_A, ndim=3)
    return PosteriorSamples(maps, cutoff, passes)
