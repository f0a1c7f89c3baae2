"""Tri-planes of one map, by gradient descent on planes and decoder together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import shift_phase
from cryorbit.models.pose_encoder import seeded
from cryorbit.models.triplane import TriplaneDecoder, moved_planes


@dataclass(frozen=True, kw_only=True)
class TriplaneFitSettings:
    """How tri-planes are fitted to a map."""

    channels: int = 8
    """Features per plane."""
    hidden: int = 32
    """Width of the decoder."""
    steps: int = 300
    """Of Adam."""
    learning_rate: float = 0.05
    """Of the planes, falling along half a cosine; a fifth of it for the decoder."""
    small_planes: float = 1e-4
    """Weight of the planes' mean square beside the map's relative square error: of planes that do as well the smaller."""


@dataclass(frozen=True, eq=False)
class FittedTriplanes:
    """density = scale * decoder(planes).

    Parameters
    ----------
    planes
        Shape (3, c, n, n), `models.triplane.AXES`.
    scale
        Root mean square of the map, the decoder's unit.
    pixel_size_A
        Of the planes, as of the map.
    """

    planes: Float[Tensor, "3 c n n"]
    decoder: TriplaneDecoder
    scale: float
    pixel_size_A: float

    @torch.no_grad()
    def volume(self, *, box: int | None = None) -> Volume:
        """The map on the planes' grid, or on a finer one over the same field of view."""
        values = self.decoder.at_voxels(self.planes[None], box=box)[0] * self.scale
        return Volume(values, self.pixel_size_A * self.planes.shape[-1] / values.shape[-1])


def fit_triplanes(
    volume: Volume, settings: TriplaneFitSettings | None = None, *, generator: torch.Generator
) -> FittedTriplanes:
    """Fit planes and a decoder to a map, between its voxels too: each step compares both moved by another part of a voxel.

    The map moved by its Fourier transform is the target there, so the fitted density is held to be band-limited as the
    map is.

    Raises
    ------
    BadInput
        If the map is zero everywhere.
    """
    how = settings or TriplaneFitSettings()
    scale = float(volume.values.square().mean().sqrt())
    if not scale > 0:
        raise BadInput("fit_triplanes: the map is empty. Give one with density in it.")
    target = volume.values / scale
    n = volume.box
    with seeded(generator):
        decoder = TriplaneDecoder(how.channels, how.hidden).to(target)
    planes = 0.3 * torch.randn(1, 3, how.channels, n, n, generator=generator, dtype=target.dtype)
    planes = planes.to(target).requires_grad_()
    optimiser = torch.optim.Adam(
        [
            {"params": [planes], "lr": how.learning_rate},
            {"params": decoder.parameters(), "lr": how.learning_rate / 5},
        ],
        betas=(0.9, 0.99),
    )
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / how.steps))
    )
    for _ in range(how.steps):
        shift = (torch.rand(1, 3, generator=generator, dtype=target.dtype) - 0.5).to(target)
        error = decoder.at_voxels(moved_planes(planes, shift)) - moved_maps(target[None], shift)
        optimiser.zero_grad(set_to_none=True)
        (error.square().mean() + how.small_planes * planes.square().mean()).backward()
        optimiser.step()
        falling.step()
    return FittedTriplanes(planes.detach()[0], decoder.requires_grad_(False), scale, volume.pixel_size_A)


def moved_maps(maps: Float[Tensor, "b n n n"], shift_px: Float[Tensor, "b 3"]) -> Float[Tensor, "b n n n"]:
    """Maps moved by +shift (x, y, z), circularly; exact below Nyquist."""
    n, dims = maps.shape[-1], (-3, -2, -1)
    return torch.fft.irfftn(
        torch.fft.rfftn(maps, dim=dims) * shift_phase(shift_px, n=n), s=(n, n, n), dim=dims
    )
