"""Stacks of images of volumes that vary linearly, their latents known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.data.particles import MemoryImages
from cryorbit.physics.formation import form_images
from physics_models import GaussianBlobs, uniform_rotations, varied_ctf

PIXEL_A = 6.0


@dataclass(frozen=True)
class LinearStack:
    """Images of mean + z_1 component_1 + z_2 component_2, poses and CTF in the stack."""

    stack: ParticleStack
    maps: Tensor
    """Mean, then the components, (3, box, box, box)."""
    latent: Tensor


def linear_stack(n: int = 500, *, box: int = 24, noise: float = 2.0, seed: int = 0) -> LinearStack:
    """`n` images; `noise` is the deviation of the noise over that of the images' pixels."""
    g = torch.Generator().manual_seed(seed)
    radius = 0.25 * box
    mean = GaussianBlobs.random(25, radius_px=radius, sigma_px=1.3, seed=4).values(box)
    parts = [GaussianBlobs.random(4, radius_px=radius, sigma_px=1.6, seed=s).values(box) for s in (5, 6)]
    maps = torch.stack((mean, 1.5 * parts[0], 1.2 * (parts[1] - 0.5 * parts[0]))).float()
    latent = torch.randn(n, 2, generator=g)
    pose = Pose(uniform_rotations(n, seed=seed + 1).float(), 0.7 * PIXEL_A * torch.randn(n, 2, generator=g))
    ctf = varied_ctf(n)
    each = [form_images(Volume(m, PIXEL_A), pose, ctf, mode="exact") for m in maps]
    images = each[0] + latent[:, 0, None, None] * each[1] + latent[:, 1, None, None] * each[2]
    images = images + noise * images.std() * torch.randn(images.shape, generator=g)
    ids = np.array([str(i) for i in range(n)])
    stack = ParticleStack(
        images=MemoryImages(images), pixel_size_A=PIXEL_A, ids=ids, ctf=ctf, pose=pose, source="linear test"
    )
    return LinearStack(stack, maps, latent)
