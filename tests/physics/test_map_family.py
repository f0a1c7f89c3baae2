from __future__ import annotations

import pytest
import torch

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.physics.interpolation import gather
from cryorbit.physics.map_family import MapLattice
from cryorbit.physics.project import prepare
from laws import ROUND_OFF

SINGLE = 10 * ROUND_OFF[torch.float32]
"""Relative: sums of a few thousand float32 terms."""


def some_points(box: int, n: int = 500) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    points = torch.randn(n, 3, generator=g)
    radius = (box - 1.1) * torch.rand(n, 1, generator=g)
    points = radius * points / points.norm(dim=1, keepdim=True)
    points[0] = 0
    points[1, 0] = -0.0
    return points


@pytest.mark.parametrize("box", [14, 15])
def test_every_map_is_read_as_if_it_were_alone(box):
    g = torch.Generator().manual_seed(2)
    maps = torch.randn(3, box, box, box, generator=g)
    points = some_points(box)
    lattice = MapLattice(box)
    values = lattice.stencil(points).read(lattice.rows(maps))
    for i, one in enumerate(maps):
        alone = torch.view_as_real(gather(prepare(Volume(one, 1.0)).half, points))
        torch.testing.assert_close(values[..., i], alone, atol=SINGLE * float(alone.abs().max()), rtol=0)


@pytest.mark.parametrize("box", [14, 15])
def test_adding_is_the_adjoint_of_reading(box):
    """<read(maps), v> = <maps, add(v)>, Friedel mates and the plane x = 0 among the samples."""
    g = torch.Generator().manual_seed(3)
    maps = torch.randn(2, box, box, box, generator=g)
    lattice = MapLattice(box)
    stencil = lattice.stencil(some_points(box))
    read = stencil.read(lattice.rows(maps))
    other = torch.randn(read.shape, generator=g)
    forward = float((read.double() * other.double()).sum())
    back = float((lattice.maps(stencil.add(other.clone())).double() * maps.double()).sum())
    scale = float(read.norm() * other.norm())
    assert abs(forward - back) < SINGLE * scale


def test_weights_are_shared_out_whole():
    lattice = MapLattice(12)
    stencil = lattice.stencil(some_points(12))
    values = torch.rand(500)
    torch.testing.assert_close(stencil.weight(values).sum(), values.sum(), rtol=SINGLE, atol=0)


def test_samples_off_the_lattice_are_refused():
    with pytest.raises(BadInput, match="lattice units"):
        MapLattice(12).stencil(torch.tensor([[11.0, 0.0, 0.0]]))
