"""Keeping two half sets in one frame: the small motion between their maps, six numbers and nothing else, passes over.

Each half turns and shifts freely as a whole while it is refined against its own map, and a map averaged over two frames is
blurred. Sharing the lowest shells would hold them together at the price of correlation there; the motion itself does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.inference.half_maps import HalfMaps


@dataclass(frozen=True, eq=False)
class SmallMotion:
    """x in the first frame is Q x + u of the second, lengths in pixels of the images."""

    turn: Float[Tensor, "3 3"]
    step_px: Float[Tensor, "3"]

    @classmethod
    def none(cls) -> SmallMotion:
        """The identity."""
        return cls(torch.eye(3), torch.zeros(3))

    def moved(
        self, rotation: Float[Tensor, "n 3 3"], shift_px: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 2"]]:
        """Poses of the second frame, told in the first: the same images of the same density."""
        turned = rotation @ self.turn.T
        return turned, shift_px - (turned @ self.step_px)[:, :2]


def motion_between(maps: HalfMaps, group: Float[Tensor, "g 3 3"], *, box: int) -> SmallMotion:
    """The motion from the second half map to the first, to first order, by least squares on the filtered maps.

    b(x) = a(Q x + u) is about a + (x cross grad a) . w + grad a . u with Q = exp(w). Only what the point group leaves free
    is fitted: w and u are averaged over it.

    Parameters
    ----------
    box
        Pixels of the images, which the maps' lattice of n voxels spans as well.
    """
    a, b = (m.double() for m in maps.filtered)
    n = a.shape[0]
    slope = _gradient(0.5 * (a + b))
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    sx, sy, sz = slope
    turned = (y * sz - z * sy, z * sx - x * sz, x * sy - y * sx)
    columns = torch.stack([c.flatten() for c in (*turned, *slope, 0.5 * (a + b))])
    normal = columns @ columns.T
    normal += torch.diag(1e-9 * normal.diagonal().clamp_min(1e-30))
    found = torch.linalg.solve(normal, columns @ (b - a).flatten())
    free = group.double().mean(0)
    turn, step = free @ found[:3], free @ found[3:6]
    return SmallMotion(rotvec_to_matrix(turn).float(), (step * (box / n)).float())


def _gradient(values: Float[Tensor, "n n n"]) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes along x, y, z per voxel, by the transform."""
    n = values.shape[0]
    transform = torch.fft.rfftn(values)
    full = 2j * torch.pi * torch.fft.fftfreq(n, dtype=torch.float64)
    half = 2j * torch.pi * torch.fft.rfftfreq(n, dtype=torch.float64)
    if n % 2 == 0:
        full[n // 2], half[-1] = 0, 0  # the Nyquist wave has no slope at its own samples
    ways = (half, full[:, None], full[:, None, None])
    x, y, z = (torch.fft.irfftn(transform * way, s=(n, n, n)) for way in ways)
    return x, y, z
