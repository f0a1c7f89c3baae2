"""Losses and scores of distributions over rotations on the nested grid of `geometry.so3_grid`.

Order o has 72 * 8^o cells of equal volume. A density that is constant in each cell gives the negative log-likelihood in
nats per cell, -log p(cell of the truth), log(number of cells) for the uniform one; `exact_nll` reads the same density
between the centres, so that a truth near a border is not pulled to a centre.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryorbit.geometry.conventions import view_rotation
from cryorbit.geometry.so3_grid import (
    direction_to_pixel,
    n_in_plane,
    n_pixels,
    pixel_to_direction,
    spacing_deg,
)


def n_cells(order: int) -> int:
    """Cells of the grid on the rotations: 72 * 8^order.

    >>> n_cells(2)
    4608
    """
    return n_pixels(order) * n_in_plane(order)


def cell_of(rotation: Float[Tensor, "*batch 3 3"], *, order: int) -> Int[Tensor, "*batch"]:
    """Which cell, numbered as `so3_grid(order).reshape(-1, 3, 3)`, holds each rotation.

    Cells nest: the cell at `order` of a rotation is the parent of its cell at order + 1.
    """
    direction = rotation[..., 2, :].double()
    pixel = direction_to_pixel(direction, order=order)
    start = pixel_to_direction(pixel // 4**order, order=0)
    # The frame that `so3_grid.direction_frame` has at the centres, here at the direction itself.
    base = view_rotation(start)
    axis = torch.linalg.cross(start, direction)[..., None, :].expand_as(base)
    once = torch.linalg.cross(axis, base)
    twice = torch.linalg.cross(axis, once)
    frame = base + once + twice / (1 + (start * direction).sum(-1))[..., None, None]
    turn = rotation.double() @ frame.mT  # in_plane_rotation(psi)
    psi = torch.atan2(turn[..., 0, 1] - turn[..., 1, 0], turn[..., 0, 0] + turn[..., 1, 1])
    n = n_in_plane(order)
    place = torch.remainder(psi, 2 * math.pi) * (n / (2 * math.pi))
    return pixel * n + place.long().clamp(max=n - 1)


def parents(logits: Float[Tensor, "b fine"], *, order: int, levels: int = 1) -> Float[Tensor, "b cells"]:
    """Log probability of the cells of `order` - `levels` from that of the cells of `order`: log-sum-exp over each."""
    k, h, angles = 4**levels, 2**levels, n_in_plane(order)
    split = logits.reshape(logits.shape[0], -1, k, angles // h, h)
    return split.permute(0, 1, 3, 2, 4).flatten(3).logsumexp(3).flatten(1)


def cell_nll(logits: Float[Tensor, "b cells"], cell: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """-log p of the cell that holds the truth, nats."""
    return torch.logsumexp(logits, 1) - logits.gather(1, cell[:, None])[:, 0]


def exact_nll(
    logits: Float[Tensor, "b cells"],
    rotation: Float[Tensor, "b 3 3"],
    *,
    grid: Float[Tensor, "cells 3 3"],
    order: int,
    neighbours: int = 8,
    group: Float[Tensor, "g 3 3"] | None = None,
) -> Float[Tensor, "b"]:
    """-[f(R) - logsumexp f], nats per cell, with f read at the exact rotation.

    f(R) is the mean of f over the nearest centres with Gaussian weights of half a spacing. Interpolating f, not the
    density: the likelihood of a mixture of neighbours is largest for spikes that deconvolve the kernel.

    Parameters
    ----------
    group
        Rotations g of the map's symmetry: the truth is R g for an unknown g, and the loss is that of their mixture.
    """
    batch = rotation.shape[0]
    truth = rotation[:, None] if group is None else rotation[:, None] @ group.to(rotation)
    cosine = truth.reshape(-1, 9) @ grid.reshape(-1, 9).to(rotation).mT  # 1 + 2 cos(angle)
    top, at = cosine.topk(neighbours, dim=1)
    width = math.radians(spacing_deg(order)) / 2
    weight = torch.softmax(-(3 - top) / 2 / width**2, 1)  # 1 - cos(angle) = (3 - trace) / 2
    value = logits.gather(1, at.view(batch, -1)).view(at.shape)
    copies = (weight * value).sum(1).view(batch, -1)
    at_truth = torch.logsumexp(copies, 1) - math.log(copies.shape[1])
    return torch.logsumexp(logits, 1) - at_truth


def distillation_kl(
    teacher: Float[Tensor, "b cells"], student: Float[Tensor, "b cells"]
) -> Float[Tensor, "b"]:
    """KL(teacher || student) of two sets of logits on the same cells, nats; no gradient to the teacher."""
    log_p = teacher.detach().log_softmax(1)
    return (log_p.exp() * (log_p - student.log_softmax(1))).sum(1)


def entropy_nats(logits: Float[Tensor, "b cells"]) -> Float[Tensor, "b"]:
    """Of the distribution over cells: log(number of cells) when nothing is known."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def covered(
    logits: Float[Tensor, "b cells"], cell: Int[Tensor, "b"], *, level: float = 0.95
) -> Bool[Tensor, "b"]:
    """Whether the credible set, the most probable cells up to `level` of the mass, contains the truth's cell."""
    probability = logits.softmax(1)
    of_truth = probability.gather(1, cell[:, None])
    above = torch.where(probability > of_truth, probability, 0.0).sum(1)
    return above < level
