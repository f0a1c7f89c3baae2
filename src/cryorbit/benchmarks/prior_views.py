"""Images of the prior benchmark: exact slices of a map in random directions, with or without CTF, as likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import CTF, Pose
from cryorbit.errors import BadInput
from cryorbit.inference.image_sums import ImageSums
from cryorbit.inference.posterior_baselines import leave_one_out, two_folds
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.physics.formation import transfer_of
from cryorbit.physics.fourier_sums import transform_at
from cryorbit.physics.lattice import half_plane
from cryorbit.physics.project import images_of
from cryorbit.physics.stack_plan import SimulationSettings, plan_stack

CLEAN_SNR = 100.0
"""At and above it images have no CTF and count as clean: a likelihood has to be told some noise."""

_ONE_BY_ONE = 5
"""Views up to which each is held out in turn; beyond, halves are."""


@dataclass(frozen=True, eq=False)
class Views:
    """Noisy images of one map with known poses.

    Parameters
    ----------
    image
        Shape (n, box, box).
    sigma
        Standard deviation of the noise per pixel.
    """

    image: Float[Tensor, "n box box"]
    pose: Pose
    ctf: CTF | None
    sigma: float
    pixel_size_A: float

    def __len__(self) -> int:
        return len(self.image)

    def likelihood(self, rows: Sequence[int] | Tensor | None = None) -> TwoVolumes:
        """Of some images, or of all."""
        n = self.image.shape[-1]
        at = torch.arange(len(self)) if rows is None else torch.as_tensor(rows)
        sums = ImageSums(n, pixel_size_A=self.pixel_size_A, width=8)
        ctf = None if self.ctf is None else self.ctf[at]
        sums.insert(self.image[at], self.pose[at], ctf, noise_power=n**2 * self.sigma**2)
        return sums.finish()

    @cached_property
    def whole(self) -> TwoVolumes:
        """Of all images."""
        return reduce(add, self._parts)

    @cached_property
    def folds(self) -> list[tuple[TwoVolumes, TwoVolumes]]:
        """Pairs to tune on (fitted, held out): each view in turn where there are few, else two halves."""
        return leave_one_out(self._parts) if len(self) <= _ONE_BY_ONE else two_folds(*self._parts)

    @cached_property
    def _parts(self) -> list[TwoVolumes]:
        parts = len(self) if len(self) <= _ONE_BY_ONE else 2
        return [self.likelihood(range(i, len(self), parts)) for i in range(parts)]


def draw_views(
    values: Float[Tensor, "n n n"], *, pixel_size_A: float, views: int, snr: float, seed: int
) -> Views:
    """Images in directions drawn evenly, white noise of the signal's mean variance over the SNR.

    Slices are sums over the voxels (`transform_at`): interpolation would be the largest error of clean images. Below
    `CLEAN_SNR` each has the CTF of a micrograph at 1 to 3 um.

    Raises
    ------
    BadInput
        With fewer than two views: none could be held out.
    """
    if views < 2 or not snr > 0:
        raise BadInput(f"draw_views: {views} views at SNR {snr:g}. Give two or more, and an SNR above 0.")
    n = values.shape[0]
    plan = plan_stack(
        SimulationSettings(
            n_particles=views,
            box=n,
            pixel_size_A=pixel_size_A,
            shift_sd_A=0.0,
            particles_per_micrograph=1,
            seed=seed,
        )
    )
    ctf = plan.ctf if snr < CLEAN_SNR else None
    clean = exact_images(values, plan.pose, ctf, pixel_size_A=pixel_size_A)
    sigma = float((clean.var(dim=(-2, -1), correction=0).mean() / snr).sqrt())
    chance = torch.Generator().manual_seed(plan.first_seed)
    noise = torch.randn(clean.shape, generator=chance, dtype=torch.float64)
    return Views((clean + sigma * noise).to(torch.float32), plan.pose, ctf, sigma, pixel_size_A)


def exact_images(
    values: Float[Tensor, "n n n"], pose: Pose, ctf: CTF | None, *, pixel_size_A: float
) -> Float[Tensor, "m n n"]:
    """Noise-free images without any interpolation, float64: what the likelihood takes images to be."""
    n = values.shape[0]
    points = half_plane(n, step=1, radius=(n - 1) / 2, dtype=torch.float64)
    plane = torch.zeros(len(pose), n * (n // 2 + 1), dtype=torch.complex128)
    for row, r in zip(plane, pose.rotation.double(), strict=True):
        row[points.position] = transform_at(
            values.double(), points.kx[:, None] * r[0] + points.ky[:, None] * r[1]
        )
    plane = plane.view(len(pose), n, -1)
    transfer = transfer_of(pose.shift_A.double(), ctf, n, pixel_size_A=pixel_size_A)
    return images_of(plane if transfer is None else plane * transfer, n)
