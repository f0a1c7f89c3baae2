"""Samples in physical units."""

import math

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.inference.prior_samples import SampleSettings, sample_chains, sample_maps, sample_triplanes
from cryorbit.models.point_prior import PointPrior, PointPriorShape
from cryorbit.models.triplane_prior import TriplanePrior, TriplanePriorShape
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape

HEUN = 0.02
"""Relative error of a standard deviation from 40 deterministic steps (`test_prior_sampling`)."""
FIVE_STANDARD_ERRORS = 5.0
PLAIN = SampleSettings(steps=40, churn=0.0, highest=40.0)


def silent_chains() -> PointPrior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PointPrior(PointPriorShape(hidden=4, layers=1))


def test_a_silent_prior_makes_chains_of_the_size_the_law_says():
    """Whose network says nothing is a Gaussian of the law's radius of gyration: angstrom out, whatever the latent unit."""
    x = sample_chains(silent_chains(), [30, 20], count=64, settings=PLAIN)
    assert x.shape == (64, 50, 3)
    assert float(x.mean(1).abs().max()) < 1e-4
    square = x.square().sum(-1).mean(1)
    expected = (2.2 * 50**0.38) ** 2 * 49 / 50  # one point less: no centre of mass
    error = FIVE_STANDARD_ERRORS * float(square.std()) / 8
    assert abs(float(square.mean()) - expected) < error + 2 * HEUN * expected


def test_a_silent_prior_makes_white_maps_of_its_scale():
    """density_scale times sigma_data, in the box and voxels asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = VolumePriorShape(
            channels=(8,), box=8, density_scale=0.3, sigma_data=2.0, voxel_size_A=(2.0, 4.0)
        )
        prior = VolumePrior(shape)
    found = sample_maps(prior, count=4, voxel_size_A=3.0, box=9, settings=PLAIN)
    assert [v.box for v in found] == [9] * 4
    assert found[0].pixel_size_A == 3.0
    values = torch.stack([v.values for v in found])
    error = FIVE_STANDARD_ERRORS / math.sqrt(2 * values.numel()) + HEUN
    assert float(values.std()) == pytest.approx(0.6, rel=error)


def test_the_seed_decides():
    """The same again, another with another seed, and churn is what it says."""
    prior, short = silent_chains(), SampleSettings(steps=4)
    first = sample_chains(prior, [8], count=1, settings=short)
    assert torch.equal(sample_chains(prior, [8], count=1, settings=short), first)
    assert not torch.equal(
        sample_chains(prior, [8], count=1, settings=SampleSettings(steps=4, seed=1)), first
    )
    assert not torch.equal(
        sample_chains(prior, [8], count=1, settings=SampleSettings(steps=4, churn=0.0)), first
    )


def test_nothing_is_refused():
    with pytest.raises(BadInput, match="0 molecules"):
        sample_chains(silent_chains(), [8], count=0)
    with pytest.raises(BadInput, match="0 maps"):
        sample_maps(VolumePrior(VolumePriorShape(channels=(8,))), count=0, voxel_size_A=3.0)


def planes_prior(**units) -> TriplanePrior:
    shape = TriplanePriorShape(
        box=8, voxel_size_A=4.0, resolution_A=10.0, features=2, hidden=8, channels=(8,), **units
    )
    return TriplanePrior(shape, generator=torch.Generator().manual_seed(0))


def test_tri_planes_are_sampled_in_volts_on_the_grid_asked_for():
    """Twice the density_scale, twice the map; other voxels show the same density; a coarser resolution is a B-factor."""
    how = SampleSettings(steps=6)
    one, again = sample_triplanes(planes_prior(), count=2, settings=how)
    two = sample_triplanes(planes_prior(density_scale=2.0), count=2, settings=how)
    torch.testing.assert_close(two[1].values, 2 * again.values)
    assert (one.box, one.pixel_size_A) == (8, 4.0)
    fine = sample_triplanes(planes_prior(), count=2, voxel_size_A=2.0, settings=how)[0]
    assert (fine.box, fine.pixel_size_A) == (16, 2.0)
    torch.testing.assert_close(fine.values[::2, ::2, ::2], one.values, rtol=0, atol=1e-5)
    coarse = sample_triplanes(planes_prior(), count=2, resolution_A=16.0, settings=how)[0]
    k = 1 / 32.0  # first Fourier term of 8 voxels of 4 A
    ratio = torch.fft.rfftn(coarse.values)[0, 0, 1] / torch.fft.rfftn(one.values)[0, 0, 1]
    assert abs(complex(ratio)) == pytest.approx(math.exp(-(16.0**2 - 10.0**2) * k**2), rel=1e-3)


def test_tri_planes_that_cannot_be_sampled_are_refused():
    with pytest.raises(BadInput, match="1 or more"):
        sample_triplanes(planes_prior(), count=0)
    with pytest.raises(BadInput, match="finer"):
        sample_triplanes(planes_prior(), count=1, resolution_A=8.0)
