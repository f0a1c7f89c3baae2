"""Losses of amortised inference: which of an image's pose hypotheses are compared with it, and which are moved.

Every loss is the misfit of some hypotheses of an image, weighted by numbers without gradient:

- l2: one hypothesis, weight 1.
- sym: the prediction for the image and the one for the image turned by 180 degrees, turned back; the better one.
- mirror: the same with the reflected image.
- softmin: all hypotheses of the encoder, weights softmin(misfit / temperature); the logits learn these weights.

Predictions for moved images are carried back by the group (`geometry.groups`: rho(g)^-1 R, g^-1 t), so that the decoder is
always compared with the image as it is. That is the published symmetric loss, since moving image and slice alike leaves
their distance, and spares moving the CTF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.geometry.groups import act_on_images, act_on_rotation, act_on_shift, inverse_table
from cryorbit.inference.amortised_data import Dream, with_hypotheses
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction
from cryorbit.models.so3_losses import exact_nll

LossName = Literal["l2", "sym", "mirror", "softmin"]

MANY = 256
"""Hypotheses of an image that are compared with it one by one; of more, as a grid has, only the likeliest."""
TURN, REFLECTION = 2, 4
"""Elements of D4: the turn by 180 degrees, and y -> -y."""


def predict(encoder: PoseEncoder, images: Float[Tensor, "b h h"], loss: LossName) -> PosePrediction:
    """All hypotheses that the loss compares: for sym and mirror also those of the moved images, carried back."""
    if loss not in ("sym", "mirror"):
        return encoder(images)
    element = TURN if loss == "sym" else REFLECTION
    both = encoder(torch.cat((images, act_on_images(images, element))))
    b = len(images)
    plain = PosePrediction(both.rotation[:b], both.logits[:b], both.shift_px[:b], both.cell_fraction)
    moved = PosePrediction(both.rotation[b:], both.logits[b:], both.shift_px[b:], both.cell_fraction)
    return with_hypotheses(plain, carried_back(moved, element, box=encoder.box))


def shortlist(
    prediction: PosePrediction, *, most: int = 24, strays: int = 8, generator: torch.Generator | None = None
) -> PosePrediction:
    """The `most` likeliest hypotheses and some others at random, of which an image is compared with; all, if there are few.

    The strays are what a grid, whose cells do not move, is corrected by where it has ruled out the right one.
    """
    k = prediction.logits.shape[1]
    if k <= MANY:
        return prediction
    top = prediction.logits.detach().topk(most, 1).indices
    other = torch.randint(k, (len(top), strays), generator=generator).to(top.device)
    return prediction.at(torch.cat((top, other), 1))


def carried_back(moved: PosePrediction, element: int, *, box: int) -> PosePrediction:
    """Poses of the images as they are, from poses of the images moved by an element of D4."""
    inverse = int(inverse_table()[element])
    return PosePrediction(
        act_on_rotation(moved.rotation, inverse),
        moved.logits,
        act_on_shift(moved.shift_px, inverse, box=box),
        moved.cell_fraction,
    )


@dataclass(frozen=True, eq=False)
class Chosen:
    """The hypotheses of each image that get a gradient, and with what weight; weights of an image sum to 1."""

    index: Int[Tensor, "b m"]
    weight: Float[Tensor, "b m"]

    def of(self, prediction: PosePrediction) -> PosePrediction:
        """The chosen hypotheses."""
        return prediction.at(self.index)


def softmin_weights(misfits: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, "b k"]:
    """softmax(-misfit / temperature), the winner alone for temperature 0. No gradient."""
    misfits = misfits.detach()
    if temperature <= 0:
        return F.one_hot(misfits.argmin(1), misfits.shape[1]).to(misfits)
    return torch.softmax(-misfits / temperature, 1)


def choose(
    misfits: Float[Tensor, "b k"],
    loss: LossName,
    *,
    temperature: float = 0.0,
    most: int = 2,
    relaxed: float = 0.05,
    generator: torch.Generator | None = None,
) -> Chosen:
    """Which hypotheses of each image are moved.

    Parameters
    ----------
    misfits
        Of all hypotheses.
    most
        Winners at most, for softmin.
    relaxed
        Weight of one further hypothesis drawn at random, for softmin: it keeps those that never win from being left
        behind (relaxed winner-takes-all).
    """
    if loss != "softmin" or misfits.shape[1] == 1:
        at = misfits.argmin(1, keepdim=True)
        return Chosen(at, torch.ones_like(at, dtype=misfits.dtype))
    weight, at = softmin_weights(misfits, temperature).topk(min(most, misfits.shape[1]), 1)
    weight = weight / weight.sum(1, keepdim=True)
    if relaxed <= 0:
        return Chosen(at, weight)
    extra = torch.randint(misfits.shape[1], (len(misfits), 1), generator=generator).to(at.device)
    weight = torch.cat(((1 - relaxed) * weight, torch.full_like(weight[:, :1], relaxed)), 1)
    return Chosen(torch.cat((at, extra), 1), weight)


def logit_loss(logits: Float[Tensor, "b k"], weights: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Cross-entropy of the hypotheses' probabilities to the softmin weights, nats, mean over images."""
    return -(weights.detach() * logits.log_softmax(1)).sum(1).mean()


def _mean(each: Float[Tensor, "b"], weight: Float[Tensor, "b"] | None) -> Float[Tensor, ""]:
    return each.mean() if weight is None else (each * weight).sum() / weight.sum().clamp_min(1e-12)


def distillation_loss(
    prediction: PosePrediction,
    rotation: Float[Tensor, "b 3 3"],
    shift_px: Float[Tensor, "b 2"],
    *,
    weight: Float[Tensor, "b"] | None = None,
    spread: float = 0.3,
) -> Float[Tensor, ""]:
    """Negative log-likelihood of a known pose under the hypotheses, nats, mean over images (weighted if asked).

    Each hypothesis is a bump exp(-|R_k - R|^2 / 2 spread^2 - |t_k - t|^2 / 2): the nearest are pulled, and their logits
    raised, in the proportion in which they are responsible.
    """
    apart = (prediction.rotation - rotation[:, None]).square().sum((-2, -1)) / (2 * spread**2)
    moved = (prediction.shift_px - shift_px[:, None]).square().sum(-1) / 2
    each = -torch.logsumexp(prediction.logits.log_softmax(1) - apart - moved, 1)
    return _mean(each, weight)


def pose_nll(
    encoder: PoseEncoder,
    prediction: PosePrediction,
    rotation: Float[Tensor, "b 3 3"],
    shift_px: Float[Tensor, "b 2"],
    *,
    weight: Float[Tensor, "b"] | None = None,
    spread: float = 0.3,
) -> Float[Tensor, ""]:
    """Negative log-likelihood of known poses under an encoder's prediction, nats, mean over images (weighted if asked).

    Hypotheses are a mixture of bumps (`distillation_loss`). A grid is read at the exact rotation (`exact_nll`), and its
    one shift per image costs half its squared error in pixels.
    """
    order: int | None = getattr(encoder.settings, "order", None)
    if order is None:
        return distillation_loss(prediction, rotation, shift_px, weight=weight, spread=spread)
    each = exact_nll(prediction.logits, rotation, grid=prediction.rotation[0], order=order)
    each = each + 0.5 * (prediction.shift_px[:, 0] - shift_px).square().sum(1)
    return _mean(each, weight)


def pose_loss(encoder: PoseEncoder, dream: Dream, *, spread: float) -> Float[Tensor, ""]:
    """`pose_nll` of images made at known poses."""
    return pose_nll(encoder, encoder(dream.images), dream.rotation, dream.shift_px, spread=spread)
