"""Superposition where every point has its own, unknown uncertainty: moved domains do not drag the core along."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.superpose import Superposition, superpose


@dataclass(frozen=True, eq=False)
class BayesSuperposition:
    """What `superpose_bayes` found.

    Parameters
    ----------
    motion
        Of the moving set onto the fixed one; its rmsd is the weighted one.
    sigma
        Standard deviation of each point about the common structure, per coordinate, shape (..., n), unit of the
        points: root of 1 / (posterior mean of 1 / sigma^2).
    mean
        The common structure in the fixed frame, shape (..., n, 3).
    log_likelihood
        Of the displacements, after each round, shape (rounds, ...), nats up to a constant; never falls.
    """

    motion: Superposition
    sigma: Float[Tensor, "... n"]
    mean: Float[Tensor, "... n 3"]
    log_likelihood: Float[Tensor, "rounds ..."]


def superpose_bayes(
    moving: Float[Tensor, "*batch n 3"],
    fixed: Float[Tensor, "*batch n 3"],
    *,
    dof: float = 2.0,
    iterations: int = 100,
) -> BayesSuperposition:
    """Most probable rigid motion when point i of both sets lies sigma_i N(0, 1) from a common structure.

    The model of THESEUS (Theobald and Wuttke 2006, PNAS 103, 18521; Moreta et al. 2019): moving and fixed are
    noisy copies of one structure, the rotation uniform. With an inverse gamma prior on sigma_i^2 the displacements
    d_i = R x_i + t - y_i follow Student's t in three dimensions, and EM has closed steps: weights
    w_i = (dof + 3) / (dof + |d_i|^2 / (2 s^2)), a weighted superposition, s^2 = sum w_i |d_i|^2 / (6 n). (Moreta's
    half-normal prior has no closed expectation; both give heavy tails.) dof -> infinity approaches `kabsch`.

    Parameters
    ----------
    dof
        Degrees of freedom; the smaller, the less a far point weighs. A third of the points moved by much more than
        the rest scatter is found with 2; where they moved by little, a compromise may be likelier.

    Raises
    ------
    BadInput
        If there are fewer than 4 points, dof is not above 0, or there is no round.
    """
    n = moving.shape[-2]
    if n < 4 or not 0 < dof < math.inf or iterations < 1:
        raise BadInput(
            f"superpose_bayes: needs at least 4 points, a finite dof above 0 and 1 iteration; got {n} points, "
            f"dof {dof} and {iterations} iterations. For no weights at all use `kabsch`."
        )
    weight, history = torch.ones_like(moving[..., 0]), []
    motion, variance = superpose(moving, fixed), torch.ones_like(weight[..., 0])
    for _ in range(iterations):
        motion = superpose(moving, fixed, weight=weight)
        squared = ((motion.apply(moving) - fixed) ** 2).sum(-1)
        floor = torch.finfo(squared.dtype).eps ** 2 * (fixed**2).sum(-1).mean(-1)
        variance = ((weight * squared).sum(-1) / (6 * n)).maximum(
            floor.clamp_min(torch.finfo(floor.dtype).tiny)
        )
        ratio = squared / (2 * variance[..., None])
        likelihood = -0.5 * (dof + 3) * torch.log1p(ratio / dof).sum(-1) - 1.5 * n * torch.log(variance)
        history.append(likelihood)
        weight = (dof + 3) / (dof + ratio)
    sigma = torch.sqrt(variance[..., None] / weight)
    return BayesSuperposition(motion, sigma, 0.5 * (motion.apply(moving) + fixed), torch.stack(history))
