"""What a trained model shows at given latents: Gaussians, maps, and how far each Gaussian moves along a series of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Atoms, Gaussians, Volume
from cryorbit.models.deformation import GaussianModel
from cryorbit.physics.gaussian_atoms import gaussians_to_atoms
from cryorbit.physics.splat import gaussians_to_map


@torch.no_grad()
def decode_gaussians(model: GaussianModel, latents: Float[Tensor, "m d"]) -> list[Gaussians]:
    """The Gaussians at each latent vector, one conformation each."""
    return [_single(model(z[None].to(model.position))) for z in latents]


def _single(gaussians: Gaussians) -> Gaussians:
    """Without the axis of conformations."""
    position, amplitude = gaussians.position_A, gaussians.amplitude
    return Gaussians(
        position[0] if position.ndim == 3 else position,
        amplitude[0] if amplitude.ndim == 2 else amplitude,
        gaussians.width_A,
    )


def decode_maps(
    model: GaussianModel, latents: Float[Tensor, "m d"], *, box: int, pixel_size_A: float
) -> Iterator[Volume]:
    """The map at each latent vector, in order."""
    for gaussians in decode_gaussians(model, latents):
        yield gaussians_to_map(gaussians, box=box, pixel_size_A=pixel_size_A)


@dataclass(frozen=True, eq=False)
class Motion:
    """How each Gaussian moves along a series of conformations.

    Parameters
    ----------
    mean
        The Gaussians in the middle of their ways, amplitudes averaged.
    step_A
        From where each is at the first conformation to where it is at the last, (n, 3).
    rms_A
        Root of its mean squared distance from the middle of its way, (n,).
    fade
        1 less its smallest over its largest amplitude, (n,): 0 for what is always there, 1 for what comes and goes.
    """

    mean: Gaussians
    step_A: Float[Tensor, "n 3"]
    rms_A: Float[Tensor, "n"]
    fade: Float[Tensor, "n"]

    def step_of_those_that_stay_A(self) -> Float[Tensor, "m"]:
        """Lengths of the steps of the Gaussians that keep half of their amplitude: where one is absent is no place."""
        length = self.step_A.norm(dim=1)
        stay = self.fade < 0.5
        return length[stay] if bool(stay.any()) else length

    def b_factor_A2(self) -> Float[Tensor, "n"]:
        """8 pi^2 / 3 times the mean squared displacement: the B-factor of an atom that is spread like that."""
        return 8 * math.pi**2 / 3 * self.rms_A.square()

    def atoms(self) -> Atoms:
        """A pseudo-atom per Gaussian, in the middle of its way, with that B-factor."""
        return replace(gaussians_to_atoms(self.mean), b_factor_A2=self.b_factor_A2())


def motion_of(series: list[Gaussians]) -> Motion:
    """The motion along conformations of the same Gaussians."""
    position = torch.stack([g.position_A for g in series])
    every = torch.stack([g.amplitude for g in series])
    amplitude, most = every.mean(0), every.max(0).values
    middle = position.mean(0)
    rms = (position - middle).square().sum(-1).mean(0).sqrt()
    fade = 1 - every.min(0).values / most.clamp_min(torch.finfo(most.dtype).tiny)
    return Motion(Gaussians(middle, amplitude, series[0].width_A), position[-1] - position[0], rms, fade)


def best_view(motion: Motion) -> Float[Tensor, "3 3"]:
    """A rotation after which the motion is seen across the line of sight, the +z axis, and the molecule lies wide.

    The line of sight is the direction with the least of the motion, and of the molecule's own spread where the motion
    leaves a choice; of the two directions across it, the longer side of the molecule becomes x.
    """
    weight = motion.mean.amplitude.clamp_min(0)
    place = motion.mean.position_A - (weight[:, None] * motion.mean.position_A).sum(0) / weight.sum()

    def spread(vectors: Tensor) -> Tensor:
        total = (weight[:, None] * vectors).T @ vectors
        return total / total.trace().clamp_min(1e-12)

    axes = torch.linalg.eigh((spread(motion.step_A) + 0.2 * spread(place)).double()).eigenvectors
    sight = axes[:, 0]
    across = axes[:, 1:].T
    flat = place.double() @ across.T
    inside = torch.linalg.eigh((weight.double()[:, None] * flat).T @ flat).eigenvectors[:, 1]
    wide = inside @ across
    return torch.stack((wide, torch.linalg.cross(sight, wide), sight)).to(place)
