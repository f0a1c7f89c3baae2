"""Laws of the reading order of a training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.inference.block_shuffle import block_shuffled


def shuffled(n, block, together, seed=0):
    return block_shuffled(n, block=block, together=together, generator=torch.Generator().manual_seed(seed))


@given(n=st.integers(0, 200), block=st.integers(1, 30), together=st.integers(1, 8), seed=st.integers(0, 5))
def test_each_image_once_and_few_blocks_at_a_time(n, block, together, seed):
    """A stretch that `together` blocks fill holds all rows of just as many blocks; only the last stretch has fewer."""
    order = shuffled(n, block, together, seed)
    assert order.sort().values.tolist() == list(range(n))
    at = 0
    while at < n:
        stretch, blocks = [], set()
        while at < n and (len(blocks | {int(order[at]) // block}) <= together):
            blocks.add(int(order[at]) // block)
            stretch.append(int(order[at]))
            at += 1
        assert len(blocks) == together or at == n
        assert sorted(stretch) == sorted(r for b in blocks for r in range(b * block, min((b + 1) * block, n)))


def test_the_order_is_random_between_and_within_blocks():
    order = shuffled(10_000, 100, 4)
    assert torch.equal(order, shuffled(10_000, 100, 4))
    assert not torch.equal(order, shuffled(10_000, 100, 4, seed=1))
    assert abs(float(torch.corrcoef(torch.stack((order.float(), torch.arange(10_000.0))))[0, 1])) < 0.5
    first = order[:400]
    neighbours = (first.diff() == 1).float().mean()
    assert float(neighbours) < 0.02  # 1 / 400 by chance


def test_senseless_numbers_are_refused():
    for n, block, together in ((-1, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(BadInput):
            shuffled(n, block, together)
