"""Memory: what is refused before any work, and blocks that shrink where it is short."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.inference import memory, reconstruct
from cryorbit.inference.memory import (
    BYTES_PER_PIXEL,
    FEWEST_ROWS,
    LATTICES,
    free_bytes,
    largest_box,
    lattice_bytes,
    require_memory,
    rows_per_block,
)
from posed_stacks import PIXEL_A, posed_stack


@given(box=st.integers(16, 600), free=st.integers(10**6, 10**12), processes=st.integers(1, 8))
def test_what_is_taken_fits_or_is_refused(box, free, processes):
    """Maps and block of every process stay within what is free; more memory never means smaller blocks."""
    maps = LATTICES["reconstruct"] * lattice_bytes(box)
    if processes * maps > free:
        with pytest.raises(BadInput, match="GB are free"):
            rows_per_block(box, 500, free=free, processes=processes)
        return
    rows = rows_per_block(box, 500, free=free, processes=processes)
    needed = processes * (maps + 2 * BYTES_PER_PIXEL * rows * box * box)
    assert 1 <= rows <= 500
    assert needed <= free or rows == FEWEST_ROWS
    assert rows_per_block(box, 500, free=2 * free, processes=processes) >= rows


@given(free=st.integers(10**6, 10**12))
def test_the_box_that_is_named_fits_and_the_next_does_not(free):
    for work in LATTICES:
        box = largest_box(free, work)
        require_memory(box, work, free=free)
        with pytest.raises(BadInput, match=f"to {box} px or less"):
            require_memory(box + 2, work, free=free)


def test_nothing_is_refused_where_the_system_does_not_tell():
    require_memory(10_000, "refine", free=None)
    assert rows_per_block(10_000, 7, free=None) == 7


def test_the_limit_of_a_job_counts(monkeypatch):
    monkeypatch.setattr(memory, "_system_free", lambda: 10 * 10**9)
    monkeypatch.setattr(memory, "_group_free", lambda: 10**9)
    assert free_bytes() == free_bytes(torch.device("cpu")) == 10**9
    monkeypatch.setattr(memory, "_group_free", lambda: None)
    assert free_bytes() == 10 * 10**9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 9))
    assert free_bytes(torch.device("cuda")) == 5


@pytest.fixture(scope="module")
def stack():
    from dataclasses import replace

    from cryorbit.data import Pose

    s = posed_stack(120, box=24, noise=0.3, seed=1)
    return replace(s.observed.stack, pose=Pose(s.rotation, s.shift_px * PIXEL_A))


def half_of(stack, monkeypatch, free: int) -> torch.Tensor:
    monkeypatch.setattr(reconstruct, "free_bytes", lambda device: free)
    *_, last = reconstruct.reconstruct(stack, reconstruct.ReconstructSettings())
    return last.result.half_maps[0].values


def test_little_memory_gives_the_same_map_in_smaller_blocks(stack, monkeypatch):
    """To the rounding of sums in another order."""
    plenty = half_of(stack, monkeypatch, 10**10)
    scarce = half_of(stack, monkeypatch, LATTICES["reconstruct"] * lattice_bytes(24) + 1000)
    assert float((plenty - scarce).norm() / plenty.norm()) < 1e-5
    with pytest.raises(BadInput, match=r"maps of 24 px need about .* rescale"):
        half_of(stack, monkeypatch, 10**6)
