from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.data import CTF, Gaussians, ParticleStack, Pose, Volume
from cryorbit.data.particles import MemoryImages
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.inference.flex_reconstruction import deformed_reconstruction
from cryorbit.inference.flex_result import FlexResult
from cryorbit.inference.observations import observe
from cryorbit.models.deformation import Deformation, GaussianModel
from cryorbit.physics.backproject import Backprojector
from cryorbit.physics.splat import gaussians_to_map, splat_images
from laws import ROUND_OFF

P = 3.0


class Slide(Deformation):
    """The first half of the Gaussians slides along x by z units."""

    def __init__(self, n: int) -> None:
        super().__init__(1)
        self.n = n

    def forward(self, z: Tensor) -> Tensor:
        out = torch.zeros(len(z), self.n, 3)
        out[:, : self.n // 2, 0] = z
        return out


def two_lobes() -> Gaussians:
    g = torch.Generator().manual_seed(0)
    lobe = 5 * torch.randn(24, 3, generator=g).clamp(-1.5, 1.5)
    position = torch.cat((lobe[:12] + torch.tensor([0.0, 0, 14.0]), lobe[12:] - torch.tensor([0.0, 0, 14.0])))
    return Gaussians(position, torch.full((24,), 200.0), torch.full((24,), 2.5))


def run_of(n: int, box: int, *, sd: float) -> tuple[FlexResult, ParticleStack]:
    """Noisy images of the lobes, one sliding by sd pixels, and the true motion as if it had been learned."""
    g = torch.Generator().manual_seed(1)
    model = GaussianModel(two_lobes(), deformation=Slide(24), gate=None, unit_A=P)
    z = sd * torch.randn(n, 1, generator=g)
    pose = Pose(random_rotations(n, generator=g, dtype=torch.float32), 2 * torch.randn(n, 2, generator=g))
    ctf = CTF.uniform(n, defocus_A=12000.0)
    with torch.no_grad():
        images = splat_images(model(z), pose, ctf, box=box, pixel_size_A=P)
    images = images + 0.5 * torch.randn(images.shape, generator=g)
    ids = np.array([f"{i + 1}@m" for i in range(n)])
    stack = ParticleStack(images=MemoryImages(images), pixel_size_A=P, ids=ids, ctf=ctf, pose=pose)
    precision, misfit = torch.eye(1).repeat(n, 1, 1), torch.zeros(n)
    return FlexResult(model, z, precision, pose, misfit, 1, box, P), stack


@pytest.mark.parametrize("box", [32, 33])
def test_at_rest_it_is_the_usual_reconstruction(box):
    result, stack = run_of(300, box, sd=0.0)
    seen = observe(stack, generator=torch.Generator().manual_seed(0))
    found = list(deformed_reconstruction(result, seen, torch.zeros(1)))[-1].result.half_maps[0]
    rows = torch.arange(0, 300, 2)
    usual = Backprojector.empty(box, pixel_size_A=P)
    assert stack.ctf is not None
    assert stack.pose is not None
    usual.insert(
        seen.images(rows), stack.pose[rows], stack.ctf[rows], noise_power=seen.noise_power[: box // 2 + 1]
    )
    torch.testing.assert_close(found.values, usual.solve().values, rtol=ROUND_OFF[torch.float32], atol=1e-5)


def test_motion_taken_out_sharpens_what_moves():
    result, stack = run_of(600, 32, sd=2.0)
    seen = observe(stack, generator=torch.Generator().manual_seed(0))
    truth = gaussians_to_map(two_lobes(), box=32, pixel_size_A=P)
    upper = torch.zeros(32, 32, 32)
    upper[17:] = 1.0  # the lobe that slides

    def agreement(values: Tensor) -> float:
        curve = fourier_shell_correlation(Volume(values * upper, P), Volume(truth.values * upper, P))
        return float(curve.correlation[3:12].mean())

    bent = list(deformed_reconstruction(result, seen, torch.zeros(1)))[-1].result.map
    still = replace(result, z=torch.zeros_like(result.z))
    plain = list(deformed_reconstruction(still, seen, torch.zeros(1)))[-1].result.map
    assert agreement(bent.values) > agreement(plain.values) + 0.1


def test_another_stack_is_refused():
    result, stack = run_of(40, 32, sd=1.0)
    seen = observe(stack.select(torch.arange(20)), generator=torch.Generator().manual_seed(0))
    with pytest.raises(BadInput, match="Give the particles of the flex run"):
        next(deformed_reconstruction(result, seen, torch.zeros(1)))
