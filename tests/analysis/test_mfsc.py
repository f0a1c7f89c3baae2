"""Laws of the FSC that filters first and masks after."""

import pytest
import torch

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.mfsc import modified_fsc
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid
from cryorbit.fourier.shells import sample_weight

F64 = torch.float64


def _noise(n, seed):
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _ball(n, radius):
    return (radius_grid(n, ndim=3, layout="centred", dtype=F64) < radius).double()


@pytest.mark.parametrize("n", [16, 17])
def test_without_a_mask_it_is_the_smoothed_fsc(n):
    """By Parseval: shell sums with the squared filter as weight."""
    common = _noise(n, 0)
    a, b = common + _noise(n, 1), common + 2 * _noise(n, 2)
    found = modified_fsc(Volume(a, 1.0), Volume(b, 1.0), mask=Volume(torch.ones_like(a), 1.0)).correlation
    fa, fb = torch.fft.rfftn(a), torch.fft.rfftn(b)
    radius = radius_grid(n, ndim=3, layout="half", dtype=F64)
    for shell in range(n // 2 + 1):
        w = torch.exp(-((radius - shell) ** 2)) * sample_weight(n, ndim=3, dtype=F64)
        law = (w * (fa * fb.conj()).real).sum() / (
            (w * fa.abs() ** 2).sum() * (w * fb.abs() ** 2).sum()
        ).sqrt()
        torch.testing.assert_close(found[shell], law)


@pytest.mark.parametrize("n", [32, 33])
def test_a_sharp_mask_does_not_carry_low_frequencies_outwards(n):
    """Equal strong low frequencies, independent weak noise: masking first correlates empty shells, this does not."""
    radius = radius_grid(n, ndim=3, layout="half", dtype=F64)
    shared = torch.fft.irfftn(torch.fft.rfftn(_noise(n, 0)) * (radius < 4), s=(n, n, n))
    a, b = (Volume(20 * shared / shared.std() + _noise(n, seed), 1.0) for seed in (1, 2))
    mask = Volume(_ball(n, 9.5), 1.0)
    masked_first = fourier_shell_correlation(a, b, mask=mask).correlation
    found = modified_fsc(a, b, mask=mask).correlation
    assert (found[:4] > 0.99).all()
    assert masked_first[10:].mean() > 0.3
    assert found[10:].mean().abs() < 0.05


def test_equal_maps_and_senseless_input():
    """1 everywhere for a map and itself; boxes, widths and masks that make no sense are named."""
    volume = Volume(_noise(12, 0), 2.0)
    curve = modified_fsc(volume, volume, mask=Volume(_ball(12, 4.0), 2.0))
    torch.testing.assert_close(curve.correlation, torch.ones(7, dtype=F64))
    assert curve.frequency_per_A[-1].item() == pytest.approx(0.25)
    with pytest.raises(BadInput, match="boxes differ"):
        modified_fsc(volume, volume, mask=Volume(_ball(14, 4.0), 2.0))
    with pytest.raises(BadInput, match="leave something"):
        modified_fsc(volume, volume, mask=Volume(torch.zeros(12, 12, 12, dtype=F64), 2.0))
    with pytest.raises(BadInput, match="width"):
        modified_fsc(volume, volume, mask=volume, width_shells=0.0)
