from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import spearmanr

from cryorbit.analysis.latent_scores import (
    adjusted_rand_index,
    circular_correlation,
    neighbourhood_similarity,
    rank_correlation,
)
from cryorbit.errors import BadInput


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def angles(n: int, seed: int = 0) -> torch.Tensor:
    return 2 * math.pi * torch.rand(n, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("offset", [0.0, 1.3, math.pi])
@pytest.mark.parametrize("width", [1.0, 0.3])
def test_an_angle_agrees_with_itself_turned_or_counted_backwards(sign, offset, width):
    """1 whatever the origin and the direction, on the whole circle or a part of it, with or without whole turns."""
    a = width * angles(300)
    b = sign * a + offset + 2 * math.pi * torch.arange(300).double()
    assert abs(circular_correlation(a, b) - 1) < 1e-9


def test_circular_correlation_of_chance_and_of_noise():
    """Independent angles score near 0; noise of standard deviation s on all round the circle leaves exp(-s^2 / 2)."""
    n = 20000
    # R of n random angles is about 1 / sqrt(n) = 0.007
    assert circular_correlation(angles(n), angles(n, seed=1)) < 0.03
    noisy = angles(n) + 0.5 * torch.randn(n, generator=seeded(2), dtype=torch.float64)
    assert abs(circular_correlation(angles(n), noisy) - math.exp(-0.125)) < 0.02
    assert circular_correlation(torch.zeros(5), angles(5)) == 0.0


def test_twice_around_is_not_once_around():
    """An angle that runs round twice while the other does once tells half of the truth, and scores 0."""
    a = torch.arange(360).double() * math.pi / 180
    assert circular_correlation(a, 2 * a) < 1e-9


def test_rank_correlation_is_spearmans_without_sign():
    """Against scipy; a rising function leaves 1, a falling one too, ties count by their mean rank."""
    a, b = torch.randn(40, generator=seeded()), torch.randn(40, generator=seeded(1)).round()
    expected = abs(float(spearmanr(a.numpy(), b.numpy()).statistic))  # pyright: ignore
    assert abs(rank_correlation(a, b) - expected) < 1e-10
    assert rank_correlation(a, a.exp()) == 1.0
    assert rank_correlation(a, -a.exp()) == 1.0
    assert rank_correlation(a, torch.ones(40)) == 0.0


def by_pairs(a: list[int], b: list[int]) -> float:
    """The adjusted Rand index from its four kinds of pairs, one pair at a time."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    in_a, in_b = (sum(x[i] == x[j] for i, j in pairs) for x in (a, b))
    expected = in_a * in_b / len(pairs)
    return (both - expected) / ((in_a + in_b) / 2 - expected)


def test_rand_index_by_hand():
    """[0 0 1 1] against [0 0 1 2]: one pair in both, two and one in either, of six: (1 - 1/3) / (3/2 - 1/3) = 4/7."""
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    assert abs(adjusted_rand_index(a, b) - 4 / 7) < 1e-12
    assert abs(adjusted_rand_index(a, torch.tensor([0, 1, 0, 1])) - (-0.5)) < 1e-12


def test_rand_index_counts_pairs_and_ignores_names():
    """Equal to the count pair by pair; renaming either side's labels or swapping the sides changes nothing."""
    a = torch.randint(5, (60,), generator=seeded())
    b = torch.where(
        torch.rand(60, generator=seeded(1)) < 0.6, a, torch.randint(7, (60,), generator=seeded(2))
    )
    score = adjusted_rand_index(a, b)
    assert abs(score - by_pairs(a.tolist(), b.tolist())) < 1e-12
    names = torch.randperm(7, generator=seeded(3)) * 11 - 20
    assert abs(adjusted_rand_index(a, names[b]) - score) < 1e-12
    assert abs(adjusted_rand_index(b, a) - score) < 1e-12
    assert adjusted_rand_index(a, names[a]) == 1.0


def test_rand_index_of_chance():
    """Independent labels score about 0, and one label for all exactly 0, however many images."""
    a, b = (torch.randint(6, (20000,), generator=seeded(s)) for s in (0, 1))
    assert abs(adjusted_rand_index(a, b)) < 0.005
    assert adjusted_rand_index(a, torch.zeros(20000, dtype=torch.long)) == 0.0
    assert adjusted_rand_index(torch.zeros(4).long(), torch.zeros(4).long()) == 1.0


def test_neighbourhoods_that_agree_and_that_do_not():
    """Latents that are the truth, turned and scaled, score 1; latents without a relation to it score chance."""
    place = torch.randn(12, 2, generator=seeded(), dtype=torch.float64)
    state = torch.arange(600) % 12
    distance = torch.cdist(place, place)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=seeded(1), dtype=torch.float64)).Q
    value, chance = neighbourhood_similarity(3 * place[state] @ turn, state, distance, neighbours=60)
    assert value == 1.0
    # 49 others in the own state, so the 60th is in the nearest other state: 99 of 599, more where that one ties
    assert abs(chance - 99 / 599) < 1e-6
    noise = torch.randn(600, 2, generator=seeded(2), dtype=torch.float64)
    value, chance = neighbourhood_similarity(noise, state, distance, neighbours=60)
    assert abs(value - chance) < 0.02


def test_scores_want_the_same_particles():
    """Different lengths, and more neighbours than particles, are refused."""
    with pytest.raises(BadInput, match="same particles"):
        circular_correlation(torch.zeros(3), torch.zeros(4))
    with pytest.raises(BadInput, match="same particles"):
        adjusted_rand_index(torch.zeros(0).long(), torch.zeros(0).long())
    with pytest.raises(BadInput, match="Ask for 1 to 2"):
        neighbourhood_similarity(
            torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), torch.zeros(1, 1), neighbours=3
        )
