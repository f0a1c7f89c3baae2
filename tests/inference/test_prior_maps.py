"""Maps beside a posterior: the error that the data-only map states is the one it makes."""

from __future__ import annotations

import pytest
import torch

from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.prior_maps import cut, data_only
from cryorbit.models.map_spectrum import MapSpectrum

VOXEL_A, RESOLUTION_A = 3.0, 6.0
SPECTRUM = MapSpectrum(tuple(1e5 * 0.6**k for k in range(20)))
DRAWS = 40
SCATTER = 0.05
"""Of the error's root mean square over the draws, relative: some thousand independent terms, 3 / sqrt(2 x 2,000)."""


@pytest.mark.parametrize("n", [11, 12])
@pytest.mark.parametrize("cutoff_A", [None, 14.0])
def test_the_stated_deviation_is_that_of_the_map_from_the_truth(n, cutoff_A):
    """Of maps drawn from the spectrum under white noise, both through the same low pass."""
    g = torch.Generator().manual_seed(n)
    power = SPECTRUM.variance(n, torch.tensor([VOXEL_A]), torch.tensor([[RESOLUTION_A]]))[0]
    weight = 4.0 / float(power.mean())
    squares, stated = 0.0, 0.0
    for _ in range(DRAWS):
        white, noise = (torch.randn(n, n, n, generator=g) for _ in range(2))
        truth = torch.fft.irfftn(torch.fft.rfftn(white) * power.sqrt(), s=(n,) * 3)
        seen = truth + weight**-0.5 * noise
        data = TwoVolumes(weight * seen, torch.full_like(power, weight), None, 0.0, 1.0, VOXEL_A)
        found = data_only(data, SPECTRUM, resolution_A=RESOLUTION_A, cutoff_A=cutoff_A)
        squares += float((found.map - cut(truth, cutoff_A, VOXEL_A)).square().mean()) / DRAWS
        stated = found.deviation
    assert squares**0.5 == pytest.approx(stated, rel=SCATTER)
