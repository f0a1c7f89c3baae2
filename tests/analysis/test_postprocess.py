"""Laws of postprocessing as a whole."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from cryorbit.analysis.fsc import phase_randomised_fsc
from cryorbit.analysis.masks import automatic_mask, spherical_mask
from cryorbit.analysis.postprocess import PostprocessSettings, mask_warnings, postprocess
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import apply_b_factor
from cryorbit.fourier.grid import radius_grid
from half_maps import noisy_halves, radius_px, white

PIXEL = 2.0


def phantom(n: int) -> torch.Tensor:
    """Texture in a ball, with the fall-off of a real map."""
    ball = (1.0 + white(n, 0)) * (radius_px(n) < 0.25 * n)
    return apply_b_factor(ball, b_factor_A2=80.0, pixel_size_A=PIXEL, ndim=3)


def masks(n: int, first: Volume) -> dict[str, Volume]:
    """Tight and wide, soft and hard, one cut from the noise itself."""
    hard = Volume((radius_px(n) < 0.2 * n).double(), PIXEL)
    return {
        "tight": spherical_mask(first, radius_A=0.12 * n * PIXEL, edge_A=4.0),
        "wide": spherical_mask(first, radius_A=0.4 * n * PIXEL, edge_A=8.0),
        "hard": hard,
        "from the noise": automatic_mask(first),
    }


@pytest.mark.parametrize("n", [47, 48])
@pytest.mark.parametrize("name", ["tight", "wide", "hard", "from the noise"])
def test_white_noise_has_no_corrected_correlation(n, name):
    """Independent noise: the corrected FSC is 0 within 4.5 sd in every corrected shell, whatever the mask."""
    halves = noisy_halves(torch.zeros(n, n, n).double(), noise=1.0, pixel_size_A=PIXEL)
    mask = masks(n, halves[0])[name]
    curves = phase_randomised_fsc(*halves, mask, torch.Generator().manual_seed(0))
    assert curves.randomised_from == 1
    m2 = mask.values.square()
    share = float(m2.sum().square() / m2.square().sum()) / n**3  # of the coefficients that stay independent
    shell = torch.arange(3, n // 2 + 1).double()
    # Correlation and randomised correlation each have variance 1 / (4 pi r^2 share); their difference, twice it.
    sd = (2.0 / (4 * math.pi * shell**2 * share)).sqrt()
    corrected = curves.corrected.correlation[3:]
    assert float((corrected.abs() / sd).max()) < 4.5
    assert abs(float((corrected / sd).mean())) < 4.5 / math.sqrt(len(shell))
    assert curves.corrected.resolution_A() > 0.2 * n * PIXEL


@pytest.mark.parametrize("n", [47, 48])
def test_a_phantom_is_masked_resolved_and_sharpened(n):
    """The mask holds the particle, the map gains contrast at fine detail, and nothing lies beyond the low-pass."""
    signal = phantom(n)
    halves = noisy_halves(signal, noise=0.05 * float(signal.std()), pixel_size_A=PIXEL)
    found = postprocess(*halves, PostprocessSettings(fit_from_A=20.0))
    assert float(found.mask.values[radius_px(n) < 0.22 * n].min()) > 0.9
    assert float(found.mask.values[radius_px(n) > 0.45 * n].max()) < 0.01
    assert found.fit is not None
    assert found.b_factor_A2 == found.fit.b_factor_A2 < 0
    power = torch.fft.rfftn(found.map.values).abs().square()
    beyond = radius_grid(n, ndim=3) > n * PIXEL / found.low_pass_A + 1.5
    assert float(power[beyond].sum()) < 1e-9 * float(power.sum())
    torch.testing.assert_close(found.masked.values, found.map.values * found.mask.values)
    assert len(found.cones.axis) == 96


def test_a_given_b_factor_is_applied_as_it_is():
    """No fit, no opinion: the number given is the number used."""
    signal = phantom(32)
    halves = noisy_halves(signal, noise=0.1 * float(signal.std()), pixel_size_A=PIXEL)
    found = postprocess(*halves, PostprocessSettings(b_factor_A2=-33.0))
    assert found.b_factor_A2 == -33.0
    assert not [w for w in found.warnings if "B-factor" in w]


def test_too_coarse_a_map_is_not_sharpened_and_says_so():
    """Without shells between 10 A and the resolution there is no fit: B is 0 and a warning tells."""
    coarse = Volume(phantom(32), 8.0)
    halves = noisy_halves(coarse.values, noise=0.1 * float(coarse.values.std()), pixel_size_A=8.0)
    found = postprocess(*halves, PostprocessSettings())
    assert found.fit is None
    assert found.b_factor_A2 == 0.0
    assert any("Too few shells" in w for w in found.warnings)


@pytest.mark.parametrize("n", [31, 32])
def test_curves_that_reach_nyquist_are_told(n):
    """Equal half maps: the pixel size is the limit, and the warning says it."""
    half = Volume(white(n, 0) * (radius_px(n) < 0.25 * n), PIXEL)
    found = postprocess(half, half, PostprocessSettings(b_factor_A2=0.0))
    assert any("pixel size sets the limit" in w for w in found.warnings)
    assert found.resolution_A == pytest.approx(n * PIXEL / (n // 2))


def test_a_mask_that_correlates_noise_is_told():
    """A mask of a few voxels: phase-randomised maps correlate at the final resolution, or nothing is resolved."""
    n = 48
    signal = 20.0 * torch.exp(-((radius_px(n) / 3.0) ** 2))
    halves = noisy_halves(signal + 0.3 * white(n, 0), noise=1.0, pixel_size_A=PIXEL)
    tight = Volume((radius_px(n) < 3.5).double(), PIXEL)
    found = postprocess(*halves, PostprocessSettings(b_factor_A2=0.0), mask=tight)
    assert found.curves.mask_too_tight()
    assert any("The mask alone correlates" in w for w in found.warnings)
    assert any("soft edge" in w for w in found.warnings)


def test_a_mask_of_the_whole_box_is_told():
    """It keeps no solvent out."""
    whole = Volume(torch.ones(16, 16, 16), PIXEL)
    assert any("fills 100% of the box" in w for w in mask_warnings(whole))


def test_what_cannot_be_postprocessed_is_refused():
    """Halves that agree nowhere, masks of another box or scale."""
    settings = PostprocessSettings()
    first, second = noisy_halves(torch.zeros(24, 24, 24).double(), noise=1.0, pixel_size_A=PIXEL)
    ball = spherical_mask(first, radius_A=20.0)
    opposite = Volume(-first.values, PIXEL)
    with pytest.raises(BadInput, match="agree nowhere"):
        postprocess(first, opposite, settings, mask=ball)
    with pytest.raises(BadInput, match="mask has box 23"):
        postprocess(first, second, settings, mask=Volume(torch.ones(23, 23, 23), PIXEL))
    with pytest.raises(BadInput, match="wanted 0 to 1"):
        postprocess(first, second, settings, mask=dataclasses.replace(ball, values=255 * ball.values))
