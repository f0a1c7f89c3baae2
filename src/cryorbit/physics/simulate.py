"""Simulated particle stacks with known truth: project, filter by the CTF, shift, add noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import CTF, Atoms, ImageSource, ParticleStack, Pose, Volume
from cryorbit.physics.formation import form_images
from cryorbit.physics.project import FourierVolume, prepare
from cryorbit.physics.scatter import atoms_to_density
from cryorbit.physics.stack_plan import SimulationSettings, plan_stack

CHUNK = 64
"""Images that are formed at a time."""


@dataclass(frozen=True, eq=False)
class SimulatedImages:
    """An `ImageSource` that makes its images when asked; image i, noise included, does not depend on how.

    Parameters
    ----------
    map, pose, ctf
        What is projected and how.
    sigma
        Standard deviation of the noise; 0 for none.
    noise_shape
        Amplitude of the noise on the half plane, mean square 1, or None for white noise.
    first_seed
        Image i draws its noise from seed first_seed + i.
    sign
        +1 for light, -1 for dark protein.
    """

    map: FourierVolume
    pose: Pose
    ctf: CTF
    sigma: float
    noise_shape: Float[Tensor, "box half"] | None
    first_seed: int
    sign: float = 1.0

    @property
    def box(self) -> int:
        """Edge of an image in pixels."""
        return self.map.box

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, index: slice | Int[Tensor, "n"]) -> Float[Tensor, "n h w"]:
        rows = torch.arange(len(self))[index].reshape(-1)
        parts = [self._some(part) for part in rows.split(CHUNK)]
        return torch.cat(parts) if parts else torch.zeros(0, self.box, self.box)

    def chunks(self, size: int = 256) -> Iterator[Float[Tensor, "n h w"]]:
        """All images in order, `size` at a time, for a writer."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @torch.no_grad()
    def _some(self, rows: Tensor) -> Tensor:
        images = self.sign * form_images(self.map, self.pose[rows], self.ctf[rows], mode="exact")
        return add_noise(images, rows, self.sigma, self.noise_shape, self.first_seed)


def add_noise(
    images: Float[Tensor, "n box box"],
    rows: Int[Tensor, "n"],
    sigma: float,
    noise_shape: Float[Tensor, "box half"] | None,
    first_seed: int,
) -> Float[Tensor, "n box box"]:
    """The images, changed in place, with the noise of rows `rows`: of standard deviation `sigma`, seeds
    first_seed + row.
    """
    if sigma == 0:
        return images
    noise = torch.empty_like(images)
    for row, target in zip(rows.tolist(), noise, strict=True):
        target.normal_(generator=torch.Generator().manual_seed((first_seed + row) % 2**32))
    if noise_shape is not None:
        noise = torch.fft.irfft2(torch.fft.rfft2(noise) * noise_shape, s=images.shape[-2:])
    return images.add_(noise, alpha=sigma)


@dataclass(frozen=True, eq=False)
class Simulation:
    """A simulated stack and the truth behind it.

    Parameters
    ----------
    stack
        Images made on demand, CTF, half sets, micrographs, optics groups; without poses.
    truth
        The poses that made the images.
    volume
        The map that was projected.
    sigma
        Standard deviation of the noise per pixel.
    """

    stack: ParticleStack
    truth: Pose
    volume: Volume
    sigma: float
    settings: SimulationSettings = field(default_factory=SimulationSettings)

    def with_truth(self) -> ParticleStack:
        """The stack with the true poses in it."""
        return replace(self.stack, pose=self.truth)

    def chunks(self, size: int = 256) -> Iterator[Float[Tensor, "n h w"]]:
        """All images in order, `size` at a time, for a writer."""
        for start in range(0, len(self.stack), size):
            yield self.stack.images[start : start + size]


def simulate(
    model: Atoms | Volume, settings: SimulationSettings, *, ctf_table: CTF | None = None
) -> Simulation:
    """A stack of simulated images of a model, projected from a map padded to twice its edge.

    Parameters
    ----------
    model
        Atoms (turned into a potential with `settings.b_factor_A2`) or a map (resampled to the box and pixel
        size).
    ctf_table
        Rows to draw from, without repeats while they last; otherwise the settings' ranges are used.

    Notes
    -----
    The noise variance is the mean signal variance of up to 1,000 images, evenly spread over the stack,
    divided by the SNR: exact for stacks that small, else within a fraction of a percent.
    """
    plan = plan_stack(settings, ctf_table=ctf_table)
    volume = volume_of(model, settings)
    images = SimulatedImages(
        prepare(volume), plan.pose, plan.ctf, 0.0, plan.noise_shape, plan.first_seed, plan.sign
    )
    sigma = (signal_variance(images) / settings.snr) ** 0.5
    stack = plan.stack(replace(images, sigma=sigma), settings)
    return Simulation(stack, images.pose, volume, sigma, settings)


def resample_volume(volume: Volume, *, box: int, pixel_size_A: float) -> Volume:
    """A map on another grid with the same origin and grey values, band-limited to the coarser of the two.

    Each axis is multiplied by the matrix of its trigonometric interpolation; what the new box holds beyond
    the old one is zero.
    """
    n, old = volume.box, volume.pixel_size_A
    values = volume.values.to(torch.float64)
    x = (torch.arange(box, dtype=torch.float64) - box // 2) * pixel_size_A / old
    j = torch.arange(n, dtype=torch.float64) - n // 2
    k = torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64).round()
    k = k[k.abs() * 2 * pixel_size_A < n * old] if pixel_size_A > old else k[k.abs() * 2 < n]
    matrix = torch.cos((2 * torch.pi / n) * k * (x[:, None, None] - j[:, None])).sum(-1) / n
    matrix[(x < -(n // 2) - 0.5) | (x > n - n // 2 - 0.5)] = 0
    for _ in range(3):
        values = torch.einsum("zyx,nz->yxn", values, matrix)
    return replace(volume, values=values.to(volume.values.dtype), pixel_size_A=pixel_size_A)


def volume_of(model: Atoms | Volume, settings: SimulationSettings, *, centre: bool = True) -> Volume:
    """The map that is projected: the potential of atoms, or a map on the settings' grid.

    Parameters
    ----------
    centre
        Move the atoms' centre of scattering mass to the origin first; maps stay where they are.
    """
    if isinstance(model, Atoms):
        volume = atoms_to_density(
            model,
            box=settings.box,
            pixel_size_A=settings.pixel_size_A,
            b_factor_A2=settings.b_factor_A2,
            centre=centre,
        )
        return replace(volume, values=volume.values.to(torch.float32))
    same = model.box == settings.box and abs(model.pixel_size_A / settings.pixel_size_A - 1) < 1e-4
    if not same:
        model = resample_volume(model, box=settings.box, pixel_size_A=settings.pixel_size_A)
    return replace(model, values=model.values.to(torch.float32), pixel_size_A=settings.pixel_size_A)


def signal_variance(images: ImageSource) -> float:
    """Mean of the variance over the box of up to 1,000 noise-free images, evenly spread over the stack."""
    n = len(images)
    rows = torch.linspace(0, n - 1, min(n, 1000)).round().long()
    total = 0.0
    for part in rows.split(CHUNK):
        total += float(images[part].var(dim=(-2, -1), correction=0).double().sum())
    return total / len(rows)
