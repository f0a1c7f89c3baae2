"""Laws of local resolution."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cryorbit.analysis.local_resolution import LocalResolutionSettings, first_crossing, local_resolution
from cryorbit.analysis.masks import spherical_mask
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from half_maps import filtered, frequencies, noisy_halves, white

PIXEL = 2.0


def measured(halves: tuple[Volume, Volume], settings: LocalResolutionSettings, resolution_A: float) -> Volume:
    mask = spherical_mask(halves[0], radius_A=0.4 * halves[0].box * PIXEL)
    steps = list(local_resolution(*halves, mask, settings, resolution_A=resolution_A))
    assert [s.result is None for s in steps] == [True] * (len(steps) - 1) + [False]
    assert [s.step for s in steps] == sorted(s.step for s in steps)
    assert steps[-1].fraction == 1.0
    result = steps[-1].result
    assert result is not None
    assert bool(((result.values > 0) == (mask.values > 0.5)).all())
    return result


@pytest.mark.parametrize("n", [63, 64])
def test_each_side_shows_its_own_resolution(n):
    """Half of the box filtered to 10 A, the other not: 10 A on one side, Nyquist on the other."""
    coarse_A, window_A = 10.0, 32.0
    sharp = white(n, 0)
    passing = frequencies(n).norm(dim=-1) <= n * PIXEL / coarse_A
    left = torch.arange(n) < n // 2
    signal = torch.where(left, filtered(sharp, passing.double()), sharp)
    halves = noisy_halves(signal, noise=0.5, pixel_size_A=PIXEL)
    settings = LocalResolutionSettings(local_window_A=window_A)
    values = measured(halves, settings, resolution_A=4.0).values
    x = torch.arange(n).expand(n, n, n) - n // 2
    clear = window_A / PIXEL / 2  # voxels from the border: windows then lie on one side
    found = values[(values > 0) & (x < -clear)]
    full = values[(values > 0) & (x > clear)]
    # One shell of the window's transform, 1 / 32 A, is all that a window can tell apart; a few of thousands
    # of windows may stray further by chance.
    off = (1 / found - 1 / coarse_A).abs()
    assert float(off.median()) < 0.5 / window_A
    assert float(off.quantile(0.95)) < 1 / window_A
    assert float(full.median()) == pytest.approx(2 * PIXEL, rel=0.02)


@pytest.mark.parametrize("threshold", [0.143, 0.5])
def test_an_even_map_has_its_global_resolution_everywhere(threshold):
    """White signal of every voxel filtered to 12 A: the median is 12 A within a shell of the window."""
    n = 48
    passing = frequencies(n).norm(dim=-1) <= n * PIXEL / 12.0
    halves = noisy_halves(filtered(white(n, 1), passing.double()), noise=0.5, pixel_size_A=PIXEL)
    settings = LocalResolutionSettings(local_window_A=48.0, local_threshold=threshold)
    values = measured(halves, settings, resolution_A=12.0).values
    assert float((1 / values[values > 0].median() - 1 / 12.0).abs()) < 1 / 48.0


def test_falling_amplitudes_do_not_pass_for_signal():
    """A strong coarse signal must not leak through the window and count as agreement where there is noise alone."""
    n = 48
    k = frequencies(n).norm(dim=-1) / (n * PIXEL)
    steep = torch.where(k <= 1 / 10.0, 1e3 * torch.exp(-100.0 * k**2), 0.0)
    halves = noisy_halves(filtered(white(n, 2), steep), noise=1.0, pixel_size_A=PIXEL)
    values = measured(halves, LocalResolutionSettings(local_window_A=48.0), resolution_A=10.0).values
    assert float(values[values > 0].quantile(0.05)) > 8.0


def test_empty_shells_are_not_resolved():
    """Maps that hold nothing beyond 8 A are nowhere finer than 8 A, though they agree in their rounding."""
    n = 32
    passing = frequencies(n).norm(dim=-1) <= n * PIXEL / 8.0
    halves = tuple(
        Volume(filtered(h.values, passing.double()).float(), PIXEL)
        for h in noisy_halves(white(n, 3), noise=0.1, pixel_size_A=PIXEL)
    )
    values = measured((halves[0], halves[1]), LocalResolutionSettings(), resolution_A=8.0).values
    assert float(values[values > 0].min()) >= 8.0 - 1e-4


def test_crossings_are_linear_between_shells():
    """Between 0.9 and 0.1, one half lies in the middle; a curve that never falls gives the last shell."""
    frequency = torch.arange(5).float()
    curves = torch.tensor([[1, 1, 0.9, 0.1, 0.8], [1, 1, 1, 1, 1], [1, 0.1, 0.9, 0.5, 0.1]])
    torch.testing.assert_close(first_crossing(frequency, curves, 0.5), torch.tensor([2.5, 4.0, 3.0]))


def test_unusable_input_is_refused():
    """An empty mask, another box or a threshold of 1 are named."""
    halves = noisy_halves(white(16, 0), noise=1.0, pixel_size_A=PIXEL)
    settings = LocalResolutionSettings()
    empty = Volume(torch.zeros(16, 16, 16).double(), PIXEL)
    mask = Volume(torch.ones(16, 16, 16).double(), PIXEL)
    with pytest.raises(BadInput, match="nowhere above one half"):
        list(local_resolution(*halves, empty, settings, resolution_A=8.0))
    with pytest.raises(BadInput, match="16, 16 and 15"):
        list(local_resolution(*halves, Volume(white(15, 0), PIXEL), settings, resolution_A=8.0))
    wrong = dataclasses.replace(settings, local_threshold=1.0)
    with pytest.raises(BadInput, match="threshold"):
        list(local_resolution(*halves, mask, wrong, resolution_A=8.0))
