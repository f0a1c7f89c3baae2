"""Whether a C-alpha trace looks like a protein: size, steps, clashes, helices and their hand. Angstrom throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryorbit.data.protein_chain import rg_law_A
from cryorbit.errors import BadInput

STEP_A = 3.80
"""Distance of consecutive C-alphas across a trans peptide bond."""

CLASH_A = 3.6
"""Two C-alphas three or more residues apart come no nearer."""

_HELIX_A = ((5.5, 0.5), (5.3, 0.5), (6.4, 0.6))
_STRAND_A = ((6.7, 0.6), (9.9, 0.9), (12.4, 1.1))
"""Distances from residue i to i + 2, i + 3, i + 4 and tolerances (Labesse et al. 1997, Comput. Appl. Biosci. 13, 291)."""


@dataclass(frozen=True)
class ChainScores:
    """What one trace looks like, with what chance would give where that means anything.

    Parameters
    ----------
    residues
        C-alphas in the trace.
    rg_A, rg_ratio
        Radius of gyration, and over that of a globular protein of as many residues.
    step_fraction, step_chance
        Share of consecutive C-alphas at 3.80 +- 0.1 A; the same of the trace in random order.
    clash_fraction
        Share of residues with a clash.
    helix_fraction, strand_fraction
        Share of residues in helices and strands, by distances only: blind to the hand.
    right_handed_fraction, right_handed_chance
        Share of the turns of helices that wind to the right, NaN without helices; a mirror-blind source gives 0.5.
    """

    residues: int
    rg_A: float
    rg_ratio: float
    step_fraction: float
    step_chance: float
    clash_fraction: float
    helix_fraction: float
    strand_fraction: float
    right_handed_fraction: float
    right_handed_chance: float = 0.5


def score_chain(
    ca_A: Float[Tensor, "n 3"],
    *,
    generator: torch.Generator,
    residue_number: Int[Tensor, "n"] | None = None,
) -> ChainScores:
    """All scores of one trace.

    Parameters
    ----------
    generator
        Draws the random order.
    residue_number
        Where given, only residues whose numbers follow one another make a step.

    Raises
    ------
    BadInput
        If there are fewer than two C-alphas.
    """
    n = _check(ca_A)
    order = torch.randperm(n, generator=generator)
    state = secondary_structure_of_ca(ca_A)
    rg = float(radius_of_gyration(ca_A))
    return ChainScores(
        residues=n,
        rg_A=rg,
        rg_ratio=rg / rg_law_A(n),
        step_fraction=step_fraction(ca_A, residue_number=residue_number),
        step_chance=step_fraction(ca_A[order]),
        clash_fraction=clash_fraction(ca_A),
        helix_fraction=state.count("H") / n,
        strand_fraction=state.count("E") / n,
        right_handed_fraction=right_handed_fraction(ca_A),
    )


def radius_of_gyration(points_A: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch"]:
    """Root mean square distance from the mean.

    >>> radius_of_gyration(torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])).item()
    1.0
    """
    away = points_A - points_A.mean(-2, keepdim=True)
    return away.square().sum(-1).mean(-1).sqrt()


def step_fraction(
    ca_A: Float[Tensor, "n 3"],
    *,
    tolerance_A: float = 0.1,
    residue_number: Int[Tensor, "n"] | None = None,
) -> float:
    """Share of consecutive C-alphas that are 3.80 A apart, give or take the tolerance; NaN where nothing is consecutive.

    Where `residue_number` is given, only residues whose numbers follow one another count.
    """
    _check(ca_A)
    good = ((ca_A[1:] - ca_A[:-1]).norm(dim=-1) - STEP_A).abs() <= tolerance_A
    if residue_number is not None:
        good = good[residue_number[1:] - residue_number[:-1] == 1]
    return float(good.double().mean())


def clash_fraction(ca_A: Float[Tensor, "n 3"], *, nearest_A: float = CLASH_A) -> float:
    """Share of residues with a C-alpha nearer than `nearest_A` three or more residues along the chain."""
    n = _check(ca_A)
    index = torch.arange(n, device=ca_A.device)
    far = (index[:, None] - index).abs() > 2
    return float(((torch.cdist(ca_A, ca_A) < nearest_A) & far).any(1).double().mean())


def pseudo_torsions(ca_A: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch m"]:
    """Torsions of four consecutive C-alphas in radians, (..., n - 3): +50 degrees in a right-handed alpha helix."""
    u, v, w = (ca_A[..., i + 1 : ca_A.shape[-2] - 2 + i, :] - ca_A[..., i : i - 3, :] for i in range(3))
    first, second = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    sine = (v / v.norm(dim=-1, keepdim=True) * torch.linalg.cross(first, second)).sum(-1)
    return torch.atan2(sine, (first * second).sum(-1))


def secondary_structure_of_ca(ca_A: Float[Tensor, "n 3"]) -> str:
    """One letter per residue: H in helices, E in strands, - elsewhere, from distances of C-alphas alone.

    Five residues in a row are a helix or a strand where their distances i to i + 2, i + 3 and i + 4 are those of one
    (Labesse et al. 1997). Mirror images get the same letters: the hand is another question.
    """
    n = _check(ca_A)
    letters = ["-"] * n
    for letter, limits in (("E", _STRAND_A), ("H", _HELIX_A)):
        for start in torch.nonzero(_windows(ca_A, limits)).ravel().tolist():
            letters[start : start + 5] = letter * 5
    return "".join(letters)


def right_handed_fraction(ca_A: Float[Tensor, "n 3"]) -> float:
    """Share of the turns of helices (four C-alphas inside a helix of five) with a positive torsion; NaN without helices."""
    _check(ca_A)
    window = _windows(ca_A, _HELIX_A)
    if not bool(window.any()):
        return math.nan
    inside = torch.zeros(ca_A.shape[0] - 3, dtype=torch.bool, device=ca_A.device)
    inside[:-1] |= window
    inside[1:] |= window
    return float((pseudo_torsions(ca_A)[inside] > 0).double().mean())


def _windows(ca_A: Tensor, limits: tuple[tuple[float, float], ...]) -> Bool[Tensor, "windows"]:
    """Whether the five C-alphas from each one on have all the distances."""
    n = ca_A.shape[0]
    good = torch.ones(max(n - 4, 0), dtype=torch.bool, device=ca_A.device)
    for gap, (distance, tolerance) in enumerate(limits, start=2):
        near = ((ca_A[gap:] - ca_A[: n - gap]).norm(dim=-1) - distance).abs() <= tolerance
        for start in range(5 - gap):
            good &= near[start : start + len(good)]
    return good


def _check(ca_A: Tensor) -> int:
    if ca_A.shape[0] < 2:
        raise BadInput(f"chain scores: {ca_A.shape[0]} C-alphas. Give a chain of at least two.")
    return ca_A.shape[0]
