from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cryorbit.benchmarks.flex_atoms import carried_atoms, moving_mask
from cryorbit.benchmarks.flex_tasks import FlexData
from cryorbit.data import Atoms, Gaussians, ParticleStack, Pose
from cryorbit.data.particles import MemoryImages
from cryorbit.inference.flex_result import FlexResult
from cryorbit.models.deformation import GaussianModel

STATES, IMAGES, BOX, PIXEL = 21, 630, 48, 2.0
WAY = 12.0  # angstrom, of the lobe that moves along x
STEP = (
    WAY / (STATES - 1) / 2**0.5
)  # angstrom, from state to state: medians over images of two states may be the other


def frame(place: float) -> Atoms:
    """Two lobes of 40 C-alpha atoms; the second goes along y."""
    g = torch.Generator().manual_seed(0)
    position = 4 * torch.randn(80, 3, generator=g)
    position[:40, 0] -= 24
    position[40:, 0] += 24
    position[40:, 1] += WAY * (place - 0.5)
    one = torch.ones(80)
    return Atoms(position, 6 * one.long(), 20 * one, one, atom_name=np.full(80, "CA"))


class Path(GaussianModel):
    """The true motion as a model: z is the place along it."""

    def __init__(self, sign: float) -> None:
        torch.nn.Module.__init__(self)
        self.sign = sign

    def forward(self, z: torch.Tensor) -> Gaussians:
        places = [frame(float(0.5 + self.sign * row[0])).position_A for row in z]
        return Gaussians(torch.stack(places), torch.ones(len(z), 80), torch.full((80,), 3.0))


@pytest.fixture(scope="module")
def data() -> FlexData:
    g = torch.Generator().manual_seed(1)
    state = torch.randint(STATES, (IMAGES,), generator=g)
    place = torch.linspace(0, 1, STATES)
    pose = Pose(torch.eye(3).expand(IMAGES, 3, 3), torch.zeros(IMAGES, 2))
    ids = np.arange(IMAGES).astype(str)
    stack = ParticleStack(
        images=MemoryImages(torch.zeros(IMAGES, BOX, BOX)), pixel_size_A=PIXEL, ids=ids, pose=pose
    )
    atoms = tuple(frame(float(t)) for t in place)
    maps = torch.zeros(STATES, BOX, BOX, BOX)
    return FlexData("made", "path", stack, pose, state, maps, place, torch.zeros(STATES).long(), atoms, 1.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_true_motion_carries_atoms_to_the_true_frames(data, sign):
    """Whichever way the latents count; without motion atoms stay off by the lobe's way."""
    z = sign * (data.coordinate[data.state] - 0.5)[:, None]
    precision = 400.0 * torch.eye(1).expand(IMAGES, 1, 1)
    result = FlexResult(Path(sign), z, precision, data.truth, torch.zeros(IMAGES), 1, BOX, PIXEL)
    moved = carried_atoms(data, result)
    assert moved.most_A < 1.01 * STEP
    still = carried_atoms(data, replace(result, model=Path(0.0)))
    assert still.mean_A == pytest.approx(still.unmoved_mean_A, rel=1e-3)
    assert moved.unmoved_most_A == pytest.approx(WAY / 2**0.5, rel=1e-3)  # half of the atoms move


def test_the_mask_holds_what_moves(data):
    mask = moving_mask(data, STATES // 2)
    middle = BOX // 2
    there, still = middle + round(24 / PIXEL), middle - round(24 / PIXEL)
    assert float(mask[middle, middle, there]) > 0.99
    assert float(mask[..., : still + 1].max()) < 0.01  # x of the lobe that stays, and beyond
