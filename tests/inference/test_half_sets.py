"""Laws of half sets: images never stand on both sides, halves are even, and what a file says is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cryorbit.data import ParticleStack
from cryorbit.data.particles import MemoryImages
from cryorbit.errors import BadInput
from cryorbit.inference.half_sets import half_sets

N = 240


def stack(**given) -> ParticleStack:
    images = MemoryImages(torch.zeros(N, 4, 4))
    ids = np.array([f"{i + 1}@x.mrcs" for i in range(N)])
    return ParticleStack(**{"images": images, "pixel_size_A": 1.0, "ids": ids, **given})


def drawn(s: ParticleStack, seed: int = 0) -> torch.Tensor:
    return half_sets(s, generator=torch.Generator().manual_seed(seed))


def test_copies_of_an_image_stay_in_one_half():
    source = np.array([f"{i // 6}@x.mrcs" for i in range(N)])
    named = stack(tables={"particles": pd.DataFrame({"cryorbitSourceId": source})})
    repeated = stack(ids=np.array([f"{i // 6}@x.mrcs#{i % 6}" for i in range(N)]))
    for s in (named, repeated):
        half = drawn(s).reshape(-1, 6)
        assert bool((half == half[:, :1]).all())
        assert half[:, 0].sum() == N // 12


def test_micrographs_stay_whole_and_halves_even():
    micrograph = np.array([f"m{i % 17}" for i in range(N)])
    half = drawn(stack(micrograph=micrograph))
    for name in set(micrograph):
        assert len(half[torch.from_numpy(micrograph == name)].unique()) == 1
    largest = max(np.unique(micrograph, return_counts=True)[1])
    assert abs(int(half.sum()) - N / 2) <= largest / 2


def test_the_files_own_halves_are_kept_and_mixed_ones_refused():
    own = torch.arange(N) % 2 + 1
    assert torch.equal(drawn(stack(half_set=own)), own - 1)
    own[7] = 0
    with pytest.raises(BadInput, match="row 8: half set 0"):
        drawn(stack(half_set=own))
    assert drawn(stack(half_set=torch.zeros(N, dtype=torch.long))).sum() == N // 2


def test_the_seed_decides():
    assert torch.equal(drawn(stack(), 1), drawn(stack(), 1))
    assert not torch.equal(drawn(stack(), 1), drawn(stack(), 2))
    assert len(drawn(replace(stack(), half_set=torch.ones(N, dtype=torch.long))).unique()) == 2
