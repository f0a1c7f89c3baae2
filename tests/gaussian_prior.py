"""A prior of maps whose network says nothing: what is left is a Wiener filter of a spectrum that falls."""

from __future__ import annotations

import torch

from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape


def gaussian_prior(box: int = 16, *, density_scale: float = 1.0) -> VolumePrior:
    """For voxels of 20 A."""
    shape = VolumePriorShape(
        channels=(8,),
        box=box,
        density_scale=density_scale,
        voxel_size_A=(18.0, 24.0),
        resolution_A=(40.0, 50.0),
        spectrum=tuple(1e12 * 10 ** (-0.5 * k) for k in range(8)),
        spectrum_step_per_A=0.004,
    )
    return VolumePrior(shape, generator=torch.Generator().manual_seed(0))
