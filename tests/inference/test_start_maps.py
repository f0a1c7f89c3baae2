"""What a refinement's references keep of the particle: its ends, where its radius was measured on shifted images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cryorbit.inference.lattice import Lattice
from cryorbit.inference.start_maps import ROOM, support
from posed_stacks import posed_stack

ENDS = 1.1
"""Of the measured radius: within it nothing of a long molecule may go (decision 14)."""


@pytest.mark.parametrize("box", [48, 49])
def test_the_support_leaves_a_long_molecule_its_ends(box):
    """1 to 1.1 times a measured radius, 0 from 1.1 times ROOM on; to 0.9 and from 1.1 times the radius of a sharp rim."""
    n = box + box % 2
    radius = 0.32 * n  # a tenth of it is more than the 1.5 voxels that the edge has at the least
    seen = replace(posed_stack(4, box=box).observed, particle_radius_px=radius * box / n)
    axis = torch.arange(n) - n // 2
    size = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    for sharp, inner, outer in ((False, ENDS, 1.1 * ROOM), (True, 0.9, 1.1)):
        mask = support(Lattice(n), replace(seen, rim_is_sharp=sharp))
        assert float(mask[size < 0.999 * inner * radius].min()) == 1
        assert float(mask[size > 1.001 * outer * radius].max()) == 0
