"""One C-alpha trace against another, every score beside what a chain in random order gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.chain_scores import radius_of_gyration
from cryorbit.analysis.tm_score import tm_scale_A, tm_score
from cryorbit.errors import BadInput
from cryorbit.geometry.superpose import kabsch

_LDDT_A = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class ChainComparison:
    """Scores of a trace against a reference, residue i to residue i.

    "chance" is the mean over random orders of the trace's residues.

    Parameters
    ----------
    rmsd_A, rmsd_chance_A, rmsd_chance_sd_A, rmsd_bound_A
        After superposition; the bound sqrt(Rg^2 + Rg'^2) is what no superposition exceeds, and what chance comes near to.
    tm, tm_chance
        TM-score.
    lddt, lddt_chance
        lDDT of C-alphas; blind to the hand.
    rg_ratio
        Radius of gyration over the reference's.
    mirrored
        Whether the mirror image has the higher TM-score.
    """

    rmsd_A: float
    rmsd_chance_A: float
    rmsd_chance_sd_A: float
    rmsd_bound_A: float
    tm: float
    tm_chance: float
    lddt: float
    lddt_chance: float
    rg_ratio: float
    mirrored: bool


@dataclass(frozen=True)
class NearestStructure:
    """The known structure most like a trace.

    Parameters
    ----------
    index
        In the library.
    tm
        TM-score over the length of the trace.
    rmsd_A
        Of the residues that were paired.
    offset
        Residue k of the trace is paired with residue k + offset of the other.
    paired
        How many residues were paired.
    """

    index: int
    tm: float
    rmsd_A: float
    offset: int
    paired: int


def compare_chains(
    ca_A: Float[Tensor, "n 3"],
    reference_A: Float[Tensor, "n 3"],
    *,
    generator: torch.Generator,
    orders: int = 20,
) -> ChainComparison:
    """All scores of a trace against a reference.

    Parameters
    ----------
    generator
        Draws the random orders.
    orders
        How many; TM-scores, which are slower, are made for the first four.

    Raises
    ------
    BadInput
        If there are fewer than three residues, or no order is asked for.
    """
    n = ca_A.shape[0]
    if n < 3 or orders < 1:
        raise BadInput(f"compare_chains: {n} residues, {orders} random orders. Give at least 3 and 1.")
    order = [torch.randperm(n, generator=generator) for _ in range(orders)]
    chance = permuted_rmsd(ca_A, reference_A, torch.stack(order))
    tm = tm_score(ca_A, reference_A).score
    rg, other = (float(radius_of_gyration(x)) for x in (ca_A, reference_A))
    return ChainComparison(
        rmsd_A=float(kabsch(ca_A, reference_A).rmsd),
        rmsd_chance_A=float(chance.mean()),
        rmsd_chance_sd_A=float(chance.std(correction=0)),
        rmsd_bound_A=(rg**2 + other**2) ** 0.5,
        tm=tm,
        tm_chance=_mean([tm_score(ca_A[o], reference_A).score for o in order[:4]]),
        lddt=lddt_of_ca(ca_A, reference_A),
        lddt_chance=_mean([lddt_of_ca(ca_A[o], reference_A) for o in order]),
        rg_ratio=rg / other,
        mirrored=tm_score(-ca_A, reference_A).score > tm,
    )


def permuted_rmsd(
    ca_A: Float[Tensor, "n 3"], reference_A: Float[Tensor, "n 3"], orders: Int[Tensor, "m n"]
) -> Float[Tensor, "m"]:
    """RMSD after superposition of a trace whose residues were put in other orders.

    What a model that does not know the order of the chain gets. A superposition can gain little on random partners: the
    value lies just below sqrt(Rg^2 + Rg'^2), which is sqrt(2) Rg where both have the same size.
    """
    return kabsch(ca_A[orders], reference_A.expand(len(orders), -1, -1)).rmsd


def lddt_of_ca(
    ca_A: Float[Tensor, "n 3"], reference_A: Float[Tensor, "n 3"], *, within_A: float = 15.0
) -> float:
    """Share of the reference's distances below `within_A` that the trace keeps, mean over 0.5, 1, 2 and 4 A.

    Mariani et al. 2013, Bioinformatics 29, 2722, for C-alphas. Needs no superposition; a mirror image scores 1.

    Raises
    ------
    BadInput
        If no two residues of the reference are that near.
    """
    i, j = torch.triu_indices(len(ca_A), len(ca_A), 1, device=ca_A.device)
    wanted = (reference_A[i] - reference_A[j]).norm(dim=-1)
    near = wanted < within_A
    if not bool(near.any()):
        raise BadInput(
            f"lddt_of_ca: no two residues of the reference are within {within_A:g} A. Give another."
        )
    error = ((ca_A[i] - ca_A[j]).norm(dim=-1) - wanted).abs()[near]
    return float(torch.stack([(error < limit).double().mean() for limit in _LDDT_A]).mean())


def nearest_structure(
    ca_A: Float[Tensor, "n 3"], library_A: Sequence[Float[Tensor, "_ 3"]], *, finalists: int = 5
) -> NearestStructure:
    """The trace of a library most like a sample: whether a prior has learned structures by heart.

    Every library trace is laid along the sample without gaps at every offset at which the shorter of the two has all its
    residues paired; the placements with the best RMSD, taken as if it were the same at every residue, are scored by
    TM-score over the sample's length. A relative with insertions is not found by it.

    Parameters
    ----------
    finalists
        Placements that are scored by TM-score.

    Raises
    ------
    BadInput
        If the library is empty, or a trace has fewer than three residues.
    """
    if len(library_A) == 0 or ca_A.shape[0] < 3 or any(len(x) < 3 for x in library_A):
        raise BadInput("nearest_structure: wanted at least one known trace, all of three residues or more.")
    placements: list[tuple[float, int, int]] = []
    for index, other in enumerate(library_A):
        rmsd = _sliding_rmsd(ca_A, other)
        share = min(len(other), len(ca_A)) / len(ca_A)
        guess = share / (1 + (rmsd / tm_scale_A(len(ca_A))) ** 2)
        best = guess.topk(min(2, len(guess)))
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            placements.append((-value, index, place if len(other) >= len(ca_A) else -place))
    found = [
        _scored(ca_A, library_A[index], index, offset) for _, index, offset in sorted(placements)[:finalists]
    ]
    return max(found, key=lambda nearest: nearest.tm)


def _sliding_rmsd(a: Tensor, b: Tensor) -> Tensor:
    """RMSD of the shorter against each stretch of its length of the longer."""
    short, long = (a, b) if len(a) <= len(b) else (b, a)
    stretches = long.to(short).unfold(0, len(short), 1).mT
    return kabsch(short.expand(len(stretches), -1, -1), stretches).rmsd


def _scored(sample: Tensor, other: Tensor, index: int, offset: int) -> NearestStructure:
    paired = min(len(sample), len(other))
    a = sample[max(-offset, 0) :][:paired]
    b = other[max(offset, 0) :][:paired].to(a)
    tm = tm_score(a, b, residues=len(sample)).score
    return NearestStructure(index, tm, float(kabsch(a, b).rmsd), offset, paired)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
