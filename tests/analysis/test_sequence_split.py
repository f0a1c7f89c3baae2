"""Laws of clustering by sequence and of splits by cluster."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cryorbit.analysis.sequence_split import ALIKE, WORD, cluster_sequences, split_by_sequence, word_overlap
from cryorbit.errors import BadInput

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def family(size: int, changes: int, rng: np.random.Generator, length: int = 120) -> list[str]:
    """A sequence and relatives with some letters changed."""
    first = rng.choice(list(LETTERS), length)
    relatives = ["".join(first)]
    for _ in range(size - 1):
        other = first.copy()
        other[rng.choice(length, changes, replace=False)] = rng.choice(list(LETTERS), changes)
        relatives.append("".join(other))
    return relatives


@pytest.fixture
def sequences() -> dict[str, str]:
    rng = np.random.default_rng(0)
    return {f"f{k}m{i}_A": s for k in range(20) for i, s in enumerate(family(1 + k % 4, changes=12, rng=rng))}


def test_relatives_share_a_cluster_and_strangers_do_not(sequences: dict[str, str]):
    """10 % of letters changed: one cluster a family; random sequences: another."""
    cluster = cluster_sequences(sequences)
    for a, b in itertools.combinations(sequences, 2):
        assert (cluster[a] == cluster[b]) == (a.split("m")[0] == b.split("m")[0])


def test_overlap_is_that_of_sets(sequences: dict[str, str]):
    """The sparse product agrees with Python's sets, and no two clusters hold sequences that are alike."""
    names = sorted(sequences)[:15]
    words = [{s[i : i + WORD] for i in range(len(s) - WORD + 1)} for s in (sequences[n] for n in names)]
    overlap = word_overlap([sequences[n] for n in names]).toarray()
    cluster = cluster_sequences(sequences)
    for i, j in itertools.product(range(15), repeat=2):
        assert overlap[i, j] == pytest.approx(len(words[i] & words[j]) / len(words[i] | words[j]))
        assert overlap[i, j] < ALIKE or cluster[names[i]] == cluster[names[j]]


def test_linkage_is_single():
    """A like B and B like C put A and C together, though they are not alike."""
    rng = np.random.default_rng(1)
    a, c = ("".join(rng.choice(list(LETTERS), 60)) for _ in range(2))
    cluster = cluster_sequences({"a": a, "b": a + c, "c": c})
    assert word_overlap([a, c])[0, 1] < ALIKE
    assert len(set(cluster.values())) == 1


def test_no_cluster_straddles_and_nobody_is_lost(sequences: dict[str, str]):
    """Each name once; each cluster in one part; the same seed gives the same split in any order of names."""
    split = split_by_sequence(sequences, seed=3, validation=0.2, test=0.2)
    parts = (split.train, split.validation, split.test)
    assert sorted(itertools.chain(*parts)) == sorted(sequences)
    assert all(parts)
    for one, other in itertools.combinations(parts, 2):
        assert not {split.cluster[n] for n in one} & {split.cluster[n] for n in other}
    again = split_by_sequence(dict(reversed(sequences.items())), seed=3, validation=0.2, test=0.2)
    assert again == split
    assert split_by_sequence(sequences, seed=4, validation=0.2, test=0.2).test != split.test


def test_held_out_names_drag_their_cluster(sequences: dict[str, str]):
    """A name or an entry, in capitals or not, goes to the test with all its relatives."""
    split = split_by_sequence(sequences, seed=0, test=0.0, hold_out=["f3m1_A", "F7M0"])
    assert split.test == sorted(n for n in sequences if n.split("m")[0] in ("f3", "f7"))


def test_bad_input_is_refused(sequences: dict[str, str]):
    with pytest.raises(BadInput, match=r"'nobody' is to be held out but is not among"):
        split_by_sequence(sequences, seed=0, hold_out=["nobody"])
    with pytest.raises(BadInput, match=r"leave nothing to train on"):
        split_by_sequence(sequences, seed=0, validation=0.5, test=0.5)
    with pytest.raises(BadInput, match=r"leave none to train on"):
        split_by_sequence({"a_A": "MKVLAAGG"}, seed=0, hold_out=["a"])
    with pytest.raises(BadInput, match=r"there are no sequences"):
        cluster_sequences({})
    with pytest.raises(BadInput, match=r"alike=0"):
        cluster_sequences(sequences, alike=0.0)
