"""What a refinement's references keep of the particle: its ends, where its radius was measured on shifted images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import RadiusFrom
from cryorbit.inference.start_maps import ROOM, support
from posed_stacks import posed_stack

ENDS = 1.1
"""Of the measured radius: within it nothing of a long molecule may go (decision 14)."""


@pytest.mark.parametrize("box", [48, 49])
def test_the_support_leaves_a_long_molecule_its_ends(box):
    """1 to 1.1 times a measured radius or 0.99 times a given one, 0.9 of a sharp rim's; 0 from 1.1 times ROOM on."""
    n = box + box % 2
    radius = 0.32 * n  # a tenth of it is more than the 1.5 voxels that the edge has at the least
    seen = replace(posed_stack(4, box=box).observed, particle_radius_px=radius * box / n)
    axis = torch.arange(n) - n // 2
    size = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    inner_of: dict[RadiusFrom, float] = {"variance": ENDS, "user": 0.99, "rim": 0.9}
    for source, inner in inner_of.items():
        mask = support(Lattice(n), replace(seen, radius_from=source))
        assert float(mask[size < 0.999 * inner * radius].min()) == 1
        assert float(mask[size > 1.001 * 1.1 * ROOM[source] * radius].max()) == 0


@pytest.mark.parametrize("box", [48, 49])
def test_the_support_follows_a_particle_that_lies_elsewhere(box):
    """The ball's centre of mass is the particle's middle, on a lattice of half the samples too."""
    centre = (3.0, -2.0, 1.0)
    seen = replace(posed_stack(4, box=box).observed, particle_radius_px=9.0, centre_px=centre)
    for n in (box + box % 2, 24):
        mask = support(Lattice(n), seen).double()
        axis = torch.arange(n).double() - n // 2
        for dim, c in zip((2, 1, 0), centre, strict=True):
            line = mask.sum([d for d in range(3) if d != dim])
            assert abs(float(line @ axis / line.sum()) * box / n - c) < 0.01
