"""The Wiener filter of a mean spectrum: exact for Gaussian maps of that spectrum, whatever box and voxel."""

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.models.map_spectrum import MapSpectrum, measure_spectrum
from laws import ROUND_OFF

FALLING = MapSpectrum(tuple(2e3 * 10 ** (-0.08 * i) for i in range(20)), 0.01)
STATISTICS = 0.1
"""Relative, of variances to which some hundred strong Fourier terms contribute; fixed seeds."""


def maps(spectrum: MapSpectrum, b: int, box: int, size: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Gaussian maps whose Fourier terms have the spectrum's variance."""
    white = torch.randn(b, box, box, box, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root = spectrum.variance(box, size, limit[:, None]).sqrt()
    dims = (-3, -2, -1)
    return torch.fft.irfftn(torch.fft.rfftn(white, dim=dims) * root, s=(box,) * 3, dim=dims)[:, None]


@pytest.mark.parametrize("box", [15, 16])
def test_the_filter_errs_by_as_much_as_it_says(box):
    """For maps of the spectrum: spread, into and out are the standard deviations of estimate, noisy map and error."""
    size = torch.tensor([3.0, 4.0], dtype=torch.float64).repeat_interleave(16)
    limit = torch.full((32,), 4.0, dtype=torch.float64)
    sigma = torch.tensor([0.05, 0.3], dtype=torch.float64).repeat(16)
    clean = maps(FALLING, 32, box, size, limit)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy = clean + sigma.view(-1, 1, 1, 1, 1) * noise
    found = FALLING.filter(noisy, sigma, size, limit[:, None])
    for value, stated in (
        (found.estimate, found.spread),
        (noisy, 1 / found.into),
        (found.estimate - clean, found.out),
    ):
        ratio = value.square().mean((1, 2, 3, 4)) / stated**2
        assert abs(float(ratio.mean()) - 1) < STATISTICS


def test_a_white_spectrum_is_the_plain_preconditioning():
    """d^2 / (d^2 + s^2) x, spread and error as in Karras et al. 2022."""
    x = torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma, one = torch.tensor([0.5, 3.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    found = MapSpectrum(white=4.0).filter(x, sigma, one, one[:, None])
    gain = 4 / (4 + sigma**2)
    close = {"rtol": 0, "atol": 10 * ROUND_OFF[torch.float64]}
    torch.testing.assert_close(found.estimate, gain.view(-1, 1, 1, 1, 1) * x, **close)
    torch.testing.assert_close(found.out, (gain * sigma**2).sqrt(), **close)
    torch.testing.assert_close(found.spread, (gain * 4).sqrt(), **close)
    torch.testing.assert_close(found.into, (4 + sigma**2).rsqrt(), **close)


def test_a_spectrum_is_found_again_in_maps_of_other_boxes_and_voxels():
    """Measured on maps of two voxel sizes and one low pass, it predicts the variance of a third kind."""
    size = torch.tensor([3.0, 4.0], dtype=torch.float64).repeat_interleave(24)
    limit = torch.full((48,), 4.0, dtype=torch.float64)
    found = measure_spectrum(maps(FALLING, 48, 16, size, limit), size, limit)
    other = torch.tensor([3.5], dtype=torch.float64)
    kind = (20, other, torch.tensor([[9.0]], dtype=torch.float64))
    expected, measured = (s.variance(*kind).sum() for s in (FALLING, found))
    assert abs(float(measured / expected) - 1) < STATISTICS


def test_impossible_spectra_are_refused():
    with pytest.raises(BadInput, match="positive"):
        MapSpectrum((1.0, 0.0))
    with pytest.raises(BadInput, match="without power"):
        measure_spectrum(torch.zeros(1, 1, 8, 8, 8), torch.ones(1), torch.ones(1))
