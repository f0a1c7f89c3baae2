from __future__ import annotations

import pytest
import torch

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.fsc_area import PERFECT, fsc_area, shell_correlations
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.shells import spread_shells


def noise(n: int, m: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [16, 17])
def test_area_of_a_map_with_itself_with_its_negative_and_with_noise(n):
    """0.5, -0.5 and about 0, for odd and even boxes; grey level scale does not enter."""
    maps = noise(n)
    torch.testing.assert_close(fsc_area(maps, 3.0 * maps), torch.full((3,), PERFECT, dtype=torch.float64))
    torch.testing.assert_close(fsc_area(maps, -maps), torch.full((3,), -PERFECT, dtype=torch.float64))
    # the inner shells hold tens of samples: a standard error of about 0.02 of the area
    assert fsc_area(maps, noise(n, seed=1)).abs().max().item() < 0.1


@pytest.mark.parametrize("n", [16, 17])
def test_area_is_that_of_the_curve(n):
    """Every curve is that of `analysis.fsc`; agreement up to half Nyquist only is about half the area."""
    a, b = noise(n), noise(n) + noise(n, seed=1)
    for curve, x, y in zip(shell_correlations(a, b), a, b, strict=True):
        expected = fourier_shell_correlation(Volume(x, 1.0), Volume(y, 1.0)).correlation
        torch.testing.assert_close(curve, expected, rtol=0, atol=1e-10)
    shells = torch.zeros(n // 2 + 1, dtype=torch.float64)
    shells[:5] = 1
    kept = torch.fft.irfftn(
        torch.fft.rfftn(a, dim=(1, 2, 3)) * spread_shells(shells, n=n, ndim=3), s=(n,) * 3
    )
    curve = shell_correlations(kept, a)
    torch.testing.assert_close(curve[:, :5], torch.ones(3, 5, dtype=torch.float64))
    # 8 shells from 1 to 8: the trapezium rule gives 3.5 of 7; what round-off left of the others correlates at random
    torch.testing.assert_close(
        fsc_area(kept, a), torch.full((3,), 0.25, dtype=torch.float64), rtol=0, atol=0.02
    )


def test_a_mask_takes_away_what_lies_outside():
    """Maps that agree inside a mask and not outside have the perfect area under it alone."""
    mask = torch.zeros(16, 16, 16, dtype=torch.float64)
    mask[4:12, 4:12, 4:12] = 1
    a = noise(16)
    b = torch.where(mask > 0, a, noise(16, seed=1))
    torch.testing.assert_close(fsc_area(a, b, mask=mask), torch.full((3,), PERFECT, dtype=torch.float64))
    assert fsc_area(a, b).max().item() < 0.4


def test_grids_must_agree():
    """Maps of another shape, or a mask of another, are refused."""
    with pytest.raises(BadInput, match="one grid"):
        fsc_area(noise(16), noise(15))
    with pytest.raises(BadInput, match="mask"):
        fsc_area(noise(16), noise(16), mask=torch.ones(15, 15, 15))
