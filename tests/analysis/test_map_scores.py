"""Scores of sampled maps against a truth that is drawn as the samples are."""

from __future__ import annotations

import pytest
import torch

from cryorbit.analysis.map_scores import interval_coverage, pearson, spread_error_correlation
from cryorbit.errors import BadInput


def calibrated(s: int, *, too_sure: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples, truth and deviation of a Gaussian posterior, samples `too_sure` times too near to its mean."""
    g = torch.Generator().manual_seed(s)
    mean, sd = torch.randn(20, 20, 20, generator=g), torch.rand(20, 20, 20, generator=g) + 0.1
    draw = torch.randn(s + 1, 20, 20, 20, generator=g)
    return mean + sd * draw[1:] / too_sure, mean + sd * draw[0], sd


@pytest.mark.parametrize("samples", [3, 8, 60])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_a_calibrated_posterior_hold_their_level(samples, level):
    """However few the samples; 8,000 voxels have a binomial deviation below 0.006."""
    maps, truth, _ = calibrated(samples)
    assert abs(interval_coverage(maps, truth, level=level) - level) < 0.02


def test_a_posterior_too_sure_of_itself_covers_less():
    maps, truth, sd = calibrated(8, too_sure=3.0)
    assert interval_coverage(maps, truth) < 0.6
    mask = (sd > 0.6).float()
    assert interval_coverage(maps, truth, mask=mask) == pytest.approx(
        float(
            ((truth - maps.mean(0)).abs() <= 1.8946 * (9 / 8) ** 0.5 * maps.std(0))[mask > 0].double().mean()
        ),
        abs=2e-3,
    )


def test_spread_that_tells_error_is_seen_with_its_sign():
    maps, truth, _ = calibrated(60)
    told = spread_error_correlation(maps, truth)
    inverse = maps.mean(0) + (maps - maps.mean(0)) / maps.std(0).square()
    assert 0.3 < told < 1
    assert spread_error_correlation(inverse, truth) < -0.3
    assert spread_error_correlation(maps * 0, truth) == 0


def test_pearson_does_not_see_scale_and_offset_and_keeps_to_the_mask():
    a = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(0))
    assert pearson(a, 3 * a + 7) == pytest.approx(1)
    assert pearson(a, -a) == pytest.approx(-1)
    assert pearson(a, torch.ones_like(a)) == 0
    mask = (torch.arange(9) < 4).float()[:, None, None].expand(9, 9, 9)
    b = torch.where(mask > 0, a, -a)
    assert pearson(a, b, mask=mask) == pytest.approx(1)
    assert pearson(a, b) < 0.5


def test_what_cannot_be_scored_is_refused():
    a = torch.zeros(1, 4, 4, 4)
    with pytest.raises(BadInput, match="two samples"):
        interval_coverage(a, a[0])
    with pytest.raises(BadInput, match="no spread"):
        spread_error_correlation(a, a[0])
    with pytest.raises(BadInput, match="another mask"):
        pearson(a, a, mask=a)
