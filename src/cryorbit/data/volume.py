"""`Volume`: a map with its voxel size and place in space."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class Volume:
    """A density map: values[z, y, x] at (index - N // 2) * pixel_size_A.

    Parameters
    ----------
    values
        Density, shape (n, n, n), axes z, y, x.
    pixel_size_A
        Edge of a voxel in angstrom.
    origin_A
        The MRC header's ORIGIN (x, y, z), carried along so that overlays in other programs stay right. It does
        not enter any computation.
    nstart
        The MRC header's NXSTART, NYSTART, NZSTART, carried along likewise.
    """

    values: Float[Tensor, "n n n"]
    pixel_size_A: float
    origin_A: tuple[float, float, float] = (0.0, 0.0, 0.0)
    nstart: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if len(shape) != 3 or len(set(shape)) != 1:
            raise BadInput(f"Volume: wanted a cube, got {shape}. Pad or crop the map to a cube first.")
        if not self.pixel_size_A > 0:
            raise BadInput(f"Volume: pixel size {self.pixel_size_A} A is not positive. State the pixel size.")

    @property
    def box(self) -> int:
        """Edge of the cube in voxels."""
        return self.values.shape[0]

    @property
    def place_A(self) -> tuple[float, float, float]:
        """Where viewers put the first voxel (x, y, z): ORIGIN unless it is zero, else NSTART in angstrom."""
        if any(self.origin_A):
            return self.origin_A
        x, y, z = (s * self.pixel_size_A for s in self.nstart)
        return x, y, z


def moved_place(
    origin_A: tuple[float, float, float],
    nstart: tuple[int, int, int],
    by_voxels: tuple[int, int, int],
    pixel_size_A: float,
) -> tuple[tuple[float, float, float], tuple[int, int, int]]:
    """ORIGIN and NSTART when the first voxel becomes the one at `by_voxels` (x, y, z) of the old grid.

    Viewers place a map by ORIGIN unless it is zero, and then by NSTART; other programs know only one of them. Both
    move, but an ORIGIN of zero beside a given NSTART stays zero, and NSTART yields where ORIGIN comes to be zero.

    >>> moved_place((0.0, 0.0, 0.0), (-2, 0, 0), (1, 1, 1), 2.0)
    ((0.0, 0.0, 0.0), (-1, 1, 1))
    """
    if not any(by_voxels):
        return origin_A, nstart
    by_nstart = not any(origin_A) and any(nstart)
    step = 0.0 if by_nstart else pixel_size_A
    x, y, z = (o + b * step for o, b in zip(origin_A, by_voxels, strict=True))
    i, j, k = (s + b for s, b in zip(nstart, by_voxels, strict=True))
    if not by_nstart and not any((x, y, z)):
        i = j = k = 0
    return (x, y, z), (i, j, k)
