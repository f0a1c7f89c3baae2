"""Whether a posterior over rotations means what it says: coverage of its credible sets, and its log score.

All of it needs the true rotations. Without a truth there is nothing here to compute: entropy and confidence then describe
the program's own view, and no number may call itself calibrated.

The credible level of the truth is the mass of all cells more probable than the one it lies in, plus a random share of that
cell (and of those tied with it): uniform on [0, 1] if and only if truths are drawn from the posterior, for grids of any
coarseness (the randomised probability integral transform; Czado, Gneiting & Held 2009, Biometrics 65, 1254).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryorbit.data import SO3Distribution
from cryorbit.errors import BadInput
from cryorbit.geometry.symmetry import point_group

LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))
BAR = (0.93, 0.97)
"""Coverage of the 95 % sets that counts as calibrated, however many images there are."""
_MASS_TOLERANCE = 1e-3
_FLOOR = 1e-30
_CHUNK = 20_000_000


@dataclass(frozen=True, eq=False)
class PosteriorScores:
    """What the truth says of each of n posteriors; `joined` with others for stacks that do not fit at once."""

    level: Float[Tensor, "n"]
    """Credible level at which the set of most probable cells takes in the truth, 0 (the mode) to 1."""
    mass_above: Float[Tensor, "n"]
    """Mass of the cells more probable than the truth's own: whole-cell sets of level q hold it if this is below q."""
    nll: Float[Tensor, "n"]
    """-log of the probability of the truth's cell, nats; a uniform posterior of k cells has log k."""
    entropy: Float[Tensor, "n"]
    """Of the cells, nats, on the same scale as `nll`; equal to it on average if calibrated."""
    nearest_deg: Float[Tensor, "n"]
    """Angle between the truth and the centre of its cell: large where the cells do not cover SO(3)."""
    cell_fraction: float

    def joined(self, *others: PosteriorScores) -> PosteriorScores:
        """These images and those of others, on grids of the same fineness."""
        every = (self, *others)
        if any(not math.isclose(o.cell_fraction, self.cell_fraction, rel_tol=1e-6) for o in others):
            raise BadInput("PosteriorScores: cells of different size. Compare posteriors on one grid.")
        return PosteriorScores(
            level=torch.cat([o.level for o in every]),
            mass_above=torch.cat([o.mass_above for o in every]),
            nll=torch.cat([o.nll for o in every]),
            entropy=torch.cat([o.entropy for o in every]),
            nearest_deg=torch.cat([o.nearest_deg for o in every]),
            cell_fraction=self.cell_fraction,
        )


def score_posterior(
    distribution: SO3Distribution,
    truth: Float[Tensor, "n 3 3"],
    *,
    generator: torch.Generator,
    group: str | Float[Tensor, "g 3 3"] | None = None,
) -> PosteriorScores:
    """Level, log score and entropy of each posterior against its true rotation.

    Parameters
    ----------
    distribution
        Posteriors of n particles on k cells each. Cells that share one grid may be an expanded view.
    truth
        True rotations, in the frame and hand of the map that the posteriors belong to.
    generator
        Draws the random share of the truth's cell.
    group
        The particle's symmetry: the truth R stands for all R S. One of them is drawn by its posterior probability, which
        keeps the level uniform for calibrated posteriors whether they cover SO(3) or an asymmetric unit; `nll` then
        counts the mass of all.

    Raises
    ------
    BadInput
        If the numbers differ, or the rows of probabilities do not sum to 1.
    """
    p = distribution.probability.double()
    if len(truth) != len(distribution) or len(truth) == 0:
        raise BadInput(f"score_posterior: {len(distribution)} posteriors but {len(truth)} true rotations.")
    if float((p.sum(1) - 1).abs().max()) > _MASS_TOLERANCE:
        raise BadInput("score_posterior: probabilities do not sum to 1. Apply a softmax to the logits first.")
    p = p / p.sum(1, keepdim=True)
    matrices = torch.eye(3, dtype=truth.dtype, device=truth.device)[None]
    if group is not None:
        matrices = (point_group(group) if isinstance(group, str) else group).to(truth)
    cell, angle = _cells_of(distribution.rotation, truth, matrices)
    at = p.gather(1, cell)  # probability of each symmetry mate's cell
    # In an asymmetric unit most mates lie far from any cell: they are not there.
    radius = _radius_of_cell(distribution.cell_fraction)
    there = (angle <= 2 * radius) | (angle <= angle.amin(1, keepdim=True) + 1e-6)
    at = at * _first_of_each(cell, there)
    total = at.sum(1)
    weight = (at.clamp_min(_FLOOR) * there).cpu()  # chance is drawn on the CPU, whatever the device
    drawn = torch.multinomial(weight, 1, generator=generator)[:, 0].to(p.device)
    each = torch.arange(len(p), device=p.device)
    own = p[each, cell[each, drawn]][:, None]
    above = (p * (p > own)).sum(1)
    tied = (p * (p == own)).sum(1)
    share = torch.rand(len(p), generator=generator, dtype=p.dtype).to(p.device)
    return PosteriorScores(
        level=(above + share * tied).clamp(0, 1),
        mass_above=above,
        nll=-total.clamp_min(_FLOOR).log(),
        entropy=-(p * p.clamp_min(_FLOOR).log()).sum(1),
        nearest_deg=torch.rad2deg(angle[each, drawn]),
        cell_fraction=distribution.cell_fraction,
    )


def _cells_of(
    rotation: Float[Tensor, "n k 3 3"], truth: Float[Tensor, "n 3 3"], group: Float[Tensor, "g 3 3"]
) -> tuple[Tensor, Tensor]:
    """Nearest cell of each mate of each truth, and the angle to it in radians, both (n, g)."""
    mates = (truth[:, None] @ group).reshape(len(truth), -1, 9)
    shared = rotation.stride(0) == 0
    k = rotation.shape[1]
    flat = rotation[0].reshape(1, k, 9) if shared else None
    cells, traces = [], []
    step = max(1, _CHUNK // (k * mates.shape[1]))
    for start in range(0, len(truth), step):
        some = mates[start : start + step]
        centres = (
            flat.expand(len(some), k, 9) if flat is not None else rotation[start : start + step].flatten(2)
        )
        trace, cell = torch.einsum("ngx,nkx->ngk", some, centres.to(some)).max(2)
        cells.append(cell)
        traces.append(trace)
    cosine = ((torch.cat(traces) - 1) / 2).clamp(-1, 1)
    return torch.cat(cells), torch.acos(cosine.double())


def _first_of_each(cell: Tensor, there: Bool[Tensor, "n g"]) -> Tensor:
    """1 for the first mate that is there in each cell, 0 for others: mass is not counted twice."""
    same = (cell[:, :, None] == cell[:, None, :]) & there[:, None, :]
    earlier = torch.tril(same, diagonal=-1).any(2)
    return (there & ~earlier).double()


def _radius_of_cell(fraction: float) -> float:
    """Radius of the geodesic ball with this share of SO(3): (r - sin r) / pi, by bisection."""
    low, high = 0.0, math.pi
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (middle - math.sin(middle)) / math.pi < fraction else (low, middle)
    return high


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """Reliability of n posteriors, measured against the truth; there is no other way to make one."""

    level: Float[Tensor, "l"]
    coverage: Float[Tensor, "l"]
    """Share of truths inside the credible sets of each level; equal to the level if calibrated."""
    coverage_whole_cells: Float[Tensor, "l"]
    """The same for the smallest sets of whole cells that reach the level; above it where cells are few."""
    deviation: Float[Tensor, "l"]
    """Binomial standard deviation of `coverage` for a calibrated posterior, sqrt(q (1 - q) / n)."""
    pit: Float[Tensor, "n"]
    """Credible level of each truth: uniform if calibrated."""
    nll: float
    """Mean, nats per cell."""
    entropy: float
    """Mean, nats per cell."""
    uniform_nll: float
    """What a posterior that knows nothing scores."""
    nearest_deg: float
    """Median angle between truth and its cell's centre."""

    @property
    def expected_error(self) -> float:
        """Mean of |coverage - level| over the levels (expected calibration error)."""
        return float((self.coverage - self.level).abs().mean())

    @property
    def noise_error(self) -> float:
        """What `expected_error` is on average for a calibrated posterior of as many images, sqrt(2 / pi) sd."""
        return float(self.deviation.mean()) * math.sqrt(2 / math.pi)

    @property
    def distance(self) -> float:
        """Largest gap between the distribution of `pit` and the uniform one (Kolmogorov), times sqrt(n)."""
        u, n = self.pit.sort().values, len(self.pit)
        rank = torch.arange(1, n + 1, dtype=u.dtype, device=u.device) / n
        return math.sqrt(n) * float(torch.maximum(rank - u, u - rank + 1 / n).max())

    def coverage_at(self, level: float) -> float:
        """Share of truths inside the credible sets of any level."""
        return float((self.pit <= level).double().mean())

    @property
    def calibrated(self) -> bool:
        """Whether `pit` passes as uniform (1 % of calibrated posteriors fail), or 95 % sets cover 93 to 97 %.

        The second counts only where the mean error over all levels is small as well, below 0.02.
        """
        good = BAR[0] <= self.coverage_at(0.95) <= BAR[1] and self.expected_error < 0.02
        return self.distance < 1.628 or good

    def verdict(self) -> str:
        """In one sentence."""
        covered = (
            f"the 95 % credible sets hold the truth of {100 * self.coverage_at(0.95):.1f} % of the particles"
        )
        if self.calibrated:
            return f"Calibrated on this simulation: {covered}."
        lean = float((self.coverage - self.level).mean())
        return f"{'Overconfident' if lean < 0 else 'Too cautious'} on this simulation: {covered}."

    def summary(self) -> dict[str, float | bool]:
        """The numbers for a table or a JSON file."""
        return {
            "coverage50": self.coverage_at(0.5),
            "coverage95": self.coverage_at(0.95),
            "calibration_error": self.expected_error,
            "nll": self.nll,
            "entropy": self.entropy,
            "uniform_nll": self.uniform_nll,
            "calibrated": self.calibrated,
        }


def calibrate(scores: PosteriorScores, *, levels: Sequence[float] = LEVELS) -> Calibration:
    """Reliability curve and scores of posteriors that `score_posterior` compared with the truth."""
    level = torch.tensor(sorted(levels), dtype=torch.float64, device=scores.level.device)
    if not bool(((level > 0) & (level < 1)).all()):
        raise BadInput(f"calibrate: levels {list(levels)} must lie between 0 and 1.")
    n = len(scores.level)
    return Calibration(
        level=level,
        coverage=(scores.level[None] <= level[:, None]).double().mean(1),
        coverage_whole_cells=(scores.mass_above[None] < level[:, None]).double().mean(1),
        deviation=(level * (1 - level) / n).sqrt(),
        pit=scores.level.double(),
        nll=float(scores.nll.mean()),
        entropy=float(scores.entropy.mean()),
        uniform_nll=-math.log(scores.cell_fraction),
        nearest_deg=float(scores.nearest_deg.median()),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Reliability:
    """How often statements of a given confidence are right: the truth's answer to one probability per particle."""

    confidence: Float[Tensor, "b"]
    """Mean stated probability in each bin."""
    correct: Float[Tensor, "b"]
    """Share that is right in each bin."""
    count: Float[Tensor, "b"]
    """Particles in each bin."""
    brier: float
    """Mean squared difference between probability and outcome."""

    @property
    def expected_error(self) -> float:
        """Mean of |correct - confidence| over the particles (expected calibration error)."""
        return float((self.count * (self.correct - self.confidence).abs()).sum() / self.count.sum())

    @property
    def lean(self) -> float:
        """Share right minus mean confidence: negative where the program is too sure."""
        return float((self.count * (self.correct - self.confidence)).sum() / self.count.sum())

    def verdict(self) -> str:
        """In one sentence."""
        right = float((self.count * self.correct).sum() / self.count.sum())
        said = right - self.lean
        n = float(self.count.sum())
        slack = 3 * math.sqrt(max(right * (1 - right), 1 / n) / n) + 0.01
        word = (
            "as sure as it should be"
            if abs(self.lean) < slack
            else "too sure"
            if self.lean < 0
            else "too cautious"
        )
        return (
            f"Mean confidence {said:.2f}, right in {right:.2f} of the particles of this simulation: {word}."
        )


def reliability(confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], *, bins: int = 10) -> Reliability:
    """Confidence against how often it was right, in bins of equal width; empty bins are left out.

    Parameters
    ----------
    confidence
        Probabilities 0 to 1, one per particle.
    correct
        Whether what they speak of is true, by the truth.

    Raises
    ------
    BadInput
        If the numbers differ, there is none, or a probability is not in 0 to 1.
    """
    n = len(confidence)
    if n == 0 or len(correct) != n:
        raise BadInput(f"reliability: {n} confidences but {len(correct)} outcomes. Give one per particle.")
    value = confidence.double()
    if not bool(((value >= -1e-6) & (value <= 1 + 1e-6)).all()):
        raise BadInput("reliability: confidences must be probabilities, 0 to 1.")
    right = correct.to(value)
    place = (value * bins).long().clamp(0, bins - 1)

    def total(of: Tensor) -> Tensor:
        return torch.bincount(place, weights=of, minlength=bins)

    count = total(torch.ones_like(value))
    used = count > 0
    return Reliability(
        confidence=total(value)[used] / count[used],
        correct=total(right)[used] / count[used],
        count=count[used],
        brier=float((value - right).square().mean()),
    )


__all__ = [
    "BAR",
    "LEVELS",
    "Calibration",
    "PosteriorScores",
    "Reliability",
    "calibrate",
    "reliability",
    "score_posterior",
]
