"""Images with poses added up into the two volumes of their likelihood; the formulas are in `inference.posterior_data`."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import CTF, Pose
from cryorbit.errors import BadInput
from cryorbit.fourier.resample import box_crop
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.physics.formation import plane_matrix, transfer_of
from cryorbit.physics.fourier_sums import WaveSums
from cryorbit.physics.lattice import half_plane
from cryorbit.physics.noise import spread_shells
from cryorbit.physics.project import transforms_of


class ImageSums:
    """Gathers W and B from images given piece by piece, in float64.

    Parameters
    ----------
    box, pixel_size_A
        Of the images and of the map.
    width
        Points per axis of the gridding kernel: relative error 1e-3 for 4, 1e-5 for 6, 1e-7 for 8, 1e-9 for 10. The cost of
        an image goes with its cube.
    radius
        Highest frequency compared, cycles per box; never beyond (box - 1) / 2, the default.
    """

    def __init__(
        self,
        box: int,
        *,
        pixel_size_A: float,
        width: int = 6,
        radius: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.box, self.pixel_size_A = box, pixel_size_A
        self.radius = min((box - 1) / 2, radius or box)
        self.spread = WaveSums(box, 2 * box, oriented=False, width=width, device=device)
        self.back = WaveSums(box, box, oriented=True, width=width, device=device)
        self.energy = self.count = 0.0

    def insert(
        self,
        images: Float[Tensor, "n box box"],
        pose: Pose,
        ctf: CTF | None = None,
        *,
        noise_power: Float[Tensor, "#n shells"] | float,
        weight: Float[Tensor, "n"] | None = None,
    ) -> None:
        """Add images, light protein.

        Parameters
        ----------
        noise_power
            E |rfft2 of the noise|^2 (white noise: box^2 sigma^2): one number, or per shell (box // 2 + 1), for all
            images in one row or one row per image.
        weight
            Of each image, for instance the probability of the pose.

        Raises
        ------
        BadInput
            If shapes disagree or a noise power is not positive.
        """
        if images.shape[-2:] != (self.box, self.box) or len(images) != len(pose):
            raise BadInput(
                f"ImageSums.insert: wanted ({len(pose)}, {self.box}, {self.box}) images for {len(pose)} poses, got "
                f"{tuple(images.shape)}."
            )
        pose = Pose(pose.rotation.double(), pose.shift_A.double())
        matrix = plane_matrix(pose.rotation, ctf)
        # What a magnification carries beyond Nyquist would come back on the other side.
        stretch = max(1.0, float(torch.linalg.matrix_norm(matrix[:, :2], ord=2).max()) - 1e-6)
        points = half_plane(
            self.box, step=1, radius=self.radius / stretch, device=images.device, dtype=torch.float64
        )
        share = torch.where(points.kx == 0, 1.0, 2.0).double() / self._noise(noise_power, points.position)
        if weight is not None:
            share = share * weight.double()[:, None]
        value = transforms_of(images.double()).flatten(1)[:, points.position]
        self.energy += float((share * value.abs().square()).sum())
        total = len(images) if weight is None else float(weight.double().sum())
        self.count += total * float(torch.where(points.kx == 0, 1.0, 2.0).sum())
        share = share.expand(len(images), -1)
        transfer = transfer_of(pose.shift_A, ctf, self.box, pixel_size_A=self.pixel_size_A)
        if transfer is not None:
            transfer = transfer.flatten(1)[:, points.position]
            value, seen = value * transfer.conj() * share, transfer.abs().square() * share
        else:
            value, seen = value * share, share
        where = points.kx[:, None] * matrix[:, None, 0] + points.ky[:, None] * matrix[:, None, 1]
        where = where.flatten(0, 1)
        self.spread.add(where, seen.reshape(-1))
        self.back.add(where, value.reshape(-1))

    def _noise(self, noise_power: Tensor | float, position: Tensor) -> Tensor:
        if not isinstance(noise_power, Tensor):
            noise_power = torch.full((1, self.box // 2 + 1), float(noise_power), device=position.device)
        if noise_power.shape[-1] != self.box // 2 + 1 or not bool((noise_power > 0).all()):
            raise BadInput(
                f"ImageSums.insert: wanted {self.box // 2 + 1} positive noise powers per image, got shape "
                f"{tuple(noise_power.shape)}. Estimate them with group_noise()."
            )
        return spread_shells(noise_power.double(), self.box).flatten(-2)[..., position]

    def finish(self, *, dtype: torch.dtype = torch.float32) -> TwoVolumes:
        """The two volumes of the images so far; more may be added afterwards."""
        n = self.box
        spread = torch.fft.ifftshift(self.spread.values())
        # A difference of n voxels does not occur, and would not be even.
        spread[n], spread[:, n], spread[:, :, n] = 0, 0, 0
        return TwoVolumes(
            self.back.values().to(dtype),
            wrapped_weight(spread).to(dtype),
            torch.fft.rfftn(spread).real.to(dtype),
            self.energy,
            self.count,
            self.pixel_size_A,
        )


def wrapped_weight(spread: Float[Tensor, "p p p"]) -> Float[Tensor, "n n h"]:
    """The diagonal of W in the transform of a box from its point spread on twice as many voxels (Chan 1988)."""
    n = spread.shape[0] // 2
    near = torch.cat((torch.arange(n), torch.arange(-n, 0))).abs().to(spread) / n
    tent = 1 - near
    folded = spread * tent[:, None, None] * tent[:, None] * tent
    folded = folded.view(2, n, 2, n, 2, n).sum((0, 2, 4))
    return torch.fft.rfftn(folded).real.clamp_min(0)


def central(data: TwoVolumes, box: int) -> TwoVolumes:
    """The likelihood of the middle of a map of which nothing lies outside: exact, since W depends on differences only.

    Raises
    ------
    BadInput
        If the box is larger than the data's, or W is known by its diagonal only.
    """
    n = data.box
    if box > n or data.point_spread is None:
        raise BadInput(
            f"central: cannot cut {box} voxels out of {n}, or W is a diagonal. Give a smaller box."
        )
    if box == n:
        return data
    spread = torch.fft.irfftn(data.point_spread.double(), s=(2 * n,) * 3)
    near = torch.cat((torch.arange(box), torch.arange(-box, 0))).to(spread.device)
    spread = spread[near][:, near][:, :, near].clone()
    spread[box], spread[:, box], spread[:, :, box] = 0, 0, 0
    like = data.back_projection
    return replace(
        data,
        back_projection=box_crop(like, box, ndim=3).clone(),
        weight=wrapped_weight(spread).to(like),
        point_spread=torch.fft.rfftn(spread).real.to(like),
    )
