"""Ways to put images and a diffusion prior together, each one step from a level of noise to the next.

W and B are those of `inference.posterior_data`, D the prior's denoiser, s the level, s' the next, d the standard
deviation of the prior's maps; r^2 = s^2 d^2 / (s^2 + d^2) is the variance of a clean map given the noisy one where the
prior is white. Nothing here is tuned per case: what a method's paper leaves to tuning has one default, stated.

DiffPIR (Zhu et al. 2023), split Gibbs or PnP-DM (Wu et al. 2024), PiGDM (Song et al. 2023), DPS (Chung et al. 2023), DAPS
(Zhang et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.prior_sampling import noise_levels
from cryorbit.models.score import Denoiser

_SOLVER = {"tolerance": 1e-3, "floor": 0.03}
"""Accuracy of the proximal step: the denoiser's own error is larger."""
_SOLVER_STEPS = 60
_SCATTER = 0.02
"""Accuracy of draws, relative."""

Maps = Float[Tensor, "s 1 n n n"]
"""Chains side by side."""


class CountedDenoiser:
    """A denoiser that counts its passes, and takes some chains at a time.

    `passes` is per chain; a backward pass counts as one more.
    """

    def __init__(self, inner: Denoiser, at_a_time: int) -> None:
        self.inner, self.at_a_time, self.passes = inner, at_a_time, 0
        self.sigma_data = float(inner.sigma_data)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma)."""
        self.passes += 1
        return torch.cat([self._some(part, sigma) for part in x.split(self.at_a_time)])

    def pulled_back(
        self, x: Tensor, sigma: float, direction: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """D(x), and J^T g for the Jacobian J of D and g = direction(D(x))."""
        self.passes += 2
        clean, back = [], []
        for part in x.split(self.at_a_time):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                estimate = self._some(leaf, sigma)
            gradient = direction(estimate.detach())
            (pulled,) = torch.autograd.grad(estimate, leaf, gradient)
            clean.append(estimate.detach())
            back.append(pulled)
        return torch.cat(clean), torch.cat(back)

    def _some(self, x: Tensor, sigma: float) -> Tensor:
        return self.inner(x, x.new_full((len(x),), sigma))


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method sees: prior, likelihood, chance. No images."""

    denoise: CountedDenoiser
    data: TwoVolumes
    generator: torch.Generator

    @cached_property
    def curvature(self) -> float:
        """`TwoVolumes.curvature`, once for as long as the likelihood stays."""
        return self.data.curvature()

    def noise(self, like: Maps) -> Maps:
        """White, of unit variance."""
        return torch.randn(like.shape, generator=self.generator).to(like)

    def spread(self, sigma: float) -> float:
        """The r of this module."""
        d = self.denoise.sigma_data
        return sigma * d / math.hypot(sigma, d)

    def prox(self, x: Maps, rho: float, start: Maps | None = None) -> Maps:
        """`TwoVolumes.prox` to the accuracy that sampling needs."""
        return self.data.prox(x, rho, start=start, steps=_SOLVER_STEPS, **_SOLVER)

    def draw(self, x: Maps, rho: float, start: Maps | None = None) -> Maps:
        """A draw around `prox`."""
        scatter = self.data.deviation(self.noise(x), rho, tolerance=_SCATTER, steps=_SOLVER_STEPS)
        return self.prox(x, rho, start) + scatter

    def unguided(self, x: Maps, clean: Maps, sigma: float, lower: float) -> Maps:
        """An ancestral step of the prior alone: x of the next level given x and its clean estimate."""
        share = (lower / sigma) ** 2
        deviation = lower * math.sqrt(max(1 - share, 0.0))
        return clean + share * (x - clean) + deviation * self.noise(x)


@runtime_checkable
class Method(Protocol):
    """A way to sample; adding one needs nothing else."""

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """From maps with noise `sigma` to maps with noise `lower`, and the clean maps in between.

        At the last level `lower` is 0; the clean maps of that step are the samples. `before` are the clean maps of the
        step before, zero at first: where solvers begin.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DiffPIR:
    """x0 = D(x; s); z = prox(x0, r); then noise s' is put back around z. One forward pass, no tuning.

    The paper's weight of the prior, lambda s_n^2 / s^2, is r here: exact for a white prior, s at low noise. With all noise
    new the chain settles about the posterior mean at half of the posterior's variance (Gaussian prior, low noise): the
    noise put back is the only chance in it. Drawing z in place of its mean adds the other half, at the same cost: annealed
    Langevin dynamics whose likelihood step is exact.
    """

    correction: Literal["mean", "draw"] = "mean"
    """`mean`: a point estimate. `draw`: samples whose spread means something."""
    renewal: float = 1.0
    """Share of the noise's variance that is new at each level; the rest keeps its direction, and what is wrong with it."""

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """See `Method`."""
        prior, r = problem.denoise(x, sigma), problem.spread(sigma)
        correct = problem.prox if self.correction == "mean" else problem.draw
        clean = correct(prior, r, before)
        return renoised(problem, x, clean, sigma, lower, self.renewal), clean


@dataclass(frozen=True, kw_only=True)
class SplitGibbs:
    """x ~ prior given z = x + s n; then z ~ exp(-|z - x|^2 / 2 s'^2) p(Y | z), exactly. For uncertainty.

    The first draw runs the prior's reverse diffusion from level s in `inner_steps` forward passes. Both together leave a
    joint distribution unchanged whose coupling s is annealed to 0 (Wu et al. 2024).
    """

    inner_steps: int = 3
    """Levels of the reverse diffusion."""
    inner_lowest: float = 0.3
    """Its last level before zero, in units of s."""

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """See `Method`."""
        given, d2 = x, problem.denoise.sigma_data**2
        for s, t in pairwise(noise_levels(self.inner_steps, self.inner_lowest * sigma, sigma).tolist()):
            clean = problem.denoise(x, s)
            x = clean + (t / s) ** 2 * (x - clean)
            if t > 0:  # the mean is right for any Gaussian prior, the variance for a white one
                x = x + math.sqrt((s * s - t * t) * (d2 + t * t) / (d2 + s * s)) * problem.noise(x)
        return (problem.draw(x, lower, given) if lower > 0 else x), x


@dataclass(frozen=True, kw_only=True)
class PiGDM:
    """x0 = D(x; s) + s^2 J^T (I + r^2 W)^-1 (B - W D): guidance by the likelihood of a Gaussian around D. Two passes."""

    renewal: float = 0.3
    """As for DiffPIR; 0 follows the probability flow, and keeps what r got wrong at high noise."""

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """See `Method`."""
        r = problem.spread(sigma)
        clean, pull = problem.denoise.pulled_back(x, sigma, lambda d: (problem.prox(d, r) - d) / r**2)
        guided = clean + sigma**2 * pull
        return renoised(problem, x, guided, sigma, lower, self.renewal), guided


@dataclass(frozen=True, kw_only=True)
class DPS:
    """An ancestral step, less `guidance` times the gradient of the residual's norm through the denoiser. Two passes.

    As in the paper, with what it leaves open said: the residual is divided by the noise's deviation and by the largest
    singular value of the projections, so that the constant does not depend on the noise, the number of images or the unit;
    and the step is taken in the variance-preserving coordinate x d / sqrt(s^2 + d^2), where the paper takes it.
    """

    guidance: float = 1.0
    """The paper's zeta', 0.3 to 1 there, for 1,000 steps."""

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """See `Method`."""
        data, d = problem.data, problem.denoise.sigma_data

        def uphill(estimate: Tensor) -> Tensor:
            norm = data.chi_square(estimate).clamp_min(1e-12).sqrt() * problem.curvature**0.5
            return 2 * data.gradient(estimate) / norm.to(estimate)[..., None, None, None]

        clean, pull = problem.denoise.pulled_back(x, sigma, uphill)
        moved = self.guidance * (sigma**2 / d**2 + 1) * pull
        return problem.unguided(x, clean, sigma, lower) + moved, clean


@dataclass(frozen=True, kw_only=True)
class FixedStepDPS:
    """EquiCryo's variant, a baseline: the gradient is divided by its own norm, so the step never shrinks. Two passes."""

    length: float = 1.0
    """Euclidean length of each step, in the variance-preserving coordinate and standard deviations of the prior."""

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """See `Method`."""
        clean, pull = problem.denoise.pulled_back(x, sigma, problem.data.gradient)
        norm = pull.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None, None]
        moved = self.length * math.hypot(sigma, problem.denoise.sigma_data) * pull / norm
        return problem.unguided(x, clean, sigma, lower) + moved, clean


@dataclass(frozen=True, kw_only=True)
class DAPS:
    """x0 by the probability flow; Langevin steps on x0 against p(Y | x0) N(x0; its start, r^2); noise s' on top.

    Asks of the likelihood only its gradient and a bound of its curvature, so it serves where nothing is closed form.
    """

    flow_steps: int = 1
    """Forward passes from s to 0. One gives the mean of x0; more give sharper maps at high noise, and at low noise a prior
    of half its strength."""
    langevin_steps: int = 40
    """Without the network."""

    def __post_init__(self) -> None:
        if min(self.flow_steps, self.langevin_steps) < 1:
            raise BadInput(f"DAPS: wanted at least one step of each kind, got {self}.")

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """See `Method`."""
        for s, t in pairwise(noise_levels(self.flow_steps, 0.1 * sigma, sigma).tolist()):
            clean = problem.denoise(x, s)
            x = clean + (t / s) * (x - clean)
        start, clean, r = x, x, problem.spread(sigma)
        size = 0.5 / (problem.curvature + 1 / r**2)
        for _ in range(self.langevin_steps):
            slope = problem.data.gradient(clean) - (clean - start) / r**2
            clean = clean + size * slope + math.sqrt(2 * size) * problem.noise(clean)
        return clean + lower * problem.noise(clean), clean


METHODS: dict[str, Callable[[], Method]] = {
    "diffpir": DiffPIR,
    "diffpir-draw": lambda: DiffPIR(correction="draw"),
    "split-gibbs": SplitGibbs,
    "pigdm": PiGDM,
    "dps": DPS,
    "dps-fixed-step": FixedStepDPS,
    "daps": DAPS,
}
"""By the names that benchmarks and the command line use."""


def renoised(problem: Problem, x: Maps, clean: Maps, sigma: float, lower: float, renewal: float) -> Maps:
    """Noise of the next level around `clean`: part of it in the direction of the noise that x had, part new."""
    old = (x - clean) / sigma
    return clean + lower * (math.sqrt(1 - renewal) * old + math.sqrt(renewal) * problem.noise(x))
