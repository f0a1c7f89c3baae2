"""FourierNet: the transform of a map as a network of its coordinates (Levy et al. 2022, cryoAI).

V^(k) = exp(envelope(k)) modulant(k), real and imaginary part each, where both are networks of sines: the envelope takes
the transform's steep fall, the modulant its detail. As published a whole plane of points is computed and nothing makes
the map real. Here a point with x < 0 (or x = 0 and y < 0, ...) is read at its mate and conjugated, so the map is real
by construction and half a disk of points is all there is to know of an image: 2.5 times fewer.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.centred import irfft_centred
from cryorbit.fourier.grid import index_grid
from cryorbit.models.decoder import Decoder, DecoderName
from cryorbit.nn.siren import Precision, Siren

_CHUNK = 1 << 11
"""Coordinates computed at once on a CPU where their values need not be kept; 64 times as many on an accelerator."""


@dataclass(frozen=True, kw_only=True)
class SirenVolumeSettings:
    """How to make a FourierNet; as published unless said otherwise."""

    name: DecoderName = "siren"
    box: int
    """Edge of the map in pixels."""
    amplitude: float = 1.0
    """Size of a typical coefficient of a slice; fresh networks give about a twentieth of it."""
    width: int = 256
    """Sines per layer."""
    modulant_layers: int = 3
    envelope_layers: int = 2
    """Hidden layers beyond the first."""
    modulant_omega: float = 40.0
    envelope_omega: float = 30.0
    """Frequency of the sines."""
    unit_px: float | None = None
    """Fourier pixels where a coordinate is 1; None: box / 2. Stays when the box grows."""
    precision: Precision = "full"
    """Of the hidden layers: that of the weights, or bfloat16."""
    memory: Literal["keep", "recompute"] = "keep"
    """Keep every layer's values for the gradient (14 kB per point at full width), or compute them twice.

    On a CPU the second takes as long as the first, since pieces stay in the cache.
    """

    def __post_init__(self) -> None:
        if self.name != "siren" or self.box < 2 or self.amplitude <= 0 or (self.unit_px or 1.0) <= 0:
            raise BadInput(
                "SirenVolume: wanted name 'siren', box >= 2, amplitude > 0 and unit_px > 0, got "
                f"{self.name!r}, {self.box}, {self.amplitude} and {self.unit_px}."
            )


class SirenVolume(Decoder[SirenVolumeSettings]):
    """A FourierNet. 332,036 weights at full width."""

    def __init__(self, settings: SirenVolumeSettings, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.modulant, self.envelope = (
            Siren(
                inputs=3,
                outputs=2,
                width=settings.width,
                hidden=hidden,
                omega=omega,
                precision=settings.precision,
                generator=generator,
            )
            for hidden, omega in (
                (settings.modulant_layers, settings.modulant_omega),
                (settings.envelope_layers, settings.envelope_omega),
            )
        )

    @property
    def reach_px(self) -> float:
        """Nyquist, which itself is left out."""
        return self.box / 2

    def read(self, rotation: Float[Tensor, "b 3 3"], points: Float[Tensor, "p 2"]) -> Complex[Tensor, "b p"]:
        """`slices` over the amplitude, of points within reach."""
        like = self.modulant.linear()[0].weight
        at = points.to(like.dtype) @ rotation.to(like.dtype)[:, :2]
        if self.settings.memory == "keep" or not torch.is_grad_enabled():
            return self.transform(at)
        parts = [
            checkpoint(self.transform, part, use_reentrant=False, preserve_rng_state=False)
            for part in at.reshape(-1, 3).split(_chunk(like.device))
        ]
        return torch.cat(parts).view(at.shape[:-1])

    def transform(self, at: Float[Tensor, "*batch 3"]) -> Complex[Tensor, "*batch"]:
        """V^ over the amplitude, at (x, y, z) in Fourier pixels."""
        x, y, z = torch.sign(at.detach()).unbind(-1)
        side = torch.where(x == 0, torch.where(y == 0, z, y), x)
        mate = torch.where(side < 0, -1.0, 1.0).to(at.dtype)
        at = at * (mate / (self.settings.unit_px or self.box / 2))[..., None]
        value = torch.exp(self.envelope(at)) * self.modulant(at)
        # The sign is 0 at the origin, where the transform is real.
        return torch.complex(value[..., 0], value[..., 1] * side)

    @torch.no_grad()
    def volume(self, pixel_size_A: float) -> Volume:
        """The map whose transform has these values at whole frequencies below Nyquist; without gradient."""
        like = self.modulant.linear()[0].weight
        grid = index_grid(self.box, ndim=3, device=like.device, dtype=like.dtype)
        inside = grid.square().sum(-1) < self.reach_px**2
        half = torch.zeros(grid.shape[:-1], dtype=torch.complex(like[:0], like[:0]).dtype, device=like.device)
        half[inside] = torch.cat([self.transform(part) for part in grid[inside].split(_chunk(like.device))])
        return Volume(irfft_centred(half, n=self.box, ndim=3) * self.settings.amplitude, pixel_size_A)

    def grown(self, box: int, *, scale: float = 1.0) -> SirenVolume:
        """The same function of frequency up to a higher Nyquist; what lies between was never trained."""
        self.check_growth(box)
        unit = self.settings.unit_px or self.box / 2
        new = deepcopy(self)
        new.settings = replace(
            self.settings, box=box, unit_px=unit, amplitude=self.settings.amplitude * scale
        )
        return new


def _chunk(device: torch.device) -> int:
    return _CHUNK if device.type == "cpu" else 64 * _CHUNK
