"""Where Gaussians should stand to describe a map: the cells that share out its density evenly."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import KDTree

from cryorbit.analysis.masks import density_level
from cryorbit.data import Gaussians, Volume
from cryorbit.errors import BadInput

_ROUNDS = 12
_LEAST_PX = 0.6
"""Least standard deviation of a seed: narrower ones see no slope to climb."""


def seed_gaussians(
    volume: Volume, *, count: int, generator: torch.Generator, level: float | None = None
) -> Gaussians:
    """Isotropic Gaussians at the centres of a weighted k-means over the voxels above a level.

    Each takes the density of its cell above zero and the cell's variance. Positions are in angstrom from voxel N // 2.

    Parameters
    ----------
    count
        How many; fewer where fewer voxels lie above the level.
    level
        Density that is particle; None: the level that parts the histogram in two (`density_level`).

    Raises
    ------
    BadInput
        If `count` is not positive, or nothing lies above the level.
    """
    if count < 1:
        raise BadInput(f"seed_gaussians: {count} Gaussians make no sense. Give at least 1.")
    chosen = density_level(volume.values) if level is None else level
    solid = (volume.values > max(chosen, 0.0)).cpu()
    if not bool(solid.any()):
        raise BadInput(
            f"seed_gaussians: no density above {chosen:.4g} (maximum {float(volume.values.max()):.4g}). "
            "Give a lower level."
        )
    voxel = torch.nonzero(solid).flip(-1).double() - volume.box // 2
    density = volume.values.cpu()[solid].double()
    count = min(count, len(voxel))
    if len(voxel) >= 1 << 24:  # torch.multinomial takes no more
        raise BadInput("seed_gaussians: more than 16 million voxels above the level. Give a higher level.")
    first = torch.multinomial(density, count, generator=generator)
    centre, mass, variance = _cells(voxel.numpy(), density.numpy(), voxel[first].numpy())
    pixel = volume.pixel_size_A
    sigma = np.sqrt(np.maximum(variance, _LEAST_PX**2))
    like = volume.values
    return Gaussians(
        torch.from_numpy(centre * pixel).to(like),
        torch.from_numpy(mass * pixel**3).to(like),
        torch.from_numpy(sigma * pixel).to(like),
    )


def _cells(
    point: np.ndarray, weight: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lloyd's rounds; then mean, weight and variance per axis of every cell that has points."""
    for _ in range(_ROUNDS - 1):
        sums = _sums(point, weight, centre)
        centre = sums[:, :3] / sums[:, 3:4]
    sums = _sums(point, weight, centre)
    centre = sums[:, :3] / sums[:, 3:4]
    return centre, sums[:, 3], (sums[:, 4] / sums[:, 3] - (centre**2).sum(1)) / 3


def _sums(point: np.ndarray, weight: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Per cell that has points: weighted sums of x, y, z, of 1, and of the squared length."""
    cell = np.asarray(KDTree(centre).query(point)[1])
    columns = (*(point.T * weight), weight, weight * (point**2).sum(1))
    table = np.stack([np.bincount(cell, column, len(centre)) for column in columns], 1)
    return table[table[:, 3] > 0]
