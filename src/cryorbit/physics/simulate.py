"""Simulated particle stacks with known truth: project, filter by the CTF, shift, add noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import CTF, Atoms, ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.physics.formation import form_images
from cryorbit.physics.noise import spread_shells
from cryorbit.physics.project import FourierVolume, prepare
from cryorbit.physics.scatter import atoms_to_density

_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """What to simulate. One seed decides everything."""

    n_particles: int = 3000
    """Number of images."""
    box: int = 96
    """Edge of an image, pixels."""
    pixel_size_A: float = 4.0
    """Pixel size, angstrom."""
    snr: float = 0.1
    """Variance of the CTF-filtered, shifted signal over the whole box (mean of the data set) divided by the
    noise variance. `inf` for none."""
    shift_sd_A: float = 10.0
    """Standard deviation of the shifts per axis, angstrom."""
    defocus_um: tuple[float, float] = (1.0, 3.0)
    """Lowest and highest mean underfocus of a micrograph, micrometre. Ignored when a CTF table is given."""
    astigmatism_A: float = 300.0
    """Largest difference between the two defocus values. Ignored when a CTF table is given."""
    voltage_kV: float = 300.0
    """Acceleration voltage. Ignored when a CTF table is given."""
    cs_mm: float = 2.7
    """Spherical aberration. Ignored when a CTF table is given."""
    amplitude_contrast: float = 0.1
    """Amplitude contrast, 0 to 1. Ignored when a CTF table is given."""
    phase_shift_deg: float = 0.0
    """Phase plate, degrees. Ignored when a CTF table is given."""
    envelope_b_factor_A2: float = 0.0
    """B-factor of the CTF's envelope. Ignored when a CTF table is given."""
    b_factor_A2: float = 100.0
    """B-factor of every atom when the model is made of atoms."""
    orientations: Literal["uniform", "preferred"] = "uniform"
    """`preferred`: views crowd around one axis of the particle, both ends alike."""
    noise: Literal["white", "coloured"] = "white"
    """`coloured`: power falls to a third from the lowest to the highest shell; the variance is the same."""
    contrast: Literal["light", "dark"] = "light"
    """`dark`: the images are multiplied by -1, as they come from a camera."""
    optics_groups: int = 1
    """Number of optics groups; whole micrographs belong to one."""
    particles_per_micrograph: int = 30
    """Particles that share a micrograph name and, nearly, a defocus."""
    seed: int = 0
    """Decides poses, CTF, half sets and noise."""

    def __post_init__(self) -> None:
        low, high = self.defocus_um
        checks = {
            "n_particles must be at least 1": self.n_particles >= 1,
            "box must be at least 8": self.box >= 8,
            "pixel_size_A must be positive": self.pixel_size_A > 0,
            "snr must be positive; write inf for images without noise": self.snr > 0,
            "shift_sd_A must not be negative": self.shift_sd_A >= 0,
            "defocus_um wants LOW HIGH with LOW <= HIGH": low <= high,
            "particles_per_micrograph must be at least 1": self.particles_per_micrograph >= 1,
            "optics_groups must be at least 1": self.optics_groups >= 1,
        }
        for message, holds in checks.items():
            if not holds:
                raise BadInput(f"SimulationSettings: {message}, got {self}.")


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
        parts = [self._some(part) for part in rows.split(_CHUNK)]
        return torch.cat(parts) if parts else torch.zeros(0, self.box, self.box)

    def chunks(self, size: int = 256) -> Iterator[Float[Tensor, "n h w"]]:
        """All images in order, `size` at a time, for a writer."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @torch.no_grad()
    def _some(self, rows: Tensor) -> Tensor:
        images = self.sign * form_images(self.map, self.pose[rows], self.ctf[rows], mode="exact")
        if self.sigma == 0:
            return images
        noise = torch.empty_like(images)
        for row, target in zip(rows.tolist(), noise, strict=True):
            target.normal_(generator=torch.Generator().manual_seed((self.first_seed + row) % 2**32))
        if self.noise_shape is not None:
            noise = torch.fft.irfft2(torch.fft.rfft2(noise) * self.noise_shape, s=(self.box, self.box))
        return images.add_(noise, alpha=self.sigma)


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
    generator = torch.Generator().manual_seed(settings.seed)
    n = settings.n_particles
    volume = _volume_of(model, settings)
    rotation = _rotations(settings, generator)
    shift_A = settings.shift_sd_A * torch.randn(n, 2, generator=generator)
    micrograph = torch.arange(n) // settings.particles_per_micrograph
    ctf = _ctf_from_ranges(settings, micrograph, generator)
    if ctf_table is not None:
        ctf = _draw_rows(ctf_table, n, generator)
    first_seed = int(torch.randint(2**32, (1,), generator=generator))
    images = SimulatedImages(
        prepare(volume),
        Pose(rotation, shift_A),
        ctf,
        0.0,
        _noise_shape(settings),
        first_seed,
        1.0 if settings.contrast == "light" else -1.0,
    )
    sigma = (_signal_variance(images) / settings.snr) ** 0.5
    stack = ParticleStack(
        images=replace(images, sigma=sigma),
        pixel_size_A=settings.pixel_size_A,
        ids=np.array([f"{i + 1:06d}@particles.mrcs" for i in range(n)]),
        ctf=ctf,
        half_set=1 + micrograph % 2 if int(micrograph[-1]) else 1 + torch.arange(n) % 2,
        micrograph=np.array([f"micrograph_{i + 1:05d}.mrc" for i in micrograph.tolist()]),
        optics_group=1 + micrograph % settings.optics_groups,
        source="simulation",
    )
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


def _volume_of(model: Atoms | Volume, settings: SimulationSettings) -> Volume:
    if isinstance(model, Atoms):
        volume = atoms_to_density(
            model, box=settings.box, pixel_size_A=settings.pixel_size_A, b_factor_A2=settings.b_factor_A2
        )
        return replace(volume, values=volume.values.to(torch.float32))
    same = model.box == settings.box and abs(model.pixel_size_A / settings.pixel_size_A - 1) < 1e-4
    if not same:
        model = resample_volume(model, box=settings.box, pixel_size_A=settings.pixel_size_A)
    return replace(model, values=model.values.to(torch.float32), pixel_size_A=settings.pixel_size_A)


def _rotations(settings: SimulationSettings, generator: torch.Generator) -> Tensor:
    """Uniform rotations, or with viewing directions (third rows) stretched along the particle's z axis."""
    rotation = random_rotations(settings.n_particles, generator=generator, dtype=torch.float64)
    if settings.orientations == "preferred":
        # Uniform directions stretched fourfold along z: density on the sphere ~ (1 - 15/16 cos^2)^(-3/2).
        view = torch.nn.functional.normalize(rotation[:, 2] * rotation.new_tensor([1.0, 1.0, 4.0]), dim=1)
        first = torch.nn.functional.normalize(torch.linalg.cross(rotation[:, 1], view), dim=1)
        rotation = torch.stack((first, torch.linalg.cross(view, first), view), dim=1)
    return rotation.to(torch.float32)


def _ctf_from_ranges(settings: SimulationSettings, micrograph: Tensor, generator: torch.Generator) -> CTF:
    """One defocus per micrograph, particles at heights of a few hundred angstrom around it."""
    n, m = settings.n_particles, int(micrograph[-1]) + 1
    low, high = (1e4 * v for v in settings.defocus_um)
    mean = low + (high - low) * torch.rand(m, generator=generator)
    height = 200.0 * torch.randn(n, generator=generator)
    mean = (mean[micrograph] + height).clamp(low, high)
    half = 0.5 * settings.astigmatism_A * torch.rand(m, generator=generator)[micrograph]
    angle = 180.0 * torch.rand(m, generator=generator)[micrograph] - 90.0
    return CTF(
        defocus_u_A=mean + half,
        defocus_v_A=mean - half,
        astigmatism_angle_deg=angle,
        voltage_kV=torch.full((n,), settings.voltage_kV),
        cs_mm=torch.full((n,), settings.cs_mm),
        amplitude_contrast=torch.full((n,), settings.amplitude_contrast),
        phase_shift_deg=torch.full((n,), settings.phase_shift_deg),
        b_factor_A2=torch.full((n,), settings.envelope_b_factor_A2),
        scale=torch.ones(n),
    )


def _draw_rows(table: CTF, n: int, generator: torch.Generator) -> CTF:
    if len(table) == 0:
        raise BadInput("simulate: the CTF table has no rows. Give one that has, or a defocus range.")
    rounds = [torch.randperm(len(table), generator=generator) for _ in range(-(-n // len(table)))]
    return table[torch.cat(rounds)[:n]]


def _noise_shape(settings: SimulationSettings) -> Tensor | None:
    if settings.noise == "white":
        return None
    box = settings.box
    power = spread_shells(torch.logspace(0, -0.5, box // 2 + 1, base=10), box)
    white = torch.full_like(power, 2.0)
    white[:, 0] = 1
    if box % 2 == 0:
        white[:, -1] = 1
    return torch.sqrt(power / ((power * white).sum() / box**2))


def _signal_variance(images: SimulatedImages) -> float:
    """Mean over images of the variance over the box of the noise-free image."""
    n = len(images)
    rows = torch.linspace(0, n - 1, min(n, 1000)).round().long()
    total = 0.0
    for part in rows.split(_CHUNK):
        total += float(images[part].var(dim=(-2, -1), correction=0).double().sum())
    return total / len(rows)
