"""Stacks of images of Gaussian blobs whose poses and noise are known exactly, for the tests of inference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryorbit.data import CTF, ParticleStack
from cryorbit.data.particles import MemoryImages
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import Observations, observe
from cryorbit.physics.transfer import ctf_image
from physics_models import GaussianBlobs, uniform_rotations, varied_ctf

PIXEL_A = 6.0


@dataclass(frozen=True)
class PosedStack:
    """Images with their poses, and what inference observes of them."""

    observed: Observations
    rotation: Tensor
    shift_px: Tensor
    blobs: GaussianBlobs

    @property
    def box(self) -> int:
        return self.observed.box

    def half(self) -> Tensor:
        """Transform of the true map, ready for trilinear reads."""
        return Lattice(self.box).to_half(self.blobs.values(self.box).float())


def posed_stack(
    n: int, *, box: int = 32, noise: float = 0.0, shift_sd_px: float = 1.0, ctf: bool = False, seed: int = 0
) -> PosedStack:
    """`n` images; `noise` is the deviation of the noise over that of the images' pixels."""
    g = torch.Generator().manual_seed(seed)
    blobs = GaussianBlobs.random(25, radius_px=0.28 * box, sigma_px=1.2, seed=4)
    rotation = uniform_rotations(n, seed=seed + 1)
    shift = shift_sd_px * torch.randn(n, 2, generator=g, dtype=torch.float64)
    moved = torch.cat((shift, torch.zeros(n, 1)), 1)
    images = torch.stack(
        [blobs._image(box, blobs.centre_px @ r.T + t) for r, t in zip(rotation, moved, strict=True)]
    )
    values: CTF | None = varied_ctf(n) if ctf else None
    if values is not None:
        transfer = ctf_image(values, box, pixel_size_A=PIXEL_A)
        images = torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=(box, box))
    images = images + noise * images.std() * torch.randn(images.shape, generator=g, dtype=images.dtype)
    stack = ParticleStack(
        images=MemoryImages(images.float()),
        pixel_size_A=PIXEL_A,
        ids=np.array([str(i) for i in range(n)]),
        ctf=values,
    )
    observed = observe(stack, particle_diameter_A=2 * 0.33 * box * PIXEL_A, generator=g)
    return PosedStack(observed, rotation.float(), shift.float(), blobs)
