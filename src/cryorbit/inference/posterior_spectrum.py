"""DiffPIR and PiGDM for a prior whose power is known term by term: its estimate's error follows its mean spectrum.

Maps have most of their power in a few coarse Fourier terms, tens of times a voxel's deviation. A denoiser's estimate is
wrong there by about the level of noise, long after one deviation for all would have called it right; with one deviation
noisy images cannot move these terms while they still move. Here, with P the mean power of a term (`models.map_spectrum`)
and s the level,

    r^2 = s^2 P / (s^2 + P),   z = argmin -log p(Y | z) + |z - D(x; s)|^2 / (2 c r^2)   term by term.

For a Gaussian prior of that spectrum and c = 1, D / r^2 = x / s^2, so z has the mean of the map given images and x, and its
draw is exactly that: the chain is a Gibbs sampler of map and noisy map, which leaves the posterior as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.inference.gaussian_solves import draw_precision, solve_precision
from cryorbit.inference.posterior_methods import METHODS, Maps, Method, Problem, renoised

_TOLERANCE, _SCATTER, _STEPS = 1e-3, 0.02, 40
_LEAST = 1e-8
"""Of s^2: what r^2 is at least, where the spectrum is empty."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SpectralDiffPIR:
    """DiffPIR with the r of this module."""

    power: Float[Tensor, "n n h"]
    """P: variance of each term of the unitary half transform, in the prior's unit (`MapSpectrum.variance`)."""
    correction: Literal["mean", "draw"] = "mean"
    """As for DiffPIR."""
    width: float = 4.0
    """c. Above 1 the images are believed more than a Gaussian prior of this spectrum would: a learned denoiser errs more
    than its mean square tells where it has to invent. Chosen on one procedural protein."""

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise BadInput(f"SpectralDiffPIR: a width of {self.width:g} is not positive. Give 1 to 4.")

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """See `Method`; solves begin at the denoiser's estimate."""
        prior, power = problem.denoise(x, sigma), self.power.to(x)
        r2 = self.width * sigma**2 * power / (sigma**2 + power)
        extra = 1 / r2.clamp_min(_LEAST * sigma**2)
        clean = prior + solve_precision(
            problem.data, problem.data.gradient(prior), extra, tolerance=_TOLERANCE, steps=_STEPS
        )
        if self.correction == "draw":
            white = problem.noise(x)
            clean = clean + draw_precision(problem.data, white, extra, tolerance=_SCATTER, steps=_STEPS)
        return clean + lower * problem.noise(x), clean


@dataclass(frozen=True, eq=False, kw_only=True)
class SpectralPiGDM:
    """x0 = D(x; s) + s^2 J^T (I + R W)^-1 (B - W D): PiGDM with the r^2 of this module in R. Two passes.

    The Jacobian J of a map prior's denoiser is about P / (s^2 + P): hundreds of times d^2 / (s^2 + d^2) at the coarse terms.
    With one deviation d for all of them each step overshoots by as much, and chains given clean images end without numbers.
    With J and R as said, x0 is the map's mean given images and x: for a Gaussian prior the sampler is exact.
    """

    power: Float[Tensor, "n n h"]
    """As for `SpectralDiffPIR`."""
    renewal: float = 0.3
    """As for DiffPIR."""

    def step(self, problem: Problem, x: Maps, sigma: float, lower: float, before: Maps) -> tuple[Maps, Maps]:
        """See `Method`."""
        power = self.power.to(x)
        extra = 1 / (sigma**2 * power / (sigma**2 + power)).clamp_min(_LEAST * sigma**2)

        def misfit(estimate: Tensor) -> Tensor:
            # R^-1 (z - D) is the gradient at z, without the rounding of W z where images are clean.
            moved = solve_precision(
                problem.data, problem.data.gradient(estimate), extra, tolerance=_TOLERANCE, steps=_STEPS
            )
            return problem.data.filtered(moved, extra)

        clean, pull = problem.denoise.pulled_back(x, sigma, misfit)
        guided = clean + sigma**2 * pull
        return renoised(problem, x, guided, sigma, lower, self.renewal), guided


def method_of(name: str, power: Float[Tensor, "n n h"]) -> Method:
    """A method by its name, told the prior's spectrum if it can use it.

    Raises
    ------
    BadInput
        If there is no such method.
    """
    told: dict[str, Callable[[], Method]] = {
        "diffpir-spectrum": lambda: SpectralDiffPIR(power=power),
        "diffpir-spectrum-draw": lambda: SpectralDiffPIR(power=power, correction="draw"),
        "pigdm": lambda: SpectralPiGDM(power=power),
    }
    known = METHODS | told
    if name not in known:
        raise BadInput(f"--method {name}: no such sampler. Choose from {', '.join(known)}.")
    return known[name]()
