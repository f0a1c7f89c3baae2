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
