"""Slices of several maps at once, and their adjoint: one sparse matrix of trilinear weights serves all maps.

The transforms of c maps lie side by side, one row of 2c numbers (real parts, then imaginary parts) per lattice point, so
that finding the eight neighbours of a sample is paid for once and reading or adding it is c short additions in a row. On
one core that is six times faster than one `index_add_` per corner (11 maps on a lattice of 92 points). Lattice and kernel
are those of `physics.project`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.physics.project import finish, prepare

_CHUNK = 1 << 14
"""Samples whose neighbours are found at once."""


@dataclass(frozen=True, eq=False)
class Stencil:
    """Where samples fall on the lattice.

    Parameters
    ----------
    matrix
        Weights of the eight neighbours, shape (samples, lattice points).
    sign
        -1 for samples that are read at their Friedel mate, else 1, shape (samples,).
    points
        Number of lattice points.
    """

    matrix: sparse.csr_matrix
    sign: Float[Tensor, "m"]
    points: int

    def read(self, rows: Float[Tensor, "l c2"]) -> Float[Tensor, "m 2 c"]:
        """Values of the maps at every sample: real parts, then imaginary parts."""
        values = torch.from_numpy(self.matrix @ rows.numpy()).view(len(self.sign), 2, -1)
        values[:, 1] *= self.sign[:, None]
        return values

    def add(self, values: Float[Tensor, "m 2 c"]) -> Float[Tensor, "l c2"]:
        """The transpose of `read`; `values` are lost."""
        values[:, 1] *= self.sign[:, None]
        return torch.from_numpy(self.matrix.T @ values.view(len(self.sign), -1).numpy())

    def part(self, samples: slice) -> Stencil:
        """The stencil of some samples, sharing memory with this one."""
        first, last, _ = samples.indices(len(self.sign))
        entries, m, whole = slice(8 * first, 8 * last), last - first, self.matrix
        arrays = (whole.data[entries], whole.indices[entries], whole.indptr[: m + 1])
        matrix = sparse.csr_matrix(arrays, shape=(m, self.points), copy=False)
        return Stencil(matrix, self.sign[first:last], self.points)

    def weight(self, values: Float[Tensor, "m"]) -> Float[Tensor, "l"]:
        """Real and even `values` added to the lattice."""
        return torch.from_numpy(self.matrix.T @ values.numpy())


@dataclass(frozen=True)
class MapLattice:
    """The lattice of maps of `box` voxels: their transforms, padded to twice the edge, the stored half of them.

    A lattice point is half a Fourier pixel of the maps; samples must stay below box - 1 lattice units in size.
    """

    box: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Lattice points along z, y, x."""
        return 2 * self.box, 2 * self.box, self.box + 1

    def rows(self, maps: Float[Tensor, "c n n n"]) -> Float[Tensor, "l c2"]:
        """Transforms of the maps, one row per lattice point, ready for `Stencil.read`."""
        c = maps.shape[0]
        out = maps.new_empty((*self.shape, 2 * c))
        for i, values in enumerate(maps):
            half = prepare(Volume(values, 1.0)).half
            out[..., i], out[..., c + i] = half.real, half.imag
        return out.view(-1, 2 * c)

    def maps(self, rows: Float[Tensor, "l c2"]) -> Float[Tensor, "c n n n"]:
        """The exact adjoint of `rows`."""
        c = rows.shape[1] // 2
        grid = rows.view(*self.shape, 2 * c)
        out = rows.new_empty((c, self.box, self.box, self.box))
        for i in range(c):
            out[i] = self.map_of(torch.complex(grid[..., i], grid[..., c + i]))
        return out

    def map_of(self, half: Tensor) -> Float[Tensor, "n n n"]:
        """The adjoint of one map's transform: every stored number counts once."""
        half = half * 0.5  # off the plane x = 0, `finish` lets every stored number count for two
        half[:, :, 0] *= 2
        return finish(half, box=self.box) * float((2 * self.box) ** 3)

    def stencil(self, points: Float[Tensor, "*n 3"]) -> Stencil:
        """Trilinear weights of samples at `points` (x, y, z) in lattice units.

        Raises
        ------
        BadInput
            If a point lies outside the lattice.
        """
        p, h = 2 * self.box, self.box + 1
        flat = points.reshape(-1, 3)
        if len(flat) and float(flat.abs().max()) >= self.box - 1:
            raise BadInput(
                f"MapLattice.stencil: a sample beyond {self.box - 1} lattice units. Lower the radius."
            )
        m = len(flat)
        index, weight, sign = torch.empty((m, 8), dtype=torch.int32), torch.empty(m, 8), torch.empty(m)
        # A few at a time, so that what lies between two steps stays in the processor's cache.
        for at, *out in zip(*(x.split(_CHUNK) for x in (flat, index, weight, sign)), strict=True):
            _neighbours(at, p, *out)
        rows = np.arange(0, 8 * m + 1, 8, dtype=np.int32)
        arrays = (weight.view(-1).numpy(), index.view(-1).numpy(), rows)
        return Stencil(sparse.csr_matrix(arrays, shape=(m, p * p * h), copy=False), sign, p * p * h)


def _neighbours(points: Tensor, p: int, index: Tensor, weight: Tensor, sign: Tensor) -> None:
    """The eight lattice points around each point of a lattice of edge p, their weights and the Friedel sign, in place."""
    h = p // 2 + 1
    torch.copysign(torch.ones(()), points[:, 0] + 0.0, out=sign)
    base, fraction = torch.zeros(len(points), dtype=torch.int32), []
    for column, stride, origin in zip(points.unbind(1), (1, h, p * h), (0, p // 2, p // 2), strict=True):
        at = column * sign
        cell = at.floor()
        fraction.append((1 - (at - cell), at - cell))
        base += (cell.int() + origin) * stride
    for corner in range(8):
        dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
        torch.add(base, (dz * p + dy) * h + dx, out=index[:, corner])
        torch.mul(fraction[2][dz] * fraction[1][dy], fraction[0][dx], out=weight[:, corner])
