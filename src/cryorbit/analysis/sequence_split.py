"""Clusters of similar sequences, and a split into training, validation and test that no cluster straddles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components

from cryorbit.errors import BadInput

WORD = 3
"""Residues in a word."""

ALIKE = 0.1
"""Words that two sequences share, over words that either has, from which on they are taken for relatives.

Chance gives about 0.02 between chains of 200 residues and 0.05 between chains of 500; 57 % of residues in common give 0.1.
Relatives farther apart than that are not seen: that takes an alignment of profiles.
"""


@dataclass(frozen=True)
class SequenceSplit:
    """Names in each part, sorted; every name is in one of them.

    Parameters
    ----------
    train, validation, test
        Names of sequences.
    cluster
        Number of the cluster of each name; clusters are numbered by their first name in the alphabet.
    """

    train: list[str]
    validation: list[str]
    test: list[str]
    cluster: dict[str, int]


def word_overlap(sequences: Sequence[str]) -> sparse.csr_matrix:
    """Jaccard index of the sets of words of three letters of each two sequences, (n, n), zeros left out.

    >>> word_overlap(["AAAC", "AAAD"])[0, 1]  # AAA of AAA, AAC, AAD
    np.float64(0.3333333333333333)
    """
    number: dict[str, int] = {}
    rows, columns = [], []
    for row, sequence in enumerate(sequences):
        words = {sequence[i : i + WORD] for i in range(len(sequence) - WORD + 1)}
        rows += [row] * len(words)
        columns += [number.setdefault(word, len(number)) for word in sorted(words)]
    shape = (len(sequences), max(1, len(number)))
    has = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)
    shared = sparse.coo_matrix(has @ has.T)
    size = np.asarray(has.sum(1)).ravel()
    jaccard = shared.data / (size[shared.row] + size[shared.col] - shared.data)
    return sparse.csr_matrix((jaccard, (shared.row, shared.col)), shape=shared.shape)


def cluster_sequences(sequences: Mapping[str, str], *, alike: float = ALIKE) -> dict[str, int]:
    """Number of the cluster of each name: single linkage of sequences whose `word_overlap` is at least `alike`.

    Does not depend on the order of the mapping.

    Raises
    ------
    BadInput
        If there are no sequences, or `alike` is not between 0 and 1.

    >>> cluster_sequences({"b": "MKVLAAGG", "a": "MKVLAAGW", "c": "WWPPHHDD"})
    {'a': 0, 'b': 0, 'c': 1}
    """
    if not sequences:
        raise BadInput("cluster_sequences: there are no sequences. Give at least one.")
    if not 0 < alike <= 1:
        raise BadInput(f"cluster_sequences: alike={alike:g}. Give more than 0 and at most 1.")
    names = sorted(sequences)
    overlap = word_overlap([sequences[name] for name in names])
    overlap.data[overlap.data < alike] = 0
    overlap.eliminate_zeros()
    _, label = connected_components(overlap, directed=False)
    number: dict[int, int] = {}
    return {
        name: number.setdefault(int(k), len(number)) for name, k in zip(names, label.tolist(), strict=True)
    }


def split_by_sequence(
    sequences: Mapping[str, str],
    *,
    seed: int,
    validation: float = 0.1,
    test: float = 0.1,
    hold_out: Sequence[str] = (),
    alike: float = ALIKE,
) -> SequenceSplit:
    """Clusters dealt out by chance: to the test until it has its share, then to the validation, the rest to training.

    The last cluster dealt may carry a part beyond its share. The same names, sequences and seed give the same split.

    Parameters
    ----------
    sequences
        Name -> sequence.
    validation, test
        Share of the sequences in each, 0 to 1.
    hold_out
        Names, or entries (what stands before the last "_" of a name, in any case), that must be in the test with all of
        their cluster, whatever its share.

    Raises
    ------
    BadInput
        If a held-out name is not there, the shares leave nothing for training, or everything ends up held out.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise BadInput(
            f"split_by_sequence: validation {validation:g} and test {test:g} leave nothing to train on. "
            "Give shares that add up to less than 1."
        )
    cluster = cluster_sequences(sequences, alike=alike)
    members: dict[int, list[str]] = {}
    for name, number in cluster.items():
        members.setdefault(number, []).append(name)
    forced = {cluster[name] for wanted in hold_out for name in _named(wanted, cluster)}
    rest = [number for number in sorted(members) if number not in forced]
    order = sorted(forced) + [rest[k] for k in np.random.default_rng(seed).permutation(len(rest)).tolist()]
    parts: dict[str, list[str]] = {"test": [], "validation": [], "train": []}
    for number in order:
        if number in forced or len(parts["test"]) < test * len(cluster):
            parts["test"] += members[number]
        elif len(parts["validation"]) < validation * len(cluster):
            parts["validation"] += members[number]
        else:
            parts["train"] += members[number]
    if not parts["train"]:
        raise BadInput(
            f"split_by_sequence: {len(members)} clusters of similar sequences leave none to train on. "
            "Add structures, or hold out less."
        )
    return SequenceSplit(
        train=sorted(parts["train"]),
        validation=sorted(parts["validation"]),
        test=sorted(parts["test"]),
        cluster=cluster,
    )


def _named(wanted: str, cluster: Mapping[str, int]) -> list[str]:
    entry = wanted.lower()
    found = [name for name in cluster if name == wanted or name.rpartition("_")[0].lower() == entry]
    if not found:
        raise BadInput(
            f"split_by_sequence: {wanted!r} is to be held out but is not among the sequences. "
            "Correct the name, or leave it out."
        )
    return found
