"""The one orientation of a cloud of points that its own shape decides."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


def principal_rotation(
    points: Float[Tensor, "n 3"], weight: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "3 3"]:
    """The proper rotation after which x, y and z are the axes of falling variance and the cloud leans to their plus sides.

    Of the four proper choices of signs the one with the largest sum of third moments over cubes of standard deviations,
    so that the axis that has to give way for the hand is the one whose lean says least. Turning the points beforehand
    changes nothing of where they end. Clouds with two equal variances, or without any lean, have no such orientation; near
    them a small change of the points turns it far.

    Raises
    ------
    BadInput
        If there are fewer than three points, or the weights are negative or all 0.

    >>> x = torch.tensor([[0.0, 3, 0], [0, -2, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0]])
    >>> (x @ principal_rotation(x).mT)[0].abs().round().tolist()
    [3.0, 0.0, 0.0]
    """
    mass = torch.ones(len(points)).to(points) if weight is None else weight.to(points)
    if len(points) < 3 or not bool((mass >= 0).all()) or not float(mass.sum()) > 0:
        raise BadInput(
            f"principal_rotation: {len(points)} points with weights {tuple(mass.shape)}. Give three or more."
        )
    share = (mass / mass.sum()).double()
    centred = points.double() - (share[:, None] * points.double()).sum(0)
    variance, axes = torch.linalg.eigh((share[:, None] * centred).mT @ centred)
    variance, axes = variance.flip(0), axes.flip(1)
    along = centred @ axes
    lean = (share[:, None] * along**3).sum(0) / variance.clamp_min(1e-300) ** 1.5
    sign = torch.where(lean < 0, -1.0, 1.0).double()
    if float(torch.linalg.det(axes * sign)) < 0:
        sign[lean.abs().argmin()] *= -1
    return (axes * sign).mT.to(points)
