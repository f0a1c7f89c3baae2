"""From an encoder's hypotheses to poses: the most probable ones are refined by likelihood, and the likeliest kept."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.inference.amortised_data import ImageBatch, TrainingImages
from cryorbit.inference.locate import MODE_APART_DEG, Located
from cryorbit.inference.refine import DiskData, RefinedPoses, half_disk, refine_poses
from cryorbit.models.pose_encoder import PoseEncoder


def disk_of(batch: ImageBatch, box: int) -> DiskData:
    """The same data for `refine_poses`, with shifts in pixels of a box of that many over the same field of view."""
    return DiskData(batch.transform, batch.ctf, batch.points, box)


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
        Transform of the map on twice as many lattice points as the images have pixels.
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
    found = [
        _one_block(encoder, images, part, half, radius, shift_sd_px, most, carried) for part in rows.split(64)
    ]
    return Located(*(torch.cat([getattr(f, name) for f in found]) for name in Located.__dataclass_fields__))


def _one_block(
    encoder: PoseEncoder,
    images: TrainingImages,
    rows: Tensor,
    half: Tensor,
    radius: float,
    sd: float,
    most: int,
    carried: int,
) -> Located:
    whole = encoder(images.inputs[rows])
    log_p = whole.logits.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1) - math.log(log_p.shape[1])
    top = whole.top(most)
    b, k = top.logits.shape
    data = disk_of(images.batch(rows, half_disk(radius)), images.small.observed.box)
    shift = top.shift_px * images.pixels_per_pixel
    low = data.within(0.6 * radius)
    first = refine_poses(
        _repeated(low, k),
        half,
        top.rotation.flatten(0, 1).contiguous(),
        shift.flatten(0, 1).contiguous(),
        iterations=3,
        shift_sd_px=sd,
    )
    at = first.log_likelihood.view(b, k).topk(min(carried, k), 1).indices
    m = at.shape[1]
    rotation = first.rotation.view(b, k, 3, 3).gather(1, at[..., None, None].expand(b, m, 3, 3))
    moved = first.shift_px.view(b, k, 2).gather(1, at[..., None].expand(b, m, 2))
    last = refine_poses(
        _repeated(data, m),
        half,
        rotation.flatten(0, 1),
        moved.flatten(0, 1),
        iterations=3,
        shift_sd_px=sd,
    )
    return _best_of(last, b, m, entropy)


def _repeated(data: DiskData, k: int) -> DiskData:
    return DiskData(
        data.transform.repeat_interleave(k, 0), data.ctf.repeat_interleave(k, 0), data.points, data.box
    )


def _best_of(tried: RefinedPoses, b: int, m: int, entropy: Float[Tensor, "n"]) -> Located:
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
        entropy,
        tried.explained.view(b, m)[every, best],
    )
