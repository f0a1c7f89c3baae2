"""The table of tri-planes: what its chance row and its scores say where the answer is known."""

import pytest
import torch

from cryorbit.benchmarks.triplanes import _gaussian, _power, _row

FIVE_STANDARD_ERRORS = 5.0


def maps(count: int, *, seed: int) -> torch.Tensor:
    """Blobs of many places and sizes."""
    g = torch.Generator().manual_seed(seed)
    place = torch.arange(12.0) - 6
    grid = torch.stack(torch.meshgrid(place, place, place, indexing="ij"), -1)
    centre, width = (
        2 * torch.rand(count, 1, 1, 1, 3, generator=g),
        1.5 + torch.rand(count, 1, 1, 1, generator=g),
    )
    return torch.exp(-(grid - centre).square().sum(-1) / (2 * width**2))


def test_training_maps_are_their_own_nearest():
    """And have the power of the training maps, at every shell."""
    seen = maps(6, seed=0)
    row = _row("itself", seen, seen)
    assert row["nearest"] == pytest.approx(1.0, abs=1e-5)
    assert row["power_dB_rms"] == pytest.approx(0.0, abs=1e-4)
    assert row["alike"] < 1.0
    assert _row("others", maps(6, seed=1), seen)["nearest"] < row["nearest"]


def test_chance_has_the_mean_and_the_power_of_the_training_maps():
    """Over many draws, within what so many leave to chance: the power of one term is spread by sqrt(2 / n) at most."""
    seen, n = maps(6, seed=0), 400
    drawn = _gaussian(seen, n)
    apart = (drawn.mean(0) - seen.mean(0)).abs().max()
    assert float(apart) < FIVE_STANDARD_ERRORS * float(drawn.std(0).max()) / n**0.5
    ratio = _power(drawn - seen.mean(0)) / _power(seen - seen.mean(0))
    assert float((ratio - 1).abs().max()) < FIVE_STANDARD_ERRORS * (2 / n) ** 0.5
