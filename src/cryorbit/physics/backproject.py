"""Reconstruction with known poses: every image is added into Fourier space, then divided by its weights.

Numerator and denominator live on the lattice of `project`: the transform of a map padded to twice its edge.
With transfer h (CTF, odd aberrations, shift), noise power s2 and image transform F:

    numerator = sum conj(h) F / s2,   denominator = sum |h|^2 / s2,   V^ = numerator / (denominator + prior)

which is the Wiener estimate where neighbouring lattice points agree (Penczek 2010; the prior: Scheres 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.data import CTF, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.physics.formation import plane_matrix, transfer_of
from cryorbit.physics.interpolation import complete_plane, gather
from cryorbit.physics.lattice import HalfPlane, add_points, half_plane, lattice_radius
from cryorbit.physics.noise import spread_shells
from cryorbit.physics.project import finish, transforms_of

REDUNDANCY = 8
"""Lattice points per independent coefficient of the map: twice the edge in three dimensions."""


@dataclass(frozen=True, eq=False)
class Backprojector:
    """Running sums of a reconstruction; `insert` adds to them in place, `+` merges two.

    Parameters
    ----------
    numerator, denominator
        Shape (2 box, 2 box, box + 1), z and y centred, x from 0.
    box, pixel_size_A
        Of the images and of the map.
    """

    numerator: Complex[Tensor, "p p h"]
    denominator: Float[Tensor, "p p h"]
    box: int
    pixel_size_A: float

    @classmethod
    def empty(
        cls,
        box: int,
        *,
        pixel_size_A: float,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Backprojector:
        """Sums of no images."""
        denominator = torch.zeros((2 * box, 2 * box, box + 1), dtype=dtype, device=device)
        return cls(torch.complex(denominator, denominator), denominator, box, pixel_size_A)

    def __add__(self, other: Backprojector) -> Backprojector:
        same = self.box == other.box and abs(self.pixel_size_A / other.pixel_size_A - 1) < 1e-6
        if not same:
            raise BadInput(
                f"Backprojector: cannot add box {other.box} at {other.pixel_size_A} A to box {self.box} "
                f"at {self.pixel_size_A} A. Resample the images of one first."
            )
        return Backprojector(
            self.numerator + other.numerator,
            self.denominator + other.denominator,
            self.box,
            self.pixel_size_A,
        )

    @torch.no_grad()
    def insert(
        self,
        images: Float[Tensor, "n box box"],
        pose: Pose,
        ctf: CTF | None = None,
        *,
        noise_power: Float[Tensor, "shells"] | float = 1.0,
        weight: Float[Tensor, "n"] | None = None,
        group: Float[Tensor, "g 3 3"] | None = None,
    ) -> None:
        """Add images, light protein, in place.

        Parameters
        ----------
        noise_power
            E |rfft2 of the noise|^2: one number, or one per shell (box // 2 + 1 values).
        weight
            Per image, for instance the probability of the pose.
        group
            Rotations of the particle onto itself, shape (g, 3, 3): the image is added once per rotation.
        """
        if images.shape[-2:] != (self.box, self.box) or images.shape[0] != len(pose):
            raise BadInput(
                f"Backprojector.insert: wanted ({len(pose)}, {self.box}, {self.box}) images for "
                f"{len(pose)} poses, got {tuple(images.shape)}."
            )
        points = half_plane(
            self.box,
            step=2,
            radius=(self.box - 1 - 1e-3) / 2,
            device=images.device,
            dtype=self.denominator.dtype,
        )
        values = transforms_of(images.to(self.denominator.dtype)).flatten(1)[:, points.position]
        share = self._share(points, noise_power, weight)
        transfer = transfer_of(pose.shift_A, ctf, self.box, pixel_size_A=self.pixel_size_A)
        if transfer is None:
            values, counts = values * share, share.expand(len(pose), -1)
        else:
            transfer = transfer.flatten(1)[:, points.position]
            values, counts = values * transfer.conj() * share, transfer.abs().square() * share
        matrix = plane_matrix(pose.rotation, ctf).to(counts.dtype)
        turns = [matrix] if group is None else [matrix @ g for g in group.to(matrix)]
        for turned in turns:
            add_points(self.numerator, self.denominator, turned, points, values, counts)

    def _share(
        self, points: HalfPlane, noise_power: Tensor | float, weight: Tensor | None
    ) -> Float[Tensor, "n m"]:
        """1 / noise power at each point times each image's weight; half where a mate stands too."""
        share = torch.where(points.kx == 0, 0.5, 1.0).to(self.denominator)[None]
        if isinstance(noise_power, Tensor):
            if noise_power.shape != (self.box // 2 + 1,) or bool((noise_power <= 0).any()):
                raise BadInput(
                    f"Backprojector.insert: wanted {self.box // 2 + 1} positive noise powers, "
                    f"got shape {tuple(noise_power.shape)}. Estimate them with noise_spectrum()."
                )
            share = share / spread_shells(noise_power.to(share), self.box).reshape(-1)[points.position]
        else:
            share = share / noise_power
        return share if weight is None else share * weight.to(share)[:, None]

    def symmetrise(self, group: Float[Tensor, "g 3 3"]) -> Backprojector:
        """Sums as if every image had been added once per rotation, by trilinear reading of the sums.

        Cheaper than `insert(group=...)` for many images, and slightly smoother.
        """
        sums = self._completed()
        counts = torch.complex(sums.denominator, torch.zeros_like(sums.denominator))
        numerator, denominator = torch.zeros_like(sums.numerator), torch.zeros_like(sums.denominator)
        axis = torch.arange(-self.box, self.box, device=counts.device, dtype=sums.denominator.dtype)
        for row, z in enumerate(axis):
            y, x = torch.meshgrid(axis, axis[self.box :], indexing="ij")
            inside = x * x + y * y + z * z < (self.box - 1.01) ** 2
            points = torch.stack((x[inside], y[inside], z.expand(x.shape)[inside]), dim=1)
            for g in group.to(points):
                # V(G x) = V(x) for all x, hence V^(G k) = V^(k).
                turned = points @ g.T
                numerator[row, :, :-1][inside] += gather(sums.numerator, turned)
                denominator[row, :, :-1][inside] += gather(counts, turned).real
        # The sums are stored without the mates of the plane x = 0, so half of that plane is kept.
        numerator[:, :, 0] *= 0.5
        denominator[:, :, 0] *= 0.5
        return Backprojector(numerator, denominator, self.box, self.pixel_size_A)

    def information(self) -> Float[Tensor, "shells"]:
        """Mean over each shell of 1 / (noise variance of one coefficient of the map), shape (box // 2 + 1,).

        A prior of power t2 shrinks a coefficient by information / (information + 1 / t2).
        """
        return REDUNDANCY * _shell_mean_3d(self._completed().denominator, self.box)

    def solve(
        self,
        *,
        prior_power: Float[Tensor, "shells"] | None = None,
        floor: float = 1e-3,
    ) -> Volume:
        """The Wiener estimate of the map.

        Parameters
        ----------
        prior_power
            Expected |V^|^2 of the map per shell (box // 2 + 1 values); None for a flat prior.
        floor
            The denominator is kept above this part of its shell mean, so that directions no image saw stay
            near zero.
        """
        sums = self._completed()
        mean = _shell_mean_3d(sums.denominator, self.box)
        extra = floor * mean
        if prior_power is not None:
            if prior_power.shape != mean.shape:
                raise BadInput(
                    f"Backprojector.solve: wanted {mean.shape[0]} prior powers, "
                    f"got {tuple(prior_power.shape)}."
                )
            extra = extra + 1 / (REDUNDANCY * prior_power.to(mean)).clamp_min(1e-30)
        total = sums.denominator + _spread_shells_3d(extra, self.box)
        half = torch.where(total > 0, sums.numerator / total.clamp_min(1e-30), 0)
        radius = lattice_radius(self.box, self.denominator)
        half = torch.where(radius <= self.box - 1, half, 0)
        return Volume(finish(half, box=self.box), self.pixel_size_A)

    def _completed(self) -> Backprojector:
        numerator, denominator = self.numerator.clone(), self.denominator.clone()
        complete_plane(numerator)
        complete_plane(denominator)
        return Backprojector(numerator, denominator, self.box, self.pixel_size_A)


def prior_power_from_fsc(
    correlation: Float[Tensor, "shells"], information: Float[Tensor, "shells"]
) -> Float[Tensor, "shells"]:
    """Power of the signal per shell from the correlation of two halves and the information of one.

    SNR = c / (1 - c); prior power = SNR / information (Scheres 2012). Correlations are kept within 0.001 of 0
    and 1.
    """
    c = correlation.clamp(0.001, 0.999).to(information)
    return c / (1 - c) / information.clamp_min(1e-30)


def _shell_mean_3d(values: Tensor, box: int) -> Float[Tensor, "shells"]:
    """Mean over the shells of the map, two lattice units each."""
    shell = (lattice_radius(box, values) / 2).round().long().clamp_max(box // 2).reshape(-1)
    inside = (lattice_radius(box, values) <= box - 1).reshape(-1)
    total = values.new_zeros(box // 2 + 1).index_add_(0, shell[inside], values.reshape(-1)[inside])
    count = torch.bincount(shell[inside], minlength=box // 2 + 1).to(total)
    return total / count.clamp_min(1)


def _spread_shells_3d(shells: Tensor, box: int) -> Float[Tensor, "p p h"]:
    radius = (lattice_radius(box, shells) / 2).clamp_max(box // 2)
    low = radius.floor().long().clamp_max(box // 2 - 1)
    return torch.lerp(shells[low], shells[low + 1], radius - low)
