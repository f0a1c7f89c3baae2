"""What a simulated stack has before it shows anything: settings, and the poses, CTF and noise drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import CTF, ImageSource, ParticleStack, Pose
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.physics.noise import spread_shells


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
class StackPlan:
    """All that is drawn for a stack, whatever its images show.

    Parameters
    ----------
    pose, ctf
        How each image is made.
    micrograph
        Number of the micrograph of each image, from 0.
    first_seed
        Image i draws its noise from seed first_seed + i.
    noise_shape
        Amplitude of the noise on the half plane, mean square 1, or None for white noise.
    sign
        +1 for light, -1 for dark protein.
    """

    pose: Pose
    ctf: CTF
    micrograph: Int[Tensor, "n"]
    first_seed: int
    noise_shape: Float[Tensor, "box half"] | None
    sign: float

    def stack(self, images: ImageSource, settings: SimulationSettings) -> ParticleStack:
        """The images with CTF, half sets, micrographs and optics groups; without poses."""
        n, micrograph = len(self.pose), self.micrograph
        return ParticleStack(
            images=images,
            pixel_size_A=settings.pixel_size_A,
            ids=np.array([f"{i + 1:06d}@particles.mrcs" for i in range(n)]),
            ctf=self.ctf,
            half_set=1 + micrograph % 2 if int(micrograph[-1]) else 1 + torch.arange(n) % 2,
            micrograph=np.array([f"micrograph_{i + 1:05d}.mrc" for i in micrograph.tolist()]),
            optics_group=1 + micrograph % settings.optics_groups,
            source="simulation",
        )


def plan_stack(settings: SimulationSettings, *, ctf_table: CTF | None = None) -> StackPlan:
    """Draw poses, CTF and the seed of the noise; the settings' seed decides all of it.

    Raises
    ------
    BadInput
        If the CTF table is empty.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    n = settings.n_particles
    rotation = _rotations(settings, generator)
    shift_A = settings.shift_sd_A * torch.randn(n, 2, generator=generator)
    micrograph = torch.arange(n) // settings.particles_per_micrograph
    ctf = _ctf_from_ranges(settings, micrograph, generator)
    if ctf_table is not None:
        ctf = _draw_rows(ctf_table, n, generator)
    first_seed = int(torch.randint(2**32, (1,), generator=generator))
    sign = 1.0 if settings.contrast == "light" else -1.0
    return StackPlan(Pose(rotation, shift_A), ctf, micrograph, first_seed, _noise_shape(settings), sign)


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
