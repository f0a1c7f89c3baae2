"""The posterior of `search`, image by image and block of views by block of views.

The work is bound by memory: a million scores per image are written and read several times. Taken in tiles of half a
megabyte, on work space that is used again and again, all of it stays in the cache of one core; a tile far below the best
pose so far is left as soon as its highest score is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.inference.search import (
    FLOOR,
    Posterior,
    RingData,
    SearchPlan,
    SliceSums,
    Templates,
    accumulate,
    image_matrix,
    norm_harmonics,
)

TILE_SCORES = 120_000
"""Scores of one tile; with what they are made from, some 1.5 MB."""
IMAGES_AT_ONCE = 8
"""Images whose rows and norm terms are made together."""
HOPELESS = 40.0
"""A tile whose best log-likelihood is this far below another pose's has no share in the posterior."""
NO_SHARE = 1e-5
"""Tiles with less of the posterior do not enter the sums."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """Templates in blocks of views, each stored on its own."""

    blocks: tuple[Templates, ...]

    @classmethod
    def of(cls, templates: Templates, plan: SearchPlan) -> Tiles:
        """Blocks whose scores of one image fill a tile; whole vector registers of views."""
        views = max(1, round(TILE_SCORES / (plan.n_psi * plan.n_shifts * 16))) * 16
        return cls(tuple(templates.views(at, at + views) for at in range(0, templates.n_views, views)))

    @property
    def n_views(self) -> int:
        """Views of all blocks."""
        return sum(b.n_views for b in self.blocks)

    def empty_sums(self) -> list[SliceSums]:
        """Sums to be added to, one per block."""
        return [SliceSums.zeros(b) for b in self.blocks]


class _Desk:
    """Work space for the scores of one image and one block, made once.

    The products lie in `store` behind some room, so that the odd half of the series may overwrite the even products,
    which have been used by then, and the weights all of them.
    """

    def __init__(self, rows: Tensor, plan: SearchPlan, n_views: int) -> None:
        m, s, half_psi, n_even = rows.shape[0], plan.n_shifts, plan.n_psi // 2, plan.even.shape[1]
        poses = s * n_views
        room = max(0, half_psi - n_even, plan.n_psi - 2 * m)
        store = rows.new_empty(room + 2 * m, poses)
        products = store[room:]
        self.product = products.view(m, 2 * s, n_views)
        self.by_shift = products.view(m, 2, s, n_views)
        self.even, self.odd = products[:n_even], products[n_even:]
        self.odd_series = store[:half_psi]
        self.weight = store.view(-1)[: plan.n_psi * poses]
        both = rows.new_empty(2, half_psi, poses)
        self.first, self.second = both.unbind()
        self.scores = both.view(-1)
        self.by_angle = both.view(plan.n_psi, poses)

    def score(self, rows: Tensor, block: Templates, plan: SearchPlan, norm: list[Tensor]) -> None:
        """Fill `scores`; `norm` holds what to add to the products of orders 0, 2, .."""
        torch.bmm(rows, block.matrix, out=self.product)
        self.by_shift[0, 0].add_(norm[0])
        for e, term in enumerate(norm[1:], start=1):
            self.by_shift[e].add_(term)
        torch.mm(plan.even, self.even, out=self.second)
        torch.mm(plan.odd, self.odd, out=self.odd_series)
        torch.add(self.second, self.odd_series, out=self.first)
        self.second.sub_(self.odd_series)

    def best(self) -> int:
        """Flat index of the highest score."""
        row = int(self.by_angle.amax(1).argmax())
        return row * self.by_angle.shape[1] + int(self.by_angle[row].argmax())


class _Tile(NamedTuple):
    """Of one image and one block: exp(score - reference), its sum, its sum times the logarithm, the highest score."""

    reference: float
    total: float
    energy: float
    peak: float
    weight: Tensor | None


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
    desks: dict[int, _Desk] = {}
    for at in range(0, len(data), IMAGES_AT_ONCE):
        found += _search(data[at : at + IMAGES_AT_ONCE], plan, tiles, desks, sums)
    peak, total, energy = (torch.tensor([f[j] for f in found], dtype=torch.float64) for j in range(3))
    log_total = total.log()
    return Posterior(
        data.ctf_power.new_zeros(plan.n_psi, len(data), plan.n_shifts, 0),
        (peak + log_total - math.log(plan.n_psi * tiles.n_views)).float(),
        torch.tensor([f[3] for f in found], dtype=torch.long),
        total.reciprocal().float(),
        (log_total - energy / total).float(),
    )


def _search(
    data: RingData, plan: SearchPlan, tiles: Tiles, desks: dict[int, _Desk], sums: list[SliceSums] | None
) -> list[tuple[float, float, float, int]]:
    """Per image: the highest score, the two sums relative to it, the flat index (psi, s, v) of the best pose."""
    rows = image_matrix(data, plan).view(-1, 2, len(data), plan.n_shifts, 2 * data.filtered.shape[1])
    norms = [_norm(data, plan, block) for block in tiles.blocks]
    for v in {b.n_views for b in tiles.blocks} - desks.keys():
        desks[v] = _Desk(rows, plan, v)
    found = []
    for i in range(len(data)):
        own = rows[:, :, i].reshape(rows.shape[0], 2 * plan.n_shifts, -1)
        norm = [[term[..., i, :, :] for term in terms] for terms in norms]
        image, best = _tiles_of_image(own, norm, plan, tiles, desks, keep=sums is not None)
        merged = _merge(image)
        found.append((*merged, best))
        if sums is not None:
            _add(sums, image, merged, data[i : i + 1], own, plan)
    return found


def _norm(data: RingData, plan: SearchPlan, block: Templates) -> list[Float[Tensor, "..."]]:
    """What norm term and prior add to the products: (b, s, v) at order 0, then (2, b, 1, v) at orders 2, 4, .."""
    norm = norm_harmonics(data, block)
    prior = plan.log_prior_shift[:, None] * block.grid.n_angles
    return [norm[0, 0][:, None, :] + prior, *(term[:, :, None, :] for term in norm[1:])]


def _tiles_of_image(
    rows: Tensor,
    norm: list[list[Tensor]],
    plan: SearchPlan,
    tiles: Tiles,
    desks: dict[int, _Desk],
    *,
    keep: bool,
) -> tuple[list[_Tile], int]:
    """All tiles of one image, weights only if they are to be kept, and the flat index (psi, s, v) of the best pose."""
    out: list[_Tile] = []
    top, best, before, reference, every = -math.inf, 0, 0, 0.0, tiles.n_views
    for block, terms in zip(tiles.blocks, norm, strict=True):
        desk, v = desks[block.n_views], block.n_views
        if out:
            terms = [terms[0] - reference * block.grid.n_angles, *terms[1:]]
        desk.score(rows, block, plan, terms)
        peak = float(desk.scores.amax()) + reference
        if peak > top:
            pose, view = divmod(desk.best(), v)
            top, best = peak, pose * every + before + view
        before += v
        if peak < top - HOPELESS:
            out.append(_Tile(reference, 0.0, 0.0, peak, None))
            continue
        # Exponentials up to e^30 over the reference are as good as those up to 1.
        if not out or peak > reference + 30:
            desk.scores.sub_(peak - reference)
            reference = peak
        desk.scores.clamp_(min=FLOOR)
        weight = torch.exp(desk.scores, out=None if keep else desk.weight)
        energy = float(torch.dot(weight, desk.scores))
        out.append(_Tile(reference, float(weight.sum()), energy, peak, weight if keep else None))
    return out, best


def _merge(image: list[_Tile]) -> tuple[float, float, float]:
    """Highest score, and the sums of all tiles relative to it."""
    peak = max(t.peak for t in image)
    scales = [math.exp(t.reference - peak) for t in image]
    total = sum(scale * t.total for scale, t in zip(scales, image, strict=True))
    energy = sum(
        scale * (t.energy + (t.reference - peak) * t.total) for scale, t in zip(scales, image, strict=True)
    )
    return peak, total, energy


def _add(
    sums: list[SliceSums],
    image: list[_Tile],
    merged: tuple[float, float, float],
    data: RingData,
    rows: Tensor,
    plan: SearchPlan,
) -> None:
    """Add one image to the sums of every tile that has a share in its posterior."""
    peak, total, _ = merged
    for tile, own in zip(image, sums, strict=True):
        factor = math.exp(tile.reference - peak) / total
        if tile.weight is not None and factor * tile.total > NO_SHARE:
            weight = tile.weight.mul_(factor).view(plan.n_psi, 1, plan.n_shifts, -1)
            accumulate(own, weight, data, rows, plan)
