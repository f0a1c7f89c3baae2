"""Maps from the same two volumes without a learned prior: what a prior has to beat, tuned without sight of the truth.

Each takes a strength. `by_held_out` chooses the one whose map, made from some of the images, explains the others best;
`by_discrepancy` takes the strongest whose misfit is no more than the noise's. `oracle_tuned` looks at the truth: it bounds
what tuning could do, and belongs in a benchmark only, under that name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.map_scores import pearson
from cryorbit.errors import BadInput
from cryorbit.inference.gaussian_solves import solve_precision
from cryorbit.inference.posterior_data import TwoVolumes

Solver = Callable[[TwoVolumes, float], Float[Tensor, "n n n"]]
"""A map from a likelihood and a strength of regularisation, in units of the likelihood's own curvature."""

STRENGTHS = tuple(10.0**i for i in range(-4, 2))
"""Tried by default; then half a decade to either side of the best."""


def wiener(data: TwoVolumes, strength: float) -> Float[Tensor, "n n n"]:
    """Back-projection divided by its weights, (W + strength max W)^-1 B: the mean for a white prior, exact operator."""
    ridge = strength * float(data.weight.max())
    return solve_precision(data, data.back_projection, ridge, tolerance=1e-4, steps=300)


def non_negative(data: TwoVolumes, strength: float, *, steps: int = 300) -> Float[Tensor, "n n n"]:
    """The v >= 0 of least misfit, plus a ridge of strength times W's curvature.

    Accelerated projected gradients with restarts where they overshoot (O'Donoghue & Candes 2015).
    """
    size = data.curvature()
    ridge = strength * size
    v = torch.zeros_like(data.back_projection)
    ahead, weight = v, 1.0
    for _ in range(steps):
        new = (ahead + (data.gradient(ahead) - ridge * ahead) / (size + ridge)).clamp_min(0)
        if float(((ahead - new) * (new - v)).sum()) > 0:
            weight = 1.0
        following = 0.5 * (1 + math.sqrt(1 + 4 * weight**2))
        ahead = new + (weight - 1) / following * (new - v)
        v, weight = new, following
    return v


def total_variation(data: TwoVolumes, strength: float, *, steps: int = 400) -> Float[Tensor, "n n n"]:
    """The v >= 0 of least misfit plus strength * scale * sum over voxels of |gradient of v|, isotropic in 3D.

    Primal-dual steps (Condat 2013, Vu 2013). The scale is W's curvature times the root mean square of the back-projection
    over it, so that a strength means the same whatever the unit of the images.
    """
    size = data.curvature()
    typical = float(data.back_projection.norm()) / size / data.box**1.5
    bound = strength * size * typical
    v = torch.zeros_like(data.back_projection)
    dual = torch.zeros((3, *v.shape), dtype=v.dtype, device=v.device)
    # Steps: 1 / tau - 12 sigma = size / 2, with the two sides of it in balance.
    sigma = size / 24
    tau = 1 / (size / 2 + 12 * sigma)
    for _ in range(steps):
        new = (v + tau * (data.gradient(v) + _divergence(dual))).clamp_min(0)
        dual = dual + sigma * _differences(2 * new - v)
        dual = dual / (dual.norm(dim=0) / max(bound, 1e-30)).clamp_min(1)
        v = new
    return v


BASELINES: dict[str, Solver] = {"back-projection": wiener, "nnls": non_negative, "tv": total_variation}
"""By the names that benchmarks use."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A baseline at the strength that a rule chose.

    Parameters
    ----------
    rule
        "held-out", "discrepancy" or "oracle-tuned".
    score
        What the rule looked at for each strength tried; the least is best for held-out and oracle.
    """

    map: Float[Tensor, "n n n"]
    strength: float
    rule: str
    score: dict[float, float]


def by_held_out(
    solver: Solver,
    folds: Sequence[tuple[TwoVolumes, TwoVolumes]],
    whole: TwoVolumes,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> Tuned:
    """The strength whose maps from one part of the images have the least misfit to the rest; the map is of all images.

    Parameters
    ----------
    folds
        Pairs (fitted, held out) that between them hold out every image once: `two_folds` of half sets, or each view in
        turn where there are few.
    """
    if not folds:
        raise BadInput("by_held_out: no folds. Give pairs of fitted and held-out data.")
    count = sum(out.count for _, out in folds)

    def misfit(strength: float) -> float:
        # The same regularisation in absolute terms: fewer images have less curvature to measure it in.
        maps = [solver(fit, strength * whole.count / fit.count) for fit, _ in folds]
        return sum(float(out.chi_square(v)) for v, (_, out) in zip(maps, folds, strict=True)) / count

    best, score = _least(misfit, strengths)
    return Tuned(solver(whole, best), best, "held-out", score)


def by_discrepancy(
    solver: Solver, whole: TwoVolumes, *, strengths: Sequence[float] = STRENGTHS, slack: float = 1.0
) -> Tuned:
    """The greatest strength whose map's misfit per value is at most `slack`, else the smallest (Morozov's principle).

    Needs noise spectra that can be believed; where images are nearly free of noise it takes the smallest.
    """
    ladder = sorted({*strengths, *(s * 10**0.5 for s in strengths)})
    maps = {s: solver(whole, s) for s in ladder}
    score = {s: float(whole.chi_square(v)) / whole.count for s, v in maps.items()}
    fitting = [s for s in ladder if score[s] <= slack]
    best = max(fitting) if fitting else min(ladder)
    return Tuned(maps[best], best, "discrepancy", score)


def oracle_tuned(
    solver: Solver,
    whole: TwoVolumes,
    truth: Float[Tensor, "n n n"],
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> Tuned:
    """The strength whose map correlates best with the truth. For benchmarks: nobody has the truth."""
    best, score = _least(lambda s: 1 - pearson(solver(whole, s), truth), strengths)
    return Tuned(solver(whole, best), best, "oracle-tuned", score)


def two_folds(first: TwoVolumes, second: TwoVolumes) -> list[tuple[TwoVolumes, TwoVolumes]]:
    """Each half fitted and the other held out."""
    return [(first, second), (second, first)]


def leave_one_out(parts: Sequence[TwoVolumes]) -> list[tuple[TwoVolumes, TwoVolumes]]:
    """Each part held out and the sum of all others fitted: for a few views, collapsed one by one."""
    if len(parts) < 2:
        raise BadInput(f"leave_one_out: {len(parts)} part; give at least two.")
    out = []
    for i, held in enumerate(parts):
        rest = [p for j, p in enumerate(parts) if j != i]
        fitted = rest[0]
        for p in rest[1:]:
            fitted = fitted + p
        out.append((fitted, held))
    return out


def _least(of: Callable[[float], float], strengths: Sequence[float]) -> tuple[float, dict[float, float]]:
    """The strength of least score: of those given, then of half a decade to either side of the best."""
    score = {s: of(s) for s in strengths}
    best = min(score, key=lambda s: score[s])
    score |= {s: of(s) for s in (best / 10**0.5, best * 10**0.5)}
    return min(score, key=lambda s: score[s]), score


def _differences(v: Tensor) -> Tensor:
    """To the next voxel along z, y, x; 0 at the far face."""
    out = v.new_zeros((3, *v.shape))
    for axis in range(3):
        n = v.shape[axis]
        out[axis].narrow(axis, 0, n - 1).copy_(v.narrow(axis, 1, n - 1) - v.narrow(axis, 0, n - 1))
    return out


def _divergence(dual: Tensor) -> Tensor:
    """Minus the transpose of `_differences`."""
    out = torch.zeros_like(dual[0])
    for axis in range(3):
        n = out.shape[axis]
        flow = dual[axis].narrow(axis, 0, n - 1)
        out.narrow(axis, 0, n - 1).add_(flow)
        out.narrow(axis, 1, n - 1).sub_(flow)
    return out
