"""Who is whose neighbour in a set of chains of points: along the chain, and in space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryorbit.errors import BadInput

CLIP = 32
"""Distances along a chain are told apart up to here."""


@dataclass(frozen=True, eq=False)
class PointChains:
    """Chains of points; rows may stand in any order, and rows without a point are masked.

    Parameters
    ----------
    mask
        Where there is a point, shape (b, n).
    chain, residue
        Number of its chain and its place in it, integers, shape (b, n). Neighbours along a chain differ by one.
    previous, next
        Rows of these neighbours, shape (b, n); any row where there is none.
    has_previous, has_next
        Whether there is one.
    """

    mask: Bool[Tensor, "b n"]
    chain: Int[Tensor, "b n"]
    residue: Int[Tensor, "b n"]
    previous: Int[Tensor, "b n"]
    next: Int[Tensor, "b n"]
    has_previous: Bool[Tensor, "b n"]
    has_next: Bool[Tensor, "b n"]

    def at_previous(self, values: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Values of the previous point; zero where there is none."""
        return _rows(values, self.previous) * self.has_previous[..., None].to(values)

    def at_next(self, values: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Values of the next point; zero where there is none."""
        return _rows(values, self.next) * self.has_next[..., None].to(values)

    def mean(self, values: Float[Tensor, "b n c"]) -> Float[Tensor, "b c"]:
        """Mean over the points that exist."""
        there = self.mask[..., None].to(values)
        return (values * there).sum(1) / there.sum(1).clamp_min(1)

    def samples(self, chosen: Bool[Tensor, "b"]) -> PointChains:
        """Some samples of the batch."""
        return PointChains(
            self.mask[chosen],
            self.chain[chosen],
            self.residue[chosen],
            self.previous[chosen],
            self.next[chosen],
            self.has_previous[chosen],
            self.has_next[chosen],
        )


def point_chains(
    mask: Bool[Tensor, "b n"], chain: Int[Tensor, "b n"], residue: Int[Tensor, "b n"]
) -> PointChains:
    """Finds the neighbours along the chains.

    Raises
    ------
    BadInput
        If a sample has no point, or two points of a chain share a place.
    """
    if not bool(mask.any(1).all()):
        raise BadInput("point_chains: a sample has no points. Leave it out of the batch.")
    both = mask[:, :, None] & mask[:, None, :] & (chain[:, :, None] == chain[:, None, :])
    step = residue[:, None, :] - residue[:, :, None]
    if bool(((both & (step == 0)).sum(2) > 1).any()):
        raise BadInput(
            "point_chains: two points of a chain have the same residue index. Number them one by one."
        )
    after, before = both & (step == 1), both & (step == -1)
    return PointChains(
        mask, chain, residue, before.int().argmax(2), after.int().argmax(2), before.any(2), after.any(2)
    )


@dataclass(frozen=True, eq=False)
class Edges:
    """Senders of every receiving point.

    Parameters
    ----------
    sender
        Rows of the senders, shape (b, n, k); None: every point sends to every point, k = n.
    there
        Where both exist and differ, shape (b, n, k).
    offset
        Clipped distance along the chain plus `CLIP`, 0 to 2 CLIP; 2 CLIP + 1 between chains.
    """

    sender: Int[Tensor, "b n k"] | None
    there: Bool[Tensor, "b n k"]
    offset: Int[Tensor, "b n k"]

    def of_senders(self, values: Float[Tensor, "b n c"]) -> Tensor:
        """Values of the senders, shape (b, n or 1, k, c)."""
        if self.sender is None:
            return values[:, None]
        b, n, k = self.sender.shape
        return _rows(values, self.sender.reshape(b, n * k)).view(b, n, k, -1)

    def weights(self, near: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """For neighbours up to `near` along the chain 1 / near, for all others one over their number; shape (b, n, k)."""
        close = self.there & ((self.offset - CLIP).abs() <= near) & (self.offset <= 2 * CLIP)
        far = (self.there & ~close).to(like)
        return close.to(like) / near, far / far.sum(-1, keepdim=True).clamp_min(1)


def make_edges(
    x: Float[Tensor, "b n 3"], chains: PointChains, *, neighbours: int | None, along: int = 4
) -> Edges:
    """Edges from every other point (`neighbours` None), or from the nearest ones and those up to `along` on the chain."""
    n, place = x.shape[1], torch.arange(x.shape[1], device=x.device)
    same = chains.chain[:, :, None] == chains.chain[:, None, :]
    step = (chains.residue[:, None, :] - chains.residue[:, :, None]).clamp(-CLIP, CLIP)
    offset = torch.where(same, step + CLIP, 2 * CLIP + 1)
    there = chains.mask[:, :, None] & chains.mask[:, None, :] & (place[:, None] != place)
    if neighbours is None or neighbours >= n:
        return Edges(None, there, offset)
    with torch.no_grad():
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        bonded = same & (step.abs() <= along)
        order = distance.masked_fill(bonded, -1.0).masked_fill(~there, torch.inf)
        sender = order.topk(neighbours, dim=2, largest=False).indices
    return Edges(sender, there.gather(2, sender), offset.gather(2, sender))


def _rows(values: Tensor, row: Tensor) -> Tensor:
    """values[b, row[b, i]] for every sample b."""
    return values.gather(1, row[..., None].expand(-1, -1, values.shape[-1]))
