"""The posterior of `search`, image by image and block of views by block of views.

The work is bound by memory: a million scores per image are written and read several times. Taken in tiles of half a
megabyte, on work space that is used again and again, all of it stays in the cache of one core. A first look finds the
highest score of every view; as a rule few views come near the best, and only those are looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.inference.desk import Desk
from cryorbit.inference.search import (
    FLOOR,
    Posterior,
    RingData,
    SearchPlan,
    SliceSums,
    Templates,
    accumulate,
    image_rows,
    norm_harmonics,
)

TILE_SCORES = 120_000
"""Scores of one tile; with what they are made from, some 1.5 MB."""
IMAGES_AT_ONCE = 8
"""Images that each block of templates is held against while it is in cache."""
HOPELESS = 30.0
"""A view whose best log-likelihood is this far below another pose's has no share in the posterior: even a million
such poses add 1e-7 of it, which is round-off."""
FEW = 0.5
"""Up to this part of all views near the best, those are looked at again; with more, weights are made at once."""
NO_SHARE = 1e-5
"""Blocks with less of the posterior do not enter the sums."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """Templates in blocks of views, each stored on its own."""

    blocks: tuple[Templates, ...]

    @classmethod
    def of(cls, templates: Templates, plan: SearchPlan) -> Tiles:
        """Blocks whose scores of one image fill a tile; whole vector registers of views."""
        views = max(1, round(TILE_SCORES / (plan.n_psi * plan.n_shifts * 16))) * 16
        return cls(tuple(templates.views(at, at + views) for at in range(0, templates.n_views, views)))

    @cached_property
    def starts(self) -> list[int]:
        """Number of the first view of each block, and that of all views."""
        out = [0]
        for block in self.blocks:
            out.append(out[-1] + block.n_views)
        return out

    @cached_property
    def n_views(self) -> int:
        """Views of all blocks."""
        return self.starts[-1]

    @cached_property
    def n_angles(self) -> int:
        """Angles on a ring."""
        return self.blocks[0].grid.n_angles

    def part(self, number: int) -> slice:
        """The views of a block."""
        return slice(self.starts[number], self.starts[number + 1])

    @cached_property
    def whole(self) -> Templates:
        """All blocks as one; in memory the matrices are (v, m, r2)."""
        first = self.blocks[0]
        return Templates(
            first.grid,
            first.order,
            torch.cat([b.matrix.permute(2, 0, 1) for b in self.blocks]).permute(1, 2, 0),
            torch.cat([b.power for b in self.blocks]),
            torch.cat([b.power_harmonics for b in self.blocks], -1),
        )

    def norm(self, data: RingData, plan: SearchPlan) -> list[Float[Tensor, "..."]]:
        """What norm term and prior add to the products: (b, s, v) at order 0, then (2, b, 1, v) at orders 2, 4, .."""
        norm = norm_harmonics(data, self.whole)
        prior = plan.log_prior_shift[:, None] * self.n_angles
        return [norm[0, 0][:, None, :] + prior, *(term[:, :, None, :] for term in norm[1:])]

    def empty_sums(self) -> list[SliceSums]:
        """Sums to be added to, one per block."""
        return [SliceSums.zeros(b) for b in self.blocks]


class _Share(NamedTuple):
    """Of one image, some poses: exp(score - reference), the sum of it, and its sum times the logarithm."""

    reference: float
    total: float
    energy: float
    weight: Tensor | None
    """None unless the image enters sums."""
    block: int | None
    views: Int[Tensor, "k"] | None
    """If not those of one block."""


class _Found(NamedTuple):
    """Of one image: what has a share in its posterior, the highest score, the flat index (psi, s, v) of the best pose."""

    shares: list[_Share]
    top: float
    best: int


class _Search:
    """Settings and work space of `search_tiles`."""

    def __init__(self, plan: SearchPlan, tiles: Tiles, like: Tensor, *, keep: bool) -> None:
        self.plan, self.tiles, self.keep = plan, tiles, keep
        self.desks = {v: Desk(like, plan, v) for v in {b.n_views for b in tiles.blocks}}
        self.highest = like.new_empty(IMAGES_AT_ONCE, tiles.n_views)
        self.many: bool | None = None
        """Whether the images before had many views near the best."""

    def images(self, rows: Float[Tensor, "b m s2 r2"], norm: list[Tensor]) -> Iterator[_Found]:
        """Search some images; results are to be used one by one."""
        images = list(
            zip(rows, zip(*(term.unbind(-3) for term in norm), strict=True), self.highest, strict=False)
        )
        look = self._at_once
        if not self.many:
            self._first_look(images)
            look = self._again
        near = 0
        for own, terms, highest in images:
            found = look(own, terms, highest)
            near += int((highest > found.top - HOPELESS).sum())
            yield found
        self.many = near > FEW * self.tiles.n_views * len(images)

    def _first_look(self, images: list[tuple[Tensor, tuple[Tensor, ...], Tensor]]) -> None:
        """The highest score of every view, for images whose rows and norm terms are given."""
        sizes = [b.n_views for b in self.tiles.blocks]
        parts = [[t.split(sizes, -1) for t in (*terms, highest)] for _, terms, highest in images]
        for number, block in enumerate(self.tiles.blocks):
            desk = self.desks[block.n_views]
            for (rows, _, _), part in zip(images, parts, strict=True):
                *norm, out = (p[number] for p in part)
                desk.highest(rows, block, self.plan, norm, out)

    def _again(self, rows: Tensor, norm: Sequence[Tensor], highest: Float[Tensor, "v"]) -> _Found:
        """Scores of those views whose highest ones are near the best."""
        plan, n_even = self.plan, self.plan.even.shape[1]
        top = float(highest.max())
        views = torch.nonzero(highest > top - HOPELESS)[:, 0]
        k = len(views)
        if not 0 < k <= FEW * self.tiles.n_views:
            return self._at_once(rows, norm, highest)
        matrix = self.tiles.whole.matrix.permute(2, 0, 1).index_select(0, views).permute(1, 2, 0)
        product = torch.bmm(rows, matrix).view(-1, 2, plan.n_shifts, k)
        for e, term in enumerate(norm):
            (product[e] if e else product[0, 0]).add_(term[..., views])
        product[0, 0].sub_(top * self.tiles.n_angles)
        flat = product.view(-1, plan.n_shifts * k)
        even, odd = plan.even @ flat[:n_even], plan.odd @ flat[n_even:]
        scores = torch.cat((even + odd, even - odd))
        view = int(highest[views].argmax())
        above, pose = scores.view(-1, k)[:, view].max(0)
        best = int(pose) * self.tiles.n_views + int(views[view])
        peak = top + float(above)  # round-off: the same scores by products of another shape
        return _Found([self._share(scores.view(-1), None, top, views=views)], peak, best)

    def _at_once(self, rows: Tensor, norm: Sequence[Tensor], highest: Float[Tensor, "v"]) -> _Found:
        """For images with many views near the best: weights are made while the scores of a block are in cache."""
        shares: list[_Share] = []
        top, best, reference = -math.inf, 0, 0.0
        for number, block in enumerate(self.tiles.blocks):
            own, desk = self.tiles.part(number), self.desks[block.n_views]
            terms = [term[..., own] for term in norm]
            if reference:
                terms[0] = terms[0] - reference * self.tiles.n_angles
            of_view = highest[own]
            desk.all_scores(rows, block, self.plan, terms, of_view)
            peak = float(of_view.max())
            if peak + reference > top:
                top, view = peak + reference, int(of_view.argmax())
                pose = int(desk.by_view[:, view].argmax())
                best = pose * self.tiles.n_views + own.start + view
            of_view.add_(reference)
            if peak + reference < top - HOPELESS:
                continue
            # Exponentials up to e^30 over the reference are as good as those up to 1.
            if not shares or peak > 30:
                desk.scores.sub_(peak)
                reference += peak
            shares.append(self._share(desk.scores, desk.weight, reference, block=number))
        return _Found(shares, top, best)

    def _share(
        self,
        scores: Tensor,
        room: Tensor | None,
        reference: float,
        *,
        block: int | None = None,
        views: Int[Tensor, "k"] | None = None,
    ) -> _Share:
        weight = torch.exp(scores.clamp_(min=FLOOR), out=None if self.keep else room)
        total, energy = float(weight.sum()), float(torch.dot(weight, scores))
        return _Share(reference, total, energy, weight if self.keep else None, block, views)


def search_tiles(
    data: RingData, plan: SearchPlan, tiles: Tiles, *, sums: list[SliceSums] | None = None
) -> Posterior:
    """What `normalise(score(...))` gives over all views, without the probabilities themselves.

    Parameters
    ----------
    sums
        From `Tiles.empty_sums`, if the images are to be added to them by their posterior (`accumulate`).
    """
    found: list[tuple[float, float, float, int]] = []
    search = _Search(plan, tiles, plan.even, keep=sums is not None)
    # The first image alone tells what the others are like.
    for at in (0, *range(1, len(data), IMAGES_AT_ONCE)) if len(data) else ():
        part = data[at : at + (IMAGES_AT_ONCE if at else 1)]
        rows = image_rows(part, plan)
        results = search.images(rows, tiles.norm(part, plan))
        for i, result in enumerate(results):
            merged = _merge(result)
            found.append((*merged, result.best))
            if sums is not None:
                _add(sums, tiles, result, merged, part[i : i + 1], rows[i], plan)
    peak, total, energy = (torch.tensor([f[j] for f in found], dtype=torch.float64) for j in range(3))
    log_total = total.log()
    return Posterior(
        data.ctf_power.new_zeros(plan.n_psi, len(data), plan.n_shifts, 0),
        (peak + log_total - math.log(plan.n_psi * tiles.n_views)).float(),
        torch.tensor([f[3] for f in found], dtype=torch.long),
        total.reciprocal().float(),
        (log_total - energy / total).float(),
    )


def _merge(found: _Found) -> tuple[float, float, float]:
    """Highest score, and the sums of all shares relative to it."""
    total = energy = 0.0
    for share in found.shares:
        scale, below = math.exp(share.reference - found.top), share.reference - found.top
        total += scale * share.total
        energy += scale * (share.energy + below * share.total)
    return found.top, total, energy


def _add(
    sums: list[SliceSums],
    tiles: Tiles,
    found: _Found,
    merged: tuple[float, float, float],
    data: RingData,
    rows: Tensor,
    plan: SearchPlan,
) -> None:
    """Add one image to the sums of every block that has a share in its posterior."""
    peak, total, _ = merged
    for share in found.shares:
        factor = math.exp(share.reference - peak) / total
        if share.weight is None or factor * share.total <= NO_SHARE:
            continue
        weight = share.weight.mul_(factor).view(plan.n_psi, 1, plan.n_shifts, -1)
        if share.block is not None:
            accumulate(sums[share.block], weight, data, rows, plan)
        if share.views is not None:
            part = sums[0].of_views(len(share.views))
            accumulate(part, weight, data, rows, plan)
            block = torch.bucketize(share.views, torch.tensor(tiles.starts), right=True) - 1
            for number in block.unique().tolist():
                chosen = torch.nonzero(block == number)[:, 0]
                sums[number].add_views(part, chosen, share.views[chosen] - tiles.starts[number])
