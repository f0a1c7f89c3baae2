"""Atoms carried along by Gaussians that move."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from cryorbit.data import Gaussians
from cryorbit.errors import BadInput
from cryorbit.geometry.superpose import kabsch

_CHUNK = 20_000
"""Atoms handled at a time."""


def carry_points(
    points_A: Float[Tensor, "p 3"],
    anchors: Gaussians,
    moved_A: Float[Tensor, "m n 3"],
    *,
    neighbours: int = 32,
) -> Float[Tensor, "m p 3"]:
    """Points moved as the Gaussians around them: m conformations of p atoms.

    Each point takes the rotation and shift that best carry its nearest anchors to their new places, least squares with the
    weight amplitude exp(-d^2 / 2 h^2), h half the distance of the farthest of them. A rigid motion of all Gaussians moves
    all points by the same motion, exactly; between parts that move apart the motion changes over a distance of h.

    Parameters
    ----------
    points_A
        Atoms, in the anchors' frame, where they belong when the Gaussians are at the anchors.
    anchors
        One conformation of the Gaussians, with positive amplitudes.
    moved_A
        Positions of the same Gaussians in m conformations.
    neighbours
        How many anchors move a point: fewer follow detail, more even out noise.

    Raises
    ------
    BadInput
        If there are fewer than four Gaussians, or not the same ones in `moved_A`.
    """
    n = len(anchors)
    if anchors.conformations is not None or n < 4 or moved_A.shape[-2] != n:
        raise BadInput(
            f"carry_points: {n} anchors and moved positions {tuple(moved_A.shape)}. Give one conformation of at least four "
            "Gaussians as anchors, and the same Gaussians moved."
        )
    place = anchors.position_A.detach().double().cpu()
    amplitude = anchors.amplitude.detach().double().cpu().clamp_min(0)
    target = moved_A.detach().double().cpu()
    points = points_A.detach().double().cpu()
    distance, index = KDTree(place.numpy()).query(points.numpy(), k=min(neighbours, n))
    near, apart = torch.from_numpy(index).long(), torch.from_numpy(distance)
    width = 0.5 * apart[:, -1:].clamp_min(1e-9)
    # Relative to the nearest, so that a point far from all Gaussians does not lose them to underflow.
    closeness = torch.exp(-0.5 * (apart.square() - apart[:, :1].square()) / width.square())
    weight = closeness * (amplitude[near] + 1e-6 * amplitude.mean().clamp_min(1e-30))
    carried = torch.empty(len(target), len(points), 3, dtype=points.dtype)
    for rows in torch.arange(len(points)).split(_CHUNK):
        start, pull = place[near[rows]], weight[rows]
        for frame, there in enumerate(target):
            fit = kabsch(start, there[near[rows]], weight=pull)
            carried[frame, rows] = fit.apply(points[rows][:, None])[:, 0]
    return carried.to(points_A)


def share_inside(points_A: Float[Tensor, "p 3"], gaussians: Gaussians, *, within: float = 2.5) -> float:
    """Share of points that lie within so many standard deviations of a Gaussian: whether a model sits in its map."""
    place = gaussians.position_A.detach().double().cpu().numpy()
    distance, index = KDTree(place).query(points_A.detach().double().cpu().numpy())
    width = gaussians.width_A.detach().double().cpu()
    width = width if gaussians.isotropic else torch.linalg.svdvals(width).mean(-1)
    reach = within * width[torch.from_numpy(index).long()]
    return float((torch.from_numpy(distance) <= reach).double().mean())
