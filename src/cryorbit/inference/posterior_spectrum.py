"""DiffPIR for a prior whose power is known term by term: the weight of the prior's estimate follows its mean spectrum.

Maps have most of their power in a few coarse Fourier terms, tens of times a voxel's deviation. A denoiser's estimate is
wrong there by about the level of noise, long after one deviation for all would have called it right; with one deviation
noisy images cannot move these terms while they still move. Here, with P the mean power of a term (`models.map_spectrum`)
and s the level,

    r^2 = s^2 P / (s^2 + P),   z = argmin -log p(Y | z) + |z - D(x; s)|^2 / (2 c r^2)   term by term.

For a Gaussian prior of that spectrum and c = 1, D / r^2 = x / s^2, so z has the mean of the map given images and x, and its
draw is exactly that: the chain is a Gibbs sampler of map and noisy map, which leaves the posterior as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.inference.gaussian_solves import draw_precision, solve_precision
from cryorbit.inference.posterior_methods import Maps, Problem

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
