"""TM-score of two traces, residue i to residue i, over the best superposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.superpose import Superposition, kabsch

_ROUNDS, _LAST_ROUNDS = 12, 200
_FINALISTS = 4


@dataclass(frozen=True, eq=False)
class TMScore:
    """1 for the same structure, about 0.17 for unrelated ones, above 0.5 mostly the same fold (Xu and Zhang 2010).

    Parameters
    ----------
    score
        mean over residues of 1 / (1 + (d / d0)^2).
    motion
        Of the moving trace onto the fixed one.
    """

    score: float
    motion: Superposition


def tm_scale_A(residues: int) -> float:
    """d0 of Zhang and Skolnick (2004, Proteins 57, 702): 1.24 (n - 15)^(1/3) - 1.8 A, at least 0.5.

    >>> round(tm_scale_A(129), 2)
    4.21
    """
    return max(0.5, 1.24 * max(residues - 15, 0) ** (1 / 3) - 1.8)


def tm_score(
    moving_A: Float[Tensor, "n 3"], fixed_A: Float[Tensor, "n 3"], *, residues: int | None = None
) -> TMScore:
    """The largest sum over residues of 1 / (1 + (d_i / d0)^2), over `residues`, that a rigid motion reaches.

    Starts are the superpositions of fragments of length n, n / 2, n / 4, ... down to 5 (as Zhang and Skolnick have them).
    Each is improved by superposing again with the weights 1 / (1 + (d / d0)^2)^2: as 1 / (1 + u) is convex in u =
    (d / d0)^2, the sum lies above its tangent, which that superposition maximises, so the score never falls.

    Parameters
    ----------
    residues
        Length that d0 and the sum refer to; None: n. Larger where part of a structure has no partner.

    Raises
    ------
    BadInput
        If there are fewer than three residues, or `residues` is below their number.
    """
    n = moving_A.shape[0]
    length = n if residues is None else residues
    if n < 3 or length < n:
        raise BadInput(
            f"tm_score: {n} pairs for a length of {length}. Give three pairs or more, and a length no less."
        )
    moving, fixed, d0 = moving_A.double(), fixed_A.double(), tm_scale_A(length)
    weight = _fragments(n).to(moving)
    for _ in range(_ROUNDS):
        weight = _improved(moving, fixed, weight, d0)[1]
    score = _improved(moving, fixed, weight, d0)[0]
    weight = weight[score.topk(min(_FINALISTS, len(score))).indices]
    score = score.topk(min(_FINALISTS, len(score))).values
    for _ in range(_LAST_ROUNDS):
        last = score
        score, weight = _improved(moving, fixed, weight, d0)
        if float((score - last).max()) < 1e-10:
            break
    winner = int(score.argmax())
    motion = kabsch(moving, fixed, weight=weight[winner])
    return TMScore(float(_terms(moving, fixed, motion, d0).sum()) / length, motion)


def _improved(moving: Tensor, fixed: Tensor, weight: Tensor, d0: float) -> tuple[Tensor, Tensor]:
    """Sum of the terms after superposing with the weights, and the weights of the next round."""
    count = len(weight)
    motion = kabsch(moving.expand(count, -1, -1), fixed.expand(count, -1, -1), weight=weight)
    terms = _terms(moving, fixed, motion, d0)
    return terms.sum(-1), terms.square()


def _terms(moving: Tensor, fixed: Tensor, motion: Superposition, d0: float) -> Tensor:
    apart = motion.apply(moving) - fixed
    return 1 / (1 + apart.square().sum(-1) / d0**2)


def _fragments(n: int) -> Int[Tensor, "starts n"]:
    """Ones on each fragment to start from."""
    rows, size = [], n
    while size >= min(5, n):
        step = max(1, size // 4) if size > 5 else max(1, n // 24)
        rows += [(start, size) for start in range(0, n - size + 1, step)]
        size = size // 2 if size // 2 >= 5 or size <= 5 else 5
    index = torch.arange(n)
    edges = torch.tensor(rows)
    return ((index >= edges[:, :1]) & (index < edges[:, :1] + edges[:, 1:])).long()
