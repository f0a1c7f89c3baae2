"""From an encoder's hypotheses to poses: the most probable ones are refined by likelihood, and the likeliest kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.inference.amortised_data import ImageBatch, TrainingImages
from cryorbit.inference.locate import MODE_APART_DEG, Located
from cryorbit.inference.refine import DiskData, RefinedPoses, half_disk, refine_poses
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction


@dataclass(frozen=True)
class Stage:
    """Some Gauss-Newton steps for the best hypotheses so far."""

    radius: float
    """Frequencies used, Fourier pixels."""
    kept: int
    """Hypotheses per image."""
    iterations: int = 3


def low_then_all(radius: float, *, most: int, carried: int = 2) -> tuple[Stage, Stage]:
    """`most` hypotheses at low frequencies, whose basin is wider, then the best `carried` of them at all."""
    return Stage(0.6 * radius, most), Stage(radius, carried)


def disk_of(batch: ImageBatch, box: int) -> DiskData:
    """The same data for `refine_poses`, with shifts in pixels of a box of that many over the same field of view."""
    return DiskData(batch.transform, batch.ctf, batch.points, box)


def entropy_of(logits: Float[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """Of hypotheses with these logits, nats, relative to all being equally probable (0: nothing is known)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1) - math.log(log_p.shape[1])


def probability_near_best(prediction: PosePrediction, *, within_deg: float) -> Float[Tensor, "b"]:
    """Probability of all hypotheses that are nearer than `within_deg` to the most probable one, itself included."""
    best = prediction.best().rotation
    trace = torch.einsum("bkij,bij->bk", prediction.rotation, best)
    near = trace > 1 + 2 * math.cos(math.radians(within_deg))
    return (prediction.logits.softmax(1) * near).sum(1)


def separate(prediction: PosePrediction, count: int, *, apart_deg: float, among: int = 64) -> PosePrediction:
    """The most probable hypotheses, each at least `apart_deg` from the more probable ones that were taken.

    Where fewer are so far apart, the most probable of the others fill up. Only the first `among` are looked at.
    """
    top = prediction.top(max(among, count))
    b, m = top.logits.shape
    trace = torch.einsum("bkij,blij->bkl", top.rotation, top.rotation)
    near = trace > 1 + 2 * math.cos(math.radians(apart_deg))
    # Rank: those that are free come first, in their order; those near to a taken one follow, in theirs.
    free = torch.ones(b, m, dtype=torch.bool, device=trace.device)
    taken = torch.zeros_like(free)
    order = torch.arange(m, device=trace.device).expand(b, m)
    places = []
    for _ in range(min(count, m)):
        rank = torch.where(taken, 3 * m, torch.where(free, order, order + m))
        at = rank.argmin(1)
        places.append(at)
        taken.scatter_(1, at[:, None], True)
        free &= ~near.gather(1, at[:, None, None].expand(b, 1, m))[:, 0]
    index = torch.stack(places, 1)
    return top.at(index)


@torch.no_grad()
def refine_proposals(
    encoder: PoseEncoder,
    images: TrainingImages,
    rows: Int[Tensor, "n"],
    half: Complex[Tensor, "p p h"],
    *,
    radius: float,
    shift_sd_px: float,
    most: int = 8,
    carried: int = 2,
) -> Located:
    """Poses of some images from the encoder's hypotheses, each refined at low frequencies, the best ones at all.

    Parameters
    ----------
    rows
        Places in `images`.
    half
        Transform of the map on a lattice twice as fine as a Fourier pixel.
    radius
        Frequencies used, Fourier pixels.
    shift_sd_px
        Spread of the shifts, pixels of the stack; shifts of the result are in these as well.
    most
        Hypotheses per image that are refined.
    carried
        How many of them are refined at all frequencies.
    """
    encoder.eval()
    found = []
    for part in rows.split(64):
        whole = encoder(images.inputs[part])
        data = disk_of(images.batch(part, half_disk(radius)), images.small.observed.box)
        top = whole.top(most)
        stages = low_then_all(radius, most=most, carried=carried)
        shift = top.shift_px * images.pixels_per_pixel
        best = refine_hypotheses(data, half, top.rotation, shift, stages=stages, shift_sd_px=shift_sd_px)
        found.append(replace(best, entropy=entropy_of(whole.logits)))
    return Located(*(torch.cat([getattr(f, name) for f in found]) for name in Located.__dataclass_fields__))


def refine_hypotheses(
    data: DiskData,
    half: Complex[Tensor, "p p h"],
    rotation: Float[Tensor, "b k 3 3"],
    shift_px: Float[Tensor, "b k 2"],
    *,
    stages: Sequence[Stage],
    shift_sd_px: float,
) -> Located:
    """The likeliest of several poses per image after refinement, stage by stage; shifts in pixels of `data.box`.

    `entropy` of the result is that of the hypotheses' likelihoods at the last stage, against all being equal.
    """
    at = torch.arange(rotation.shape[1]).expand(rotation.shape[:2])
    tried: RefinedPoses | None = None
    for stage in stages:
        b, m = len(at), min(stage.kept, rotation.shape[1])
        if tried is not None:
            at = tried.log_likelihood.view(b, -1).topk(m, 1).indices
            rotation, shift_px = tried.rotation.view(b, -1, 3, 3), tried.shift_px.view(b, -1, 2)
        at = at[:, :m]
        rotation = rotation.gather(1, at[..., None, None].expand(b, m, 3, 3))
        shift_px = shift_px.gather(1, at[..., None].expand(b, m, 2))
        tried = refine_poses(
            _repeated(data.within(stage.radius), m),
            half,
            rotation.flatten(0, 1).contiguous(),
            shift_px.flatten(0, 1).contiguous(),
            iterations=stage.iterations,
            shift_sd_px=shift_sd_px,
        )
        rotation, shift_px = tried.rotation.view(b, m, 3, 3), tried.shift_px.view(b, m, 2)
    assert tried is not None
    return _best_of(tried, *rotation.shape[:2])


def _repeated(data: DiskData, k: int) -> DiskData:
    return DiskData(
        data.transform.repeat_interleave(k, 0), data.ctf.repeat_interleave(k, 0), data.points, data.box
    )


def _best_of(tried: RefinedPoses, b: int, m: int) -> Located:
    likelihood = tried.log_likelihood.view(b, m)
    rotation, every, best = tried.rotation.view(b, m, 3, 3), torch.arange(b), likelihood.argmax(1)
    trace = (rotation * rotation[every, best][:, None]).sum((2, 3))
    other = trace < 1 + 2 * math.cos(math.radians(MODE_APART_DEG / 2))
    share = torch.softmax(likelihood, 1)
    return Located(
        rotation[every, best],
        tried.shift_px.view(b, m, 2)[every, best],
        likelihood[every, best],
        1 - (share * other).sum(1),
        entropy_of(likelihood),
        *(
            getattr(tried, name).view(b, m)[every, best]
            for name in ("explained", "deviation", "angle_sd_deg")
        ),
    )
