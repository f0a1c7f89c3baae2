from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.map_scale import fit_scale, map_for_images, slice_power
from cryorbit.inference.refine import half_disk
from cryorbit.physics.lattice import read_plane
from posed_stacks import PIXEL_A, posed_stack

ROUND_OFF_OF_A_CHAIN = 1e-4
"""Float32 through a resampling, a transform and a fit: a hundred times the round-off of one operation."""
SCALE_ERROR = 0.1
"""Of s: the particle's rim that lies outside the circle of the background, and 400 random poses."""


def _map_and_images(noise=1.0):
    made = posed_stack(400, noise=noise, ctf=True, shift_sd_px=0.5)
    return Volume(made.blobs.values(made.box).float(), PIXEL_A), made.observed


@pytest.mark.parametrize("factor", [7.0, 1e-3])
def test_the_scale_of_the_map_does_not_matter(factor):
    """A map and `factor` times that map are the same once brought to the images."""
    volume, observed = _map_and_images()
    scaled = []
    for given in (volume, replace(volume, values=factor * volume.values)):
        unit = map_for_images(given, box_px=32, field_of_view_A=32 * PIXEL_A)
        found = fit_scale(observed, Lattice(32).to_half(unit.values), radius=12)
        scaled.append(unit.values * found.scale)
    torch.testing.assert_close(
        scaled[1], scaled[0], rtol=ROUND_OFF_OF_A_CHAIN, atol=ROUND_OFF_OF_A_CHAIN * float(scaled[0].max())
    )


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_scale_is_that_of_the_images(noise):
    """1 for projections as they are; where each is divided by its background's deviation, the inverse of that."""
    volume, observed = _map_and_images(noise=noise)
    raw = observed.stack.images[torch.arange(len(observed.stack))]
    expected = float((1 / raw[:, observed.background].std(1)).mean()) if observed.scale_each else 1.0
    found = fit_scale(observed, Lattice(32).to_half(volume.values), radius=12)
    assert abs(found.scale / expected - 1) < SCALE_ERROR
    assert found.standard_error < SCALE_ERROR * found.scale


def test_the_power_of_slices_is_that_of_random_slices():
    """The mean over the grid of rotations agrees with the mean over as many other rotations."""
    half = posed_stack(4).half()
    points = half_disk(12, inner=2)
    from physics_models import uniform_rotations

    kx, ky = (2 * points).unbind(1)
    values = read_plane(half, uniform_rotations(600, seed=3).float(), kx.contiguous(), ky.contiguous())
    power, shell = values.abs().square().mean(0), points.norm(dim=1).round()
    expected = slice_power(half, points)
    for r in shell.unique():
        ratio = float(power[shell == r].mean() / expected[shell == r][0])
        assert abs(ratio - 1) < SCALE_ERROR


def test_a_map_and_images_without_anything_in_common_are_refused():
    """No signal, a constant map, and a map that is not finite: each says what is wrong."""
    volume, observed = _map_and_images()
    noise = replace(observed, noise_power=observed.total_power)
    with pytest.raises(BadInput, match="no signal"):
        fit_scale(noise, Lattice(32).to_half(volume.values), radius=12)
    with pytest.raises(BadInput, match="constant"):
        map_for_images(Volume(torch.ones(8, 8, 8), 4.0), box_px=8, field_of_view_A=32.0)
    with pytest.raises(BadInput, match="not finite"):
        map_for_images(Volume(torch.full((8, 8, 8), torch.nan), 4.0), box_px=8, field_of_view_A=32.0)
