"""The transform of a map on a lattice, every point of it a weight: nothing but what was seen near a point moves it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.centred import irfft_centred, rfft_centred
from cryorbit.fourier.filters import soft_sphere_mask
from cryorbit.fourier.grid import radius_grid
from cryorbit.fourier.resample import box_crop, box_pad
from cryorbit.models.decoder import Decoder, DecoderName
from cryorbit.physics.lattice import read_plane


@dataclass(frozen=True, kw_only=True)
class LatticeVolumeSettings:
    """How to make a transform on a lattice."""

    name: DecoderName = "fourier"
    box: int
    """Edge of the map in pixels."""
    amplitude: float = 1.0
    """Size of a typical coefficient of a slice; a fresh map has it below half of Nyquist."""
    padding: Literal[1, 2] = 2
    """Lattice points per Fourier pixel and axis. 1 takes an eighth of the memory and reads less exactly."""

    def __post_init__(self) -> None:
        if self.name != "fourier" or self.box < 4 or self.amplitude <= 0 or self.padding not in (1, 2):
            raise BadInput(
                "LatticeVolume: wanted name 'fourier', box >= 4, amplitude > 0 and padding 1 or 2, got "
                f"{self.name!r}, {self.box}, {self.amplitude} and {self.padding}."
            )

    @property
    def points(self) -> int:
        """Samples of the transform per axis: those of the padded map."""
        return self.padding * self.box

    @property
    def edge(self) -> int:
        """Lattice points per axis that are stored, an even number."""
        return self.points + self.points % 2


class LatticeVolume(Decoder[LatticeVolumeSettings]):
    """The stored half of V^ on a lattice (see `physics.interpolation`), read by trilinear interpolation.

    `pairs` (P, P, P / 2 + 1, 2) holds real and imaginary parts over the amplitude. Its plane x = 0 is Hermitian to begin
    with, and gradients are brought to that plane's Hermitian part; so it stays, to the last bit, under any optimiser
    that treats every number alike (SGD, Adam).

    A fresh map is a soft ball of a quarter of the box with a coarse random texture: of the right place and size for
    poses to mean something, and without symmetry.
    """

    def __init__(
        self,
        settings: LatticeVolumeSettings,
        *,
        pairs: Float[Tensor, "p p h 2"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.pairs = nn.Parameter(_fresh(settings, generator) if pairs is None else pairs)

    @classmethod
    def of(cls, volume: Volume, *, amplitude: float = 1.0, padding: Literal[1, 2] = 2) -> LatticeVolume:
        """The decoder of a map."""
        settings = LatticeVolumeSettings(box=volume.box, amplitude=amplitude, padding=padding)
        return cls(settings, pairs=torch.view_as_real(_transform_of(volume.values / amplitude, settings)))

    @property
    def reach_px(self) -> float:
        """As far as cells have all their corners."""
        return (self.settings.edge / 2 - 1 - 1e-3) / self.settings.padding

    def read(self, rotation: Float[Tensor, "b 3 3"], points: Float[Tensor, "p 2"]) -> Complex[Tensor, "b p"]:
        """`slices` over the amplitude, of points within reach."""
        kx, ky = (points.to(self.pairs.dtype) * self.settings.padding).unbind(1)
        return read_plane(_HermitianPlane.apply(self.pairs), rotation, kx.contiguous(), ky.contiguous())

    @torch.no_grad()
    def volume(self, pixel_size_A: float) -> Volume:
        """The map whose interpolated transform this is, cut to the box; without gradient."""
        values = _map_of(torch.view_as_complex(self.pairs), self.settings)
        return Volume(values * self.settings.amplitude, pixel_size_A)

    @torch.no_grad()
    def confine(self, *, radius_px: float, edge_px: float = 3.0) -> None:
        """Set the map to zero outside a soft sphere, in place: what is known of the particle's size."""
        values = _map_of(torch.view_as_complex(self.pairs), self.settings)
        mask = soft_sphere_mask(
            self.box, radius_px=radius_px, edge_px=edge_px, device=values.device, dtype=values.dtype
        )
        self.pairs.copy_(torch.view_as_real(_transform_of(values * mask, self.settings)))

    @torch.no_grad()
    def grown(self, box: int, *, scale: float = 1.0) -> LatticeVolume:
        """The same lattice with zeros around it."""
        self.check_growth(box)
        old = self.settings
        settings = replace(old, box=box, amplitude=old.amplitude * scale)
        before, kept = (settings.edge - old.edge) // 2, self.pairs.detach().clone()
        if before:
            # The last plane on either side has no mate inside, and is never read.
            kept[0], kept[:, 0], kept[:, :, -1] = 0, 0, 0
        pairs = nn.functional.pad(kept, (0, 0, 0, before, before, before, before, before))
        return LatticeVolume(settings, pairs=pairs)


class _HermitianPlane(torch.autograd.Function):
    """Pairs as complex numbers; backward keeps of the plane x = 0 the part g(-k) = conj g(k).

    The orthogonal projection on the transforms of real maps: along any of them, the derivative is unchanged.
    """

    @staticmethod
    def forward(ctx: Any, pairs: Tensor) -> Tensor:
        return torch.view_as_complex(pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # In place: `read_plane` made this buffer for us alone, and copying it would cost as much as filling it.
        _make_hermitian(grads[0])
        return torch.view_as_real(grads[0])


def _make_hermitian(half: Tensor) -> None:
    """Replace the plane x = 0 by its Hermitian part, in place."""
    plane = half[:, :, 0]
    mate = plane.flip(0, 1).roll((1, 1), (0, 1)).conj()
    plane.copy_((plane + mate) / 2)


def _transform_of(values: Tensor, settings: LatticeVolumeSettings) -> Complex[Tensor, "p p h"]:
    """The lattice whose interpolated transform is that of the map: the kernel's sinc^2 is divided out beforehand."""
    padded = box_pad(values / _kernel(settings, values), settings.points, ndim=3)
    half = torch.fft.fftshift(rfft_centred(padded, ndim=3), dim=(0, 1))
    if settings.points % 2:
        half = nn.functional.pad(half, (0, 1, 1, 0, 1, 0))
    half = half.contiguous()
    _make_hermitian(half)
    return half


def _map_of(half: Tensor, settings: LatticeVolumeSettings) -> Float[Tensor, "n n n"]:
    """The inverse of `_transform_of`."""
    if settings.points % 2:
        half = half[1:, 1:, :-1]
    values = irfft_centred(torch.fft.ifftshift(half, dim=(0, 1)), n=settings.points, ndim=3)
    values = box_crop(values, settings.box, ndim=3)
    return values * _kernel(settings, values)


def _kernel(settings: LatticeVolumeSettings, like: Tensor) -> Tensor:
    """Transform of the trilinear kernel at the pixels of the map."""
    x = torch.arange(settings.box, device=like.device, dtype=like.dtype) - settings.box // 2
    axis = torch.sinc(x / settings.points) ** 2
    return axis[:, None, None] * axis[:, None] * axis


def _fresh(settings: LatticeVolumeSettings, generator: torch.Generator | None) -> Float[Tensor, "p p h 2"]:
    """The pairs of a soft ball of a quarter of the box, textured by noise of a few Fourier pixels; of size 1."""
    box, device = settings.box, None if generator is None else generator.device
    noise = torch.randn(box, box, box, generator=generator, device=device).cpu()
    smooth = torch.exp(-radius_grid(box, ndim=3).square() / (2 * 4.0**2))
    texture = torch.fft.irfftn(torch.fft.rfftn(noise) * smooth, s=(box,) * 3)
    ball = soft_sphere_mask(box, radius_px=box / 4, edge_px=box / 8)
    half = _transform_of(ball * (1 + texture / texture.std()), settings)
    low = torch.fft.fftshift(radius_grid(settings.edge, ndim=3), dim=(0, 1)) < settings.padding * box / 4
    return torch.view_as_real(half / half[low].abs().square().mean().sqrt())
