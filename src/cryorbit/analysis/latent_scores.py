"""How well latents tell what is known of the particles: one number each, with the freedom they leave stated."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from scipy.stats import rankdata
from torch import Tensor

from cryorbit.errors import BadInput


def circular_correlation(a_rad: Float[Tensor, "n"], b_rad: Float[Tensor, "m"]) -> float:
    """Correlation of two sets of angles: 1 if one is the other turned or counted backwards, near 0 for chance.

    r = | R(a - b) - R(a + b) | / sqrt((1 - R(2a)) (1 - R(2b))), R(x) = |mean exp(i x)|: the coefficient of
    Jammalamadaka and SenGupta (Topics in Circular Statistics, 2001, section 8.2), in their form for angles without a
    mean direction, which angles all round a circle are. The origin of either set does not enter; the direction of
    counting only changes the sign, which is dropped, since latents have neither.

    >>> a = torch.linspace(0, 6, 50, dtype=torch.float64)
    >>> round(circular_correlation(a, 1.0 - a), 6)
    1.0

    Raises
    ------
    BadInput
        If the sets differ in length or are empty.
    """
    _paired(a_rad, b_rad, "circular_correlation")
    a, b = a_rad.double(), b_rad.double()

    def length(angle: Tensor) -> float:
        return float(torch.polar(torch.ones_like(angle), angle).mean().abs())

    spread = (1 - length(2 * a)) * (1 - length(2 * b))
    if spread < 1e-12:
        return 0.0
    return min(abs(length(a - b) - length(a + b)) / spread**0.5, 1.0)


def rank_correlation(a: Float[Tensor, "n"], b: Float[Tensor, "m"]) -> float:
    """Spearman's correlation without its sign: a path has no direction. 0 where one set is constant.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 4.0, 1.0]))
    1.0
    """
    _paired(a, b, "rank_correlation")
    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return 0.0
    ranks = np.stack([rankdata(x.detach().cpu().numpy()) for x in (a, b)])
    return abs(round(float(np.corrcoef(ranks)[0, 1]), 12))


def adjusted_rand_index(a: Int[Tensor, "n"], b: Int[Tensor, "m"]) -> float:
    """Agreement of two labellings on which pairs belong together: 1 for the same partition, 0 on average by chance.

    (index - expected) / (mean of the two - expected), counting pairs in the contingency table (Hubert and Arabie 1985).
    The names of the labels do not matter. 1 where both labellings are trivial and the same.

    >>> adjusted_rand_index(torch.tensor([0, 0, 1, 1]), torch.tensor([7, 7, 3, 3]))
    1.0
    """
    _paired(a, b, "adjusted_rand_index")
    first, second = (torch.unique(x, return_inverse=True)[1] for x in (a.cpu(), b.cpu()))
    width = int(second.max()) + 1
    table = torch.bincount(first * width + second, minlength=(int(first.max()) + 1) * width).view(-1, width)

    def pairs(counts: Tensor) -> float:
        return float((counts.double() * (counts.double() - 1) / 2).sum())

    together, in_a, in_b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    every = len(a) * (len(a) - 1) / 2
    expected = in_a * in_b / every if every else 0.0
    best = 0.5 * (in_a + in_b)
    return 1.0 if best == expected else (together - expected) / (best - expected)


def neighbourhood_similarity(
    latents: Float[Tensor, "n d"],
    state: Int[Tensor, "m"],
    state_distance: Float[Tensor, "k k"],
    *,
    neighbours: int = 100,
) -> tuple[float, float]:
    """Share of a particle's nearest latents that are among its truly nearest particles, and what chance would give.

    After CryoBench (Jeon et al. 2024). The true neighbourhood of a particle is made of all others whose true distance
    is at most that of the `neighbours`-th, ties included, since images of one state are all at distance 0; chance is
    the mean size of that neighbourhood over n - 1. Latents may be turned, mirrored or scaled.

    Parameters
    ----------
    state_distance
        Between the states, for instance the RMSD of their atoms.

    Raises
    ------
    BadInput
        If there are not more particles than neighbours, or a state has no distance.
    """
    _paired(latents, state, "neighbourhood_similarity")
    n, k = len(state), neighbours
    if not 1 <= k < n:
        raise BadInput(f"neighbourhood_similarity: {k} neighbours of {n} particles. Ask for 1 to {n - 1}.")
    if int(state.max()) >= len(state_distance):
        raise BadInput(f"neighbourhood_similarity: state {int(state.max())} has no row of distances.")
    count = torch.bincount(state, minlength=len(state_distance))
    points = latents.detach().double().cpu().numpy()
    found = torch.from_numpy(_others(points, k))
    share, chance = torch.zeros(n), torch.zeros(n)
    for number in torch.unique(state).tolist():
        rows = torch.nonzero(state == number)[:, 0]
        near, order = state_distance[number].sort()
        reached = count[order].cumsum(0) - 1  # without the particle itself
        last = near[int(torch.nonzero(reached >= k)[0, 0])]
        inside = state_distance[number] <= last
        share[rows] = inside[state[found[rows]]].float().mean(1)
        chance[rows] = (float(count[inside].sum()) - 1) / (n - 1)
    return float(share.mean()), float(chance.mean())


def _others(points: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k nearest other points of each."""
    index = np.asarray(KDTree(points).query(points, k=k + 1)[1])
    own = np.arange(len(points))[:, None]
    # where many points coincide, a point need not be among its own nearest: then the last one goes
    stays = index != own
    stays[stays.all(1), -1] = False
    return index[stays].reshape(len(points), k)


def _paired(a: Tensor, b: Tensor, who: str) -> None:
    if len(a) != len(b) or len(a) == 0:
        raise BadInput(f"{who}: {len(a)} and {len(b)} particles. Give the same particles, at least one.")
