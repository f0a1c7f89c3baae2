"""Priors on motions: neighbours keep their distance, move alike, and do not run into one another.

All three are functions of positions in which a rigid motion of the whole molecule changes nothing (smoothness: a shift).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor


def neighbour_pairs(position: Float[Tensor, "n 3"], *, neighbours: int = 8) -> Int[Tensor, "p 2"]:
    """Each point with its nearest neighbours, every pair once."""
    count = min(neighbours + 1, len(position))
    _, near = KDTree(position.detach().double().numpy()).query(position.detach().double().numpy(), k=count)
    near = torch.from_numpy(near).reshape(len(position), -1)
    first = torch.arange(len(position))[:, None].expand_as(near)
    pairs = torch.stack((first, near), -1).reshape(-1, 2).sort(1).values
    return pairs[pairs[:, 0] < pairs[:, 1]].unique(dim=0)


def pair_lengths(position: Float[Tensor, "*b n 3"], pairs: Int[Tensor, "p 2"]) -> Float[Tensor, "*b p"]:
    """Distance of the two points of each pair."""
    apart = position.index_select(-2, pairs[:, 0]) - position.index_select(-2, pairs[:, 1])
    # A root has no slope at zero: the small number keeps the gradient finite where two points meet.
    return (apart.square().sum(-1) + 1e-12).sqrt()


def elastic_energy(
    position: Float[Tensor, "b n 3"],
    rest: Float[Tensor, "p"],
    pairs: Int[Tensor, "p 2"],
    *,
    released: float = 0.05,
) -> Float[Tensor, ""]:
    """Sum over pairs of (length - rest)^2, mean over the batch; 0 for any rigid motion.

    Parameters
    ----------
    released
        Share of the pairs that do not count: those whose length varies most over the batch, where a hinge may be
        (as in cryoSTAR, Li et al. 2024).
    """
    change = (pair_lengths(position, pairs) - rest).square().mean(0)
    if released > 0 and len(change) > 1:
        kept = max(1, round(len(change) * (1 - released)))
        change = change.topk(kept, largest=False).values
    return change.sum()


def smoothness(displacement: Float[Tensor, "b n 3"], pairs: Int[Tensor, "p 2"]) -> Float[Tensor, ""]:
    """Sum over pairs of |u_i - u_j|^2, mean over the batch; 0 for any common shift."""
    apart = displacement.index_select(-2, pairs[:, 0]) - displacement.index_select(-2, pairs[:, 1])
    return apart.square().sum((-2, -1)).mean()


def clash_energy(
    position: Float[Tensor, "b n 3"], pairs: Int[Tensor, "p 2"], *, least: float
) -> Float[Tensor, ""]:
    """Sum over pairs of max(0, least - length)^2, mean over the batch; 0 where none is nearer than `least`."""
    return (least - pair_lengths(position, pairs)).clamp_min(0).square().sum(-1).mean()


def without_rigid_motion(
    displacement: Float[Tensor, "b n 3"], position: Float[Tensor, "n 3"], weight: Float[Tensor, "n"]
) -> Float[Tensor, "b n 3"]:
    """Displacements less their weighted mean shift and least-squares small turn about the weighted centre.

    What is taken out is what poses can do as well; without it poses and motion may exchange it for ever (a gauge). To first
    order in the turn: u - t - w x (x - c), with w the solution of the inertia tensor's linear system.
    """
    share = weight / weight.sum()
    arm = position - share @ position
    shift = torch.einsum("n,bni->bi", share, displacement)
    left = displacement - shift[:, None]
    inertia = torch.einsum("n,ni,nj->ij", share, arm, arm)
    inertia = torch.eye(3).to(inertia) * inertia.trace() - inertia
    spin = torch.einsum("n,bni->bi", share, torch.linalg.cross(arm.expand_as(left), left))
    turn = torch.linalg.solve(inertia + 1e-9 * inertia.trace() * torch.eye(3).to(inertia), spin.mT).mT
    return left - torch.linalg.cross(turn[:, None].expand_as(left), arm.expand_as(left))
