"""Laws of masks."""

from __future__ import annotations

import pytest
import torch

from cryorbit.analysis.masks import automatic_mask, particle_radius_A, spherical_mask
from cryorbit.data import Volume
from cryorbit.errors import BadInput


def ball(n: int, radius: float, noise: float) -> tuple[Volume, torch.Tensor]:
    x = torch.arange(n) - n // 2
    distance = ((x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).float()).sqrt()
    values = (distance < radius).float()
    return Volume(
        values + noise * torch.randn(n, n, n, generator=torch.Generator().manual_seed(0)), 3.0
    ), distance


@pytest.mark.parametrize("n", [47, 48])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_mask_holds_the_particle_and_little_else(n, noise):
    """1 on the particle, 0 well away from it, values between, with or without noise."""
    volume, distance = ball(n, 10.0, noise)
    mask = automatic_mask(volume)
    assert float(mask.values.min()) >= 0.0
    assert float(mask.values.max()) == 1.0
    assert float(mask.values[distance < 10].min()) > 0.99
    assert float(mask.values[distance > 21].max()) == 0.0
    assert particle_radius_A(mask) == pytest.approx(3.0 * 15, abs=3.0 * 3)


def test_dust_is_left_out():
    """A speck far from the particle does not get a mask of its own."""
    volume, _ = ball(48, 10.0, 0.0)
    volume.values[5:8, 24:27, 24:27] = 2.0
    assert float(automatic_mask(volume).values[6, 25, 25]) == 0.0


def test_sphere_is_a_sphere():
    """The mask depends on the distance from index N // 2 only: no cylinder."""
    volume, distance = ball(32, 5.0, 0.0)
    mask = spherical_mask(volume, radius_A=18.0, edge_A=9.0).values
    assert float(mask[distance <= 6].min()) == 1.0
    assert float(mask[distance >= 9].max()) < 1e-6
    assert torch.equal(mask, mask.permute(2, 0, 1))


def test_a_map_without_density_is_refused():
    """No threshold parts a constant map; a threshold above the maximum leaves nothing."""
    with pytest.raises(BadInput, match="constant"):
        automatic_mask(Volume(torch.zeros(16, 16, 16), 3.0))
    with pytest.raises(BadInput, match="no density above"):
        automatic_mask(ball(32, 5.0, 0.0)[0], threshold=10.0)


@pytest.mark.parametrize("given", [{"low_pass_A": 0.0}, {"dilate_A": -1.0}, {"edge_A": -1.0}])
def test_lengths_that_make_no_sense_are_refused(given):
    """Not replaced by others without a word."""
    values = torch.zeros(16, 16, 16)
    values[6:10, 6:10, 6:10] = 1
    with pytest.raises(BadInput, match="makes no sense"):
        automatic_mask(Volume(values, 2.0), **given)
