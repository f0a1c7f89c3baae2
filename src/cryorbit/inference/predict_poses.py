"""Poses of new particles of a known specimen: the network's hypotheses, refined against its map, doubtful ones searched.

An image is looked at three times at most. The encoder gives a distribution, whose `top` separate hypotheses start a local
search by likelihood (`proposals`). An image that the map then explains worse than the others, or that has a rival pose, is
searched over the whole grid of poses (`known_map`) and the likelier of the two results kept. Every comparison of an image
with the map is counted (`effort`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryorbit.data import ParticleStack, Pose
from cryorbit.errors import BadInput
from cryorbit.inference.effort import Effort
from cryorbit.inference.engine import Progress, Workers, workers
from cryorbit.inference.known_map import joined
from cryorbit.inference.locate import Located
from cryorbit.inference.observations import Contrast
from cryorbit.inference.pose_model import PoseModel
from cryorbit.inference.predictor import PosePosterior, Predictor, Refined

BLOCK, SEARCH_BLOCK = 64, 16
"""Images handled at a time by one worker, in refinement and in the search."""
LOW = 2.0
"""Spreads below the middle of the right poses where doubt begins: it falls on 2 % of them. (Of 4V5A at SNR 0.1, wrong poses
lay 14 or more below.)"""
SHORT = 0.7
"""Of what the map explains of well explained images, above which no pose is in doubt however precise the images are: maps
and scales are not right to the last per cent. (Of 4V5A at SNR 1 and 0.1, wrong poses explained at most 0.2 of their power,
99 % of right ones more than 0.74, well explained images 1.1.)"""
RIVAL = 0.9
"""Probability of the chosen pose against its rivals, below which it is in doubt."""


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """How poses are predicted."""

    top: int = 8
    """Hypotheses per image that are kept and, with --refine, refined."""
    refine: bool = True
    """Refine the hypotheses by likelihood against the model's map; --no-refine takes the network's word."""
    search_doubtful: bool = True
    """Search all poses for images that refined hypotheses do not explain as well as others."""
    most_searched: float = 0.15
    """Share of the images that is searched at most, the worst explained first."""
    contrast: Contrast = "auto"
    """Protein light on dark ice, or dark on light; auto asks the images."""
    seed: int = 0
    """Decides which images the noise is measured on."""
    threads: int = 0
    """Workers; 0 for one per core."""

    def __post_init__(self) -> None:
        if self.top < 1 or self.threads < 0 or not 0 <= self.most_searched <= 1:
            raise BadInput(
                f"Wanted --top 1 or more, --threads 0 or more and --most-searched 0 to 1, got {self.top}, {self.threads} "
                f"and {self.most_searched}."
            )


@dataclass(frozen=True, eq=False)
class PredictedPoses:
    """What `predict_poses` found, in the order of the stack."""

    pose: Pose
    confidence: Float[Tensor, "n"]
    """Probability of the chosen pose's mode: of the encoder, or by likelihood against the rivals that were refined; NaN
    without rivals: of an image not searched whose encoder has one hypothesis, or with --top 1."""
    posterior: PosePosterior
    refined: Located | None
    """The poses after refinement, shifts in pixels of the images as framed; None without."""
    doubted: Bool[Tensor, "n"]
    """Images whose refined pose was not believed."""
    searched: Bool[Tensor, "n"]
    """Those of them that were searched exhaustively."""
    proposing: Effort
    """Likelihood evaluations of the refinement of hypotheses, all images together."""
    searching: Effort
    """Likelihood evaluations of the searches, refinement of what they found included."""


def predict_poses(stack: ParticleStack, model: PoseModel, settings: PredictSettings) -> Iterator[Progress]:
    """Yield progress; the last record carries the `PredictedPoses`.

    Raises
    ------
    BadInput
        If there are no images, or they cannot be brought to the model's field of view, or are unusable.
    """
    if len(stack) == 0:
        raise BadInput(f"{stack.source}: no particles in it. Give a file that has some.")
    n, s = len(stack), settings
    share = 0.7 if s.refine and s.search_doubtful else 1.0
    with workers(s.threads or torch.get_num_threads()) as team:
        predictor = Predictor(stack, model, contrast=s.contrast, seed=s.seed)
        proposed: list[_Proposed] = []
        for part in torch.arange(n).split(2 * BLOCK * team.count):
            proposed += team.map(lambda rows: _propose(predictor, rows, s), part.split(BLOCK))
            seen = int(part[-1]) + 1
            yield Progress("network", seen, n, 0.999 * share * seen / n, {})
        posterior = PosePosterior.joined([p.posterior for p in proposed])
        proposing = total([p.refined.effort for p in proposed if p.refined])
        if not s.refine:
            pose = Pose(posterior.rotation[:, 0], posterior.shift_A[:, 0])
            none = torch.zeros(n, dtype=torch.bool)
            result = PredictedPoses(
                pose, posterior.mode_probability, posterior, None, none, none, Effort(), Effort()
            )
            yield Progress("done", n, n, 1.0, {}, {}, result)
            return
        found = joined([p.refined.found for p in proposed if p.refined])
        doubted = doubtful(found)
        rows = worst(found, doubted, most=s.most_searched) if s.search_doubtful else doubted.nonzero()[:0, 0]
        searching, seen = Effort(), 0
        for part in rows.split(SEARCH_BLOCK * team.count) if len(rows) else ():
            new = search(predictor, part, team)
            found = likelier(found, new.found, part)
            searching.add(new.effort)
            seen += len(part)
            fraction = share + (0.999 - share) * seen / len(rows)
            yield Progress("search of doubtful images", seen, len(rows), fraction, {})
    searched = torch.zeros(n, dtype=torch.bool)
    searched[rows] = True
    pose = Pose(found.rotation, found.shift_px * predictor.pixel_A)
    result = PredictedPoses(pose, found.confidence, posterior, found, doubted, searched, proposing, searching)
    metrics = {"doubted": float(doubted.sum()), "searched": float(len(rows))}
    yield Progress("done", n, n, 1.0, metrics, {}, result)


@dataclass(frozen=True, eq=False)
class _Proposed:
    posterior: PosePosterior
    refined: Refined | None


def _propose(predictor: Predictor, rows: Int[Tensor, "b"], settings: PredictSettings) -> _Proposed:
    if settings.refine:
        return _Proposed(*predictor.propose(rows, top=settings.top))
    return _Proposed(predictor.hypotheses(rows, top=settings.top), None)


def search(predictor: Predictor, rows: Int[Tensor, "m"], team: Workers) -> Refined:
    """Full search of some images, shared out among the workers."""
    done = team.map(predictor.search, rows.tensor_split(min(team.count, len(rows))))
    return Refined(joined([d.found for d in done]), total([d.effort for d in done]))


def doubtful(found: Located) -> Bool[Tensor, "n"]:
    """Images whose pose is not believed: the map explains them too badly, or a rival pose is likely.

    `deviation` has spread 1 where pose and map are right, and is far below where a pose is wrong. Middle and spread of
    the right ones are read off the upper end of all (80 % and 95 % points, as of a normal distribution), so that a third
    of right poses is enough. What an image lacks must also be a good part of what is explained of others.
    """
    z = found.deviation
    high, highest = z.quantile(0.8), z.quantile(0.95)
    spread = max(1.0, float(highest - high) / (1.645 - 0.842))
    low = z < high - (0.842 + LOW) * spread
    short = found.explained < SHORT * found.explained.quantile(0.8)
    return (low & short) | (found.confidence < RIVAL)


def worst(found: Located, doubted: Bool[Tensor, "n"], *, most: float) -> Int[Tensor, "m"]:
    """The doubted images, of more than the share `most` those with the least `deviation`, in order of the stack."""
    rows = doubted.nonzero()[:, 0]
    return rows[found.deviation[rows].argsort()][: int(most * len(doubted))].sort().values


def likelier(found: Located, new: Located, rows: Int[Tensor, "m"]) -> Located:
    """`found` with what is new at `rows` where that is likelier; a confidence that was NaN is the new one in any case."""
    better = new.log_likelihood > found.log_likelihood[rows]
    values = {f.name: getattr(found, f.name).clone() for f in fields(found)}
    for name, value in values.items():
        taken = better | value[rows].isnan() if name in ("confidence", "entropy") else better
        value[rows[taken]] = getattr(new, name)[taken]
    return Located(**values)


def total(parts: list[Effort]) -> Effort:
    """The sum."""
    out = Effort()
    for part in parts:
        out.add(part)
    return out
