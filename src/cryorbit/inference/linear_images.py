"""Images as the linear model sees them at one resolution: whitened half disks, and where they fall on the lattice."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.inference.locate import disk_data
from cryorbit.inference.observations import Observations
from cryorbit.inference.refine import half_disk
from cryorbit.physics.formation import plane_matrix
from cryorbit.physics.map_family import MapLattice, Stencil

_SAMPLES = 400_000
"""Samples handled at a time: adding them passes once over the whole lattice, so they should outnumber its points."""
_CACHE_BYTES = 1_500_000_000
"""Half disks are kept in memory between iterations up to this size, else made anew each time."""


class LinearImages:
    """Half disks of all images of a stack with poses, a batch at a time.

    Parameters
    ----------
    observed
        The images; their stack must have poses.
    radius
        Highest frequency used, Fourier pixels of the images.
    voxels
        Voxels across the images' field of view, at least 2 radius + 2.
    lattice
        Of maps of so many of these voxels as the particle needs.
    """

    def __init__(self, observed: Observations, *, radius: float, voxels: int, lattice: MapLattice) -> None:
        stack = observed.stack
        if stack.pose is None:
            raise BadInput(f"{stack.source}: no poses. Find them first, or give a stack that has them.")
        self.observed, self.radius, self.lattice = observed, radius, lattice
        self.matrix = plane_matrix(stack.pose.rotation, stack.ctf).float()
        self.shift_px = stack.pose.shift_A.float() / stack.pixel_size_A
        self.points = half_disk(radius)
        self.scale = 2 * lattice.box / voxels
        n, per_image = len(stack), len(self.points)
        self.batches = torch.arange(n).split(max(1, _SAMPLES // per_image))
        self._keep = 12 * n * per_image <= _CACHE_BYTES
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.batches)

    def disks(self, batch: int) -> tuple[Float[Tensor, "b p 2"], Float[Tensor, "b p"]]:
        """Transforms with their shift undone (real, imaginary) and CTF, both times sqrt(2) / noise deviation.

        The half disk stands for the whole, so that minus half the squared misfit is the log-likelihood.
        """
        if batch in self._kept:
            return self._kept[batch]
        rows = self.batches[batch]
        data = disk_data(self.observed, rows, self.observed.transforms(rows), self.radius)
        phase = self.shift_px[rows] @ self.points.T * (2 * math.pi / self.observed.box)
        values = data.transform * torch.polar(torch.full_like(phase, math.sqrt(2)), phase)
        out = torch.view_as_real(values), data.ctf * math.sqrt(2)
        if self._keep:
            self._kept[batch] = out
        return out

    def stencil(self, batch: int) -> Stencil:
        """Where the samples of a batch fall."""
        matrix = self.matrix[self.batches[batch]]
        kx, ky = (self.points * self.scale).unbind(1)
        return self.lattice.stencil(kx[:, None] * matrix[:, None, 0] + ky[:, None] * matrix[:, None, 1])

    def density(self) -> Float[Tensor, "p p h"]:
        """Sum of 2 CTF^2 / noise power on the lattice."""
        total = torch.zeros(math.prod(self.lattice.shape))
        for batch in range(len(self)):
            total += self.stencil(batch).weight(self.disks(batch)[1].square().flatten())
        return total.view(self.lattice.shape)


def largest_radius(observed: Observations) -> int:
    """The highest whole frequency whose samples stay on the lattice, magnification included."""
    stack = observed.stack
    assert stack.pose is not None  # checked by the caller
    matrix = plane_matrix(stack.pose.rotation, stack.ctf)[:, :2]
    stretch = max(1.0, float(torch.linalg.matrix_norm(matrix.double(), ord=2).max()) - 1e-5)
    return math.floor((observed.box / 2 - 1) / stretch)


def rows_in_order(images: LinearImages) -> Int[Tensor, "n"]:
    """Row numbers of the stack in the order of the batches."""
    return torch.cat(images.batches)
