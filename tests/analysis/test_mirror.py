"""Laws of mirror symmetry: a symmetrised map shows its plane, a handed one does not, and no frame is special."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from cryorbit.analysis.mirror import mirror_symmetry
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from physics_models import GaussianBlobs, uniform_rotations

BOX = 32
READS = 0.01
"""Trilinear reads of the padded transform: a symmetric map correlates 0.998 with itself."""
NORMAL = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)


@lru_cache(maxsize=1)
def blobs() -> GaussianBlobs:
    return GaussianBlobs.random(30, radius_px=9.0, sigma_px=1.3, seed=4)


def volume(centre_px, weight) -> Volume:
    return Volume(GaussianBlobs(centre_px, weight, 1.3).values(BOX), 2.0)


@lru_cache(maxsize=4)
def symmetric(offset_px: float) -> Volume:
    """The blobs and their reflections in the plane n.x = offset."""
    centre, weight = blobs().centre_px, blobs().weight
    along = centre @ NORMAL - offset_px
    return volume(torch.cat((centre, centre - 2 * along[:, None] * NORMAL)), torch.cat((weight, weight)))


@pytest.mark.parametrize("offset_px", [0.0, 0.8])
def test_a_symmetrised_map_shows_its_plane(offset_px):
    """V + M V correlates 1 with its reflection, wherever the map has power, and the plane comes out with its offset."""
    found = mirror_symmetry(symmetric(offset_px))
    assert found.correlation > 1 - READS
    assert float(found.curve.correlation[:10].min()) > 0.95  # Gaussians leave nothing beyond
    assert abs(float(found.normal @ NORMAL)) > 0.9995
    assert found.offset_A == pytest.approx(2.0 * offset_px, abs=0.3)
    assert found.typical < 0.9


def test_a_handed_map_has_no_plane():
    """A map of one hand agrees with its best reflection at low resolution only."""
    found = mirror_symmetry(volume(blobs().centre_px, blobs().weight))
    assert found.correlation < 0.9
    assert found.agrees_to_A() > 4 * 2.0
    assert found.typical <= found.correlation


def test_no_frame_is_special():
    """A turned map has the same best correlation, and its plane turned along."""
    turn = uniform_rotations(1, seed=8)[0]
    centre, weight = blobs().centre_px, blobs().weight
    here, there = mirror_symmetry(volume(centre, weight)), mirror_symmetry(volume(centre @ turn.T, weight))
    assert there.correlation == pytest.approx(here.correlation, abs=READS)
    assert abs(float((turn @ here.normal) @ there.normal)) > 0.99


def test_the_mirror_image_of_a_map_is_no_different():
    """Scale, sign of the background and hand leave the correlation alone."""
    centre, weight = blobs().centre_px, blobs().weight
    here = mirror_symmetry(volume(centre, weight), radius_A=24.0)
    other = volume(centre * centre.new_tensor([1.0, 1.0, -1.0]), weight)
    there = mirror_symmetry(Volume(3.0 * other.values + 1.0, 2.0), radius_A=24.0)
    assert there.correlation == pytest.approx(here.correlation, abs=READS)


def test_bad_lengths_and_flat_maps_are_refused():
    """A radius of 0 and a map without density are no input."""
    with pytest.raises(BadInput, match="radius_A"):
        mirror_symmetry(volume(blobs().centre_px, blobs().weight), radius_A=0.0)
    with pytest.raises(BadInput, match="flat"):
        mirror_symmetry(Volume(torch.ones(16, 16, 16), 2.0))
