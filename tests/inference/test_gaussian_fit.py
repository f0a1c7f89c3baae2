from __future__ import annotations

import pytest
import torch

from cryorbit.analysis.gaussian_seeds import seed_gaussians
from cryorbit.data import Gaussians, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.gaussian_fit import GaussianFit, GaussianFitSettings, fit_gaussians
from cryorbit.physics.splat import gaussians_to_map

PIXEL = 3.0
TOTAL = 5e-2  # relative; the origin is one coefficient of thousands in the loss: measured 2.4e-2


def known(n: int = 30, *, box: int = 28) -> tuple[Gaussians, Volume]:
    """A lumpy particle of known Gaussians, and its map."""
    g = torch.Generator().manual_seed(3)
    place = 4.0 * PIXEL * torch.randn(n, 3, generator=g).clamp(-2, 2)
    cloud = Gaussians(place, 50 + 50 * torch.rand(n, generator=g), torch.full((n,), 1.3 * PIXEL))
    return cloud, gaussians_to_map(cloud, box=box, pixel_size_A=PIXEL)


def fitted(volume: Volume, **settings: float) -> GaussianFit:
    *_, last = fit_gaussians(volume, GaussianFitSettings(**settings))
    assert isinstance(last.result, GaussianFit)
    return last.result


@pytest.mark.parametrize("box", [28, 29])
def test_a_map_of_known_gaussians_is_recovered(box):
    """The FSC with the map stays above 0.9 to the wanted resolution, and the integral is that of the truth."""
    truth, volume = known(box=box)
    fit = fitted(volume, count=40, most=200, resolution_A=3 * PIXEL)
    assert fit.reached
    assert fit.resolution_A <= 3 * PIXEL
    shells = fit.curve.frequency_per_A <= 1 / (3 * PIXEL)
    assert float(fit.curve.correlation[shells].min()) > 0.9
    assert (
        abs(float(fit.gaussians.amplitude.sum() / truth.amplitude.sum()) - 1) < TOTAL
    )  # DC is one shell of many


def test_too_few_gaussians_are_joined_by_more():
    """Rounds go on until the wanted resolution is there, each with more, the last record alone with a result."""
    records = list(fit_gaussians(known()[1], GaussianFitSettings(count=4, most=200, growth=3.0, steps=40)))
    counts = [r.metrics["gaussians"] for r in records if "gaussians" in r.metrics]
    assert len(counts) > 1
    assert counts == sorted(counts)
    assert [r.result is not None for r in records] == [False] * (len(records) - 1) + [True]
    assert records[-1].result.reached


def test_a_fit_that_runs_out_of_gaussians_says_so():
    fit = fitted(known()[1], count=3, most=3, steps=20)
    assert not fit.reached
    assert fit.resolution_A > 3 * PIXEL
    assert len(fit.gaussians) == 3


def test_the_same_seed_gives_the_same_fit():
    volume = known()[1]
    first, second = (fitted(volume, count=10, most=10, steps=5).gaussians for _ in range(2))
    assert torch.equal(first.position_A, second.position_A)


@pytest.mark.parametrize("box", [28, 29])
def test_seeds_share_out_the_density(box):
    """Seeds lie in the particle, their amplitudes add up to the density above the level, their centre is its centre."""
    volume = known(box=box)[1]
    level = 0.1 * float(volume.values.max())
    seeds = seed_gaussians(volume, count=25, generator=torch.Generator().manual_seed(0), level=level)
    solid = volume.values.clamp_min(0) * (volume.values > level)
    assert float(seeds.amplitude.sum()) == pytest.approx(float(solid.sum()) * PIXEL**3, rel=1e-4)
    axis = (torch.arange(box) - box // 2) * PIXEL
    centre = (
        torch.stack([(solid.sum(other) * axis).sum() for other in ((0, 1), (0, 2), (1, 2))]) / solid.sum()
    )
    mine = (seeds.amplitude[:, None] * seeds.position_A).sum(0) / seeds.amplitude.sum()
    torch.testing.assert_close(mine, centre, rtol=0, atol=1e-3)


def test_bad_requests_are_refused():
    volume = known()[1]
    for settings, words in (
        ({"resolution_A": 2.0}, "6 A or coarser"),
        ({"fsc": 1.5}, "fsc 1.5"),
        ({"growth": 0.5}, "growth 0.5"),
        ({"steps": 0}, "at least 1"),
        ({"level": 1e9}, "lower level"),
    ):
        with pytest.raises(BadInput, match=words):
            fitted(volume, **settings)
