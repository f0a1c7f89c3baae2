"""`Gaussians`: a molecule as a sum of Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class Gaussians:
    """A density rho(x) = sum_j amplitude_j N(x; position_j, C_j), N the normal distribution in three dimensions.

    All three fields may carry a leading axis of conformations, one per image; a field without it is shared by them.

    Parameters
    ----------
    position_A
        Shape (n, 3) or (b, n, 3): x, y, z in angstrom from the particle's centre.
    amplitude
        Shape (n,) or (b, n): the integral of each Gaussian over space, density times cubic angstrom. The sum over the
        voxels of its map times the volume of a voxel is this number, whatever the width.
    width_A
        Isotropic: standard deviations, shape (n,) or (b, n). Anisotropic: factors L with C = L L^T, shape (n, 3, 3) or
        (b, n, 3, 3); any invertible matrix will do.

    Raises
    ------
    BadInput
        If shapes disagree, or a Gaussian is not finite or has no width.
    """

    position_A: Float[Tensor, "..."]
    amplitude: Float[Tensor, "..."]
    width_A: Float[Tensor, "..."]

    def __post_init__(self) -> None:
        position, amplitude, width = (tuple(t.shape) for t in (self.position_A, self.amplitude, self.width_A))
        if len(position) not in (2, 3) or position[-1] != 3:
            raise BadInput(f"Gaussians: wanted position_A (n, 3) or (b, n, 3), got {position}.")
        n = position[-2]
        if len(amplitude) not in (1, 2) or amplitude[-1] != n:
            raise BadInput(f"Gaussians: {n} positions but amplitude has shape {amplitude}. Give one each.")
        tail = {1: (n,), 2: (n,), 3: (n, 3, 3), 4: (n, 3, 3)}.get(len(width))
        if tail is None or width[-len(tail) :] != tail:
            raise BadInput(
                f"Gaussians: {n} positions but width_A has shape {width}. Give ({n},) standard deviations or "
                f"({n}, 3, 3) factors, with or without a leading axis of conformations."
            )
        batches = {field.shape[0] for field in self._batched()}
        if len(batches) > 1:
            raise BadInput(f"Gaussians: fields have {sorted(batches)} conformations. Give as many in each.")
        self._check_values()

    def _batched(self) -> list[Tensor]:
        """The fields that have a leading axis of conformations."""
        flags = (self.position_A.ndim == 3, self.amplitude.ndim == 2, self.width_A.ndim in (2, 4))
        fields = (self.position_A, self.amplitude, self.width_A)
        return [field for field, batched in zip(fields, flags, strict=True) if batched]

    def _check_values(self) -> None:
        n = len(self)
        width = self.width_A.detach()
        size = width if self.isotropic else torch.linalg.det(width).abs()
        for name, good in (
            ("position_A", torch.isfinite(self.position_A.detach()).all(-1)),
            ("amplitude", torch.isfinite(self.amplitude.detach())),
            ("width_A", torch.isfinite(size) & (size > 0)),
        ):
            if not bool(good.all()):
                row = int(torch.nonzero(~good.reshape(-1, n).all(0))[0, 0])
                wanted = "positive and finite" if name == "width_A" else "finite"
                raise BadInput(f"Gaussians: {name} of Gaussian {row} is not {wanted}. Correct or drop it.")

    def __len__(self) -> int:
        return self.position_A.shape[-2]

    @property
    def isotropic(self) -> bool:
        """Whether each has one standard deviation; else `width_A` holds factors."""
        return self.width_A.ndim < 3

    @property
    def conformations(self) -> int | None:
        """Length of the leading axis; None where no field has it."""
        batched = self._batched()
        return batched[0].shape[0] if batched else None

    def factor_A(self) -> Float[Tensor, "*b n 3 3"]:
        """L with covariance L L^T, also of isotropic ones."""
        if not self.isotropic:
            return self.width_A
        return self.width_A[..., None, None] * torch.eye(
            3, dtype=self.width_A.dtype, device=self.width_A.device
        )

    def covariance_A2(self) -> Float[Tensor, "*b n 3 3"]:
        """Covariance matrices in square angstrom."""
        factor = self.factor_A()
        return factor @ factor.mT

    def moved(self, rotation: Float[Tensor, "3 3"], shift_A: Float[Tensor, "3"]) -> Gaussians:
        """The same molecule after x -> rotation @ x + shift_A."""
        width = self.width_A if self.isotropic else rotation.to(self.width_A) @ self.width_A
        position = self.position_A @ rotation.to(self.position_A).mT + shift_A.to(self.position_A)
        return replace(self, position_A=position, width_A=width)

    def select(self, rows: Int[Tensor, "m"]) -> Gaussians:
        """The Gaussians at `rows`, in that order, of every conformation."""
        axis = -1 if self.isotropic else -3
        return Gaussians(
            self.position_A.index_select(-2, rows),
            self.amplitude.index_select(-1, rows),
            self.width_A.index_select(axis, rows),
        )

    def to(self, like: Tensor) -> Gaussians:
        """On the device and with the type of another tensor."""
        return Gaussians(self.position_A.to(like), self.amplitude.to(like), self.width_A.to(like))
