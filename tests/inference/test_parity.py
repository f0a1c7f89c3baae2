"""Laws of the parity kick: it finds each image's hand in a map that mixes the two, and nothing in a map of one hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cryorbit.inference.coarse import KICK_ABOVE, MAP_REGULARISER
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.locate import disk_data
from cryorbit.inference.observations import support_mask
from cryorbit.inference.parity import PosedImages, insert_posed, parity_split
from cryorbit.inference.ring_em import coarse_map
from cryorbit.physics.interpolation import gather
from posed_stacks import PosedStack, posed_stack

RADIUS, N = 8, 400
LATTICE = Lattice(2 * (RADIUS + 3))


@dataclass
class Fixed:
    """Images at the poses of a fixed point of the expectation-maximisation, and the map that these poses make."""

    data: PosedImages
    half: Tensor
    mask: Tensor

    def split(self, seed: int = 0):
        return parity_split(
            self.data,
            self.half,
            LATTICE,
            self.mask,
            radius=RADIUS,
            iterations=12,
            generator=torch.Generator().manual_seed(seed),
        )

    def evidence(self) -> float:
        """Log-likelihood per image that the map explains, the scale of KICK_ABOVE."""
        residual = self.data.values - self.data.ctf * gather(self.half, self.data.at * 2)
        return float((self.data.values.abs().square() - residual.abs().square()).sum(1).mean())


@pytest.fixture(scope="module")
def stack() -> PosedStack:
    return posed_stack(N, noise=3.0, ctf=True, seed=2)


def fixed_point(stack: PosedStack, *, other: Tensor) -> Fixed:
    """Images where `other` is true posed as F R M, M the mirror plane of a map that mixes the hands; the rest as R."""
    rows = torch.arange(N)
    disk = disk_data(stack.observed, rows, stack.observed.transforms(rows), RADIUS)
    normal = torch.nn.functional.normalize(torch.tensor([0.4, -0.7, 0.6]), dim=0)
    mirror = torch.eye(3) - 2 * normal[:, None] * normal
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    rotation = torch.where(other[:, None, None], flip @ stack.rotation @ mirror, stack.rotation)
    phase = stack.shift_px @ disk.points.T * (2 * torch.pi / disk.box)
    at = disk.points[:, :1] * rotation[:, None, 0] + disk.points[:, 1:] * rotation[:, None, 1]
    data = PosedImages(disk.transform * torch.polar(torch.ones_like(phase), phase), disk.ctf, at)
    mask = support_mask(LATTICE.n, 1.15 * stack.observed.particle_radius_px * LATTICE.n / disk.box)
    raw = insert_posed(data, torch.ones(N, dtype=torch.bool), LATTICE, torch.ones(N))
    values = coarse_map(raw, LATTICE, radius=RADIUS, mask=mask, regulariser=MAP_REGULARISER)
    return Fixed(data, LATTICE.to_half(values), mask)


@pytest.mark.parametrize("share", [0.5, 0.35])
def test_the_hand_of_each_image_is_found(stack, share):
    """A map that mixes the hands: the signs agree with the true hands (up to one common sign) above 0.8, with gain."""
    other = torch.rand(N, generator=torch.Generator().manual_seed(3)) < share
    mixed = fixed_point(stack, other=other)
    found = mixed.split()
    agreement = float((torch.where(other, -1.0, 1.0) * found.sign).mean().abs())
    assert (1 + agreement) / 2 > 0.8
    assert found.gain > KICK_ABOVE * mixed.evidence()


def test_a_map_of_one_hand_has_no_such_component(stack):
    """True poses: the gain stays below what would start a kick, whatever the first guess of the signs."""
    right = fixed_point(stack, other=torch.zeros(N, dtype=torch.bool))
    for seed in (0, 1):
        assert right.split(seed).gain < KICK_ABOVE * right.evidence()


def test_the_signed_half_is_a_map_of_one_hand(stack):
    """The images of one sign make a map nearer to the truth's slices than the mixed map: what the kick starts from."""
    other = torch.arange(N) % 2 == 0
    mixed = fixed_point(stack, other=other)
    found = mixed.split()
    if float((found.sign * torch.where(other, -1.0, 1.0)).sum()) < 0:
        sign = -found.sign
    else:
        sign = found.sign
    raw = insert_posed(mixed.data, sign > 0, LATTICE, torch.ones(N))
    kicked = coarse_map(raw, LATTICE, radius=RADIUS, mask=mixed.mask, regulariser=MAP_REGULARISER)
    truth = fixed_point(stack, other=torch.zeros(N, dtype=torch.bool))

    def likeness(half: Tensor) -> float:
        return float((half * truth.half.conj()).real.sum() / (half.norm() * truth.half.norm()))

    assert likeness(LATTICE.to_half(kicked)) > likeness(mixed.half) + 0.02
