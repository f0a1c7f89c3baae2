"""`Pose`: how a particle sits in the microscope."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class Pose:
    """How the particle sits in the microscope: x_lab = rotation @ x_particle + shift.

    Parameters
    ----------
    rotation
        Proper rotations, shape (..., 3, 3). RELION's matrix A(rot, tilt, psi): the third row is the viewing
        direction in the particle's frame.
    shift_A
        Where the particle's centre sits in the image, shape (..., 2), x then y, in angstrom from pixel N // 2.
        The opposite sign of RELION's `rlnOriginXAngst`.

    Raises
    ------
    BadInput
        If the shapes disagree.
    """

    rotation: Float[Tensor, "... 3 3"]
    shift_A: Float[Tensor, "... 2"]

    def __post_init__(self) -> None:
        r, s = tuple(self.rotation.shape), tuple(self.shift_A.shape)
        if r[-2:] != (3, 3) or s[-1:] != (2,):
            raise BadInput(f"Pose: wanted rotation (..., 3, 3) and shift_A (..., 2), got {r} and {s}.")
        if r[:-2] != s[:-1]:
            raise BadInput(
                f"Pose: rotation has batch {r[:-2]} but shift_A has {s[:-1]}. "
                "Give one shift per rotation, or expand() one of them."
            )

    @classmethod
    def identity(cls, n: int, *, dtype: torch.dtype = torch.float32) -> Pose:
        """`n` poses with no rotation and no shift."""
        return cls(torch.eye(3, dtype=dtype).expand(n, 3, 3), torch.zeros(n, 2, dtype=dtype))

    def __len__(self) -> int:
        return self.rotation.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Pose:
        return Pose(self.rotation[index], self.shift_A[index])
