"""Models whose projections are known in closed form, for the physics tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cryorbit.data import CTF, Atoms


def uniform_rotations(n: int, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    q = torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(q).Q
    return (q * torch.linalg.det(q)[:, None, None]).to(dtype)


@dataclass(frozen=True)
class GaussianBlobs:
    """Gaussians of standard deviation sigma_px inside a ball; map and projections are exact samples."""

    centre_px: Tensor
    weight: Tensor
    sigma_px: float = 1.0

    @classmethod
    def random(cls, n: int, *, radius_px: float, sigma_px: float = 1.0, seed: int = 0) -> GaussianBlobs:
        g = torch.Generator().manual_seed(seed)
        direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g, dtype=torch.float64), dim=1)
        radius = radius_px * torch.rand(n, 1, generator=g, dtype=torch.float64) ** (1 / 3)
        return cls(radius * direction, 0.5 + torch.rand(n, generator=g, dtype=torch.float64), sigma_px)

    def values(self, box: int) -> Tensor:
        z, y, x = (self._profile(self.centre_px[:, j], box) for j in (2, 1, 0))
        return torch.einsum("n,nz,ny,nx->zyx", self.weight, z, y, x)

    def images(self, box: int, rotation: Tensor) -> Tensor:
        """The sum along z of the blobs turned by each rotation."""
        return torch.stack([self._image(box, self.centre_px @ r.T) for r in rotation])

    def _image(self, box: int, centre: Tensor) -> Tensor:
        y, x = (self._profile(centre[:, j], box) for j in (1, 0))
        return torch.einsum("n,ny,nx->yx", self.weight, y, x)

    def _profile(self, centre: Tensor, box: int) -> Tensor:
        u = torch.arange(box, dtype=torch.float64) - box // 2 - centre[:, None]
        s = self.sigma_px
        return torch.exp(-0.5 * (u / s) ** 2) / (s * (2 * torch.pi) ** 0.5)


def blob_atoms(n: int = 400, *, radius_A: float = 60.0, seed: int = 3) -> Atoms:
    """An asymmetric cloud of carbon atoms in two lobes."""
    g = torch.Generator().manual_seed(seed)
    position = 0.35 * radius_A * torch.randn(n, 3, generator=g)
    position = position.clamp(-0.6 * radius_A, 0.6 * radius_A) * torch.tensor([1.0, 0.7, 0.5])
    position[: n // 3] = 0.3 * position[: n // 3] + torch.tensor([0.3, 0.5, 0.3]) * radius_A
    return Atoms(position, torch.full((n,), 6), torch.zeros(n), torch.ones(n))


def varied_ctf(n: int, *, seed: int = 5) -> CTF:
    g = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=g)

    mean, half = between(10000.0, 25000.0), between(0.0, 300.0)
    return CTF(
        defocus_u_A=mean + half,
        defocus_v_A=mean - half,
        astigmatism_angle_deg=between(-90.0, 90.0),
        voltage_kV=torch.full((n,), 300.0),
        cs_mm=torch.full((n,), 2.7),
        amplitude_contrast=torch.full((n,), 0.1),
        phase_shift_deg=between(0.0, 20.0),
        b_factor_A2=between(0.0, 50.0),
        scale=between(0.9, 1.1),
    )
