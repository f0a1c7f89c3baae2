"""What of two half maps is looked at, and what is handed over when the prior does not suit."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
import torch

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.ssnr import cref
from cryorbit.data import Volume
from cryorbit.fourier.shells import spread_shells
from cryorbit.inference.half_posteriors import HalvesSettings
from cryorbit.inference.posterior import PosteriorSettings
from cryorbit.inference.prior_denoising import denoise_halves, denoising_grid, field_px, weighted
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from gaussian_prior import gaussian_prior

VOXEL_A = 20.0


def half_maps(n: int) -> tuple[Volume, Volume, Volume]:
    """A truth, and two halves of it with white noise."""
    axis = torch.arange(n) - n // 2
    r2 = axis[:, None, None] ** 2 + (axis[:, None] * 1.4) ** 2 + axis**2
    truth = 5 * torch.exp(-r2 / 18.0)
    g = torch.Generator().manual_seed(0)
    first, second = (Volume(truth + 0.5 * torch.randn(n, n, n, generator=g), VOXEL_A) for _ in range(2))
    return Volume(truth, VOXEL_A), first, second


@pytest.mark.parametrize("n", [16, 17])
def test_a_prior_that_does_not_suit_leaves_the_half_maps(n):
    """At a grey scale that is far off the map is the halves' mean times C_ref, exactly, and no spread is told."""
    _, first, second = half_maps(n)
    how = HalvesSettings(gain=0.01, particle_diameter_A=200.0, half_samples=2)
    run = denoise_halves(first, second, gaussian_prior(n), how, PosteriorSettings(samples=2, steps=4))
    found = deque(run, maxlen=1)[0].result
    assert not found.prior_helped
    assert found.spread is None
    mean = torch.stack((first.values, second.values)).double().mean(0)
    shells = cref(fourier_shell_correlation(first, second).correlation.double())
    wanted = torch.fft.irfftn(torch.fft.rfftn(mean) * spread_shells(shells, n=n, ndim=3), s=(n,) * 3)
    torch.testing.assert_close(found.map.values.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [16, 17])
def test_a_half_times_their_fsc_is_nearer_the_truth_than_itself(n):
    """As a Wiener filter has to be; with equal halves nothing is taken away."""
    truth, first, second = half_maps(n)
    for own, raw in zip(weighted((first.values, second.values), VOXEL_A), (first, second), strict=True):
        assert float((own - truth.values).norm()) < 0.5 * float((raw.values - truth.values).norm())
    same, _ = weighted((first.values, first.values), VOXEL_A)
    inside = torch.fft.rfftn(same) - torch.fft.rfftn(first.values)
    assert float(inside[0, 0, : n // 2].abs().max()) < 1e-4 * float(torch.fft.rfftn(first.values).abs().max())


@pytest.mark.parametrize("pixel_A", [0.83, 1.06, 2.0])
def test_what_is_looked_at_grows_with_the_molecule_and_never_jumps(pixel_A):
    """By 2.2 times the radius's step, to the next voxel; holds the molecule with a tenth of room; no more than the map."""
    shape = VolumePriorShape(box=32, voxel_size_A=(2.5, 4.0), resolution_A=(6.0, 12.0), channels=(8,))
    prior = VolumePrior(shape, generator=torch.Generator().manual_seed(0))
    for box in (400, 401):
        volume = Volume(torch.zeros(box, 1, 1).expand(box, box, box), pixel_A)
        sizes = [field_px(volume, prior, float(radius)) for radius in range(20, 120)]
        steps = [b - a for a, b in pairwise(sizes)]
        assert min(steps) >= 0
        assert max(steps) <= 2.2 / pixel_A + 1
        for radius, size in zip(range(20, 120), sizes, strict=True):
            assert size == box or size * pixel_A >= max(2.2 * radius, 32 * 2.5) - pixel_A
    small = field_px(volume, prior, 20.0)
    grid = denoising_grid(Volume(torch.zeros(small, small, small), pixel_A), prior)
    assert grid.box == 32
