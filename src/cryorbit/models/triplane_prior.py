"""A learned prior of density maps by way of their tri-planes: a denoiser of planes, and the codec between planes and maps.

Planes know directions, so structures stand in the orientation that their own principal axes give
(`geometry.principal_axes`), and all maps have one voxel size, box and resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.fourier.shells import shell_index
from cryorbit.models.map_spectrum import Wiener, wiener
from cryorbit.models.pose_encoder import seeded
from cryorbit.models.prior_card import CardedPrior
from cryorbit.models.score import LEVEL_FEATURES, level_features
from cryorbit.models.triplane_codec import TriplaneCodec
from cryorbit.nn.plane_unet import PlaneUNet


@dataclass(frozen=True, kw_only=True)
class TriplanePriorShape:
    """Sizes of the networks, and the units; all of it stands in the checkpoint's card."""

    box: int = 32
    """Edge of planes and maps."""
    voxel_size_A: float = 3.0
    """Of planes and maps."""
    resolution_A: float = 6.0
    """Low-pass of the maps."""
    density_scale: float = 1.0
    """Density in the unit of the data per unit of the codec; one number for all maps."""
    features: int = 4
    """Channels of a plane."""
    hidden: int = 32
    """Channels within encoder and decoder."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Of the denoiser, from the full plane down."""
    latent_spread: tuple[float, ...] = ()
    """Standard deviation about the mean planes of each channel of each plane over the training maps; empty: 1."""
    latent_spectrum: tuple[float, ...] = ()
    """Power of x = (planes - mean planes) / spread at 0, 1, 2, ... cycles per plane, white noise of variance 1 having 1;
    empty: 1, and with it the plain preconditioning of EDM."""

    def __post_init__(self) -> None:
        positive = (self.voxel_size_A, self.resolution_A, self.density_scale, *self.latent_spread)
        if min(*positive, *self.latent_spectrum, 1.0) <= 0:
            raise BadInput(
                "TriplanePriorShape: lengths, scales, spreads and powers have to be positive. Measure them on maps."
            )
        if len(self.latent_spread) not in (0, 3 * self.features):
            raise BadInput(
                f"TriplanePriorShape: {len(self.latent_spread)} spreads for 3 planes of {self.features} channels. Give one "
                "each."
            )


class TriplaneNetworks(nn.Module):
    """The codec, the mean of its planes over the training maps, and the denoiser of what is left of them."""

    mean: Tensor

    def __init__(self, shape: TriplanePriorShape) -> None:
        super().__init__()
        self.codec = TriplaneCodec(shape.box, shape.features, shape.hidden)
        self.register_buffer("mean", torch.zeros(3, shape.features, shape.box, shape.box))
        self.unet = PlaneUNet(shape.features, shape.channels, conditions=LEVEL_FEATURES, inputs=2)


class TriplanePrior(CardedPrior[TriplanePriorShape, TriplaneNetworks]):
    """Networks, units and preconditioning: x = (planes of density / density_scale - mean) / spread, (batch, 3, c, n, n).

    D(x; s) = W x + c_out F(c_in x, W x / spread) with the Wiener filter W of the planes' spectrum, as maps have it
    (`models.volume_prior`); for a white spectrum these are the coefficients of Karras et al. 2022. Upright molecules are
    much alike, so the mean planes hold most of the power; they stand beside the weights, the other constants in the card.
    Weights of new networks are drawn from `generator`, or torch's global state.
    """

    KIND: ClassVar[str] = "triplanes"
    SHAPE: ClassVar[type[TriplanePriorShape]] = TriplanePriorShape

    def __init__(self, shape: TriplanePriorShape, *, generator: torch.Generator | None = None) -> None:
        self.shape = shape
        with seeded(generator):
            self.network = TriplaneNetworks(shape)

    def to_latent(self, density: Float[Tensor, "b n n n"]) -> Float[Tensor, "b 3 c n n"]:
        """From density as `physics.scatter` makes it to whitened planes."""
        planes = self.network.codec.encoder(density / self.shape.density_scale)
        return (planes - self.network.mean) / self._spread(planes)

    def to_density(self, x: Float[Tensor, "b 3 c n n"]) -> Float[Tensor, "b n n n"]:
        """From whitened planes to density at the planes' own voxels."""
        return self.network.codec.decoder.at_voxels(self.to_planes(x)) * self.shape.density_scale

    def to_planes(self, x: Float[Tensor, "b 3 c n n"]) -> Float[Tensor, "b 3 c n n"]:
        """From whitened planes to those that the decoder reads."""
        return x * self._spread(x) + self.network.mean

    def _spread(self, like: Tensor) -> Tensor:
        spread = self.shape.latent_spread or (1.0,) * (3 * self.shape.features)
        return like.new_tensor(spread).view(3, self.shape.features, 1, 1)

    def start(self, x: Float[Tensor, "b 3 c n n"], sigma: Float[Tensor, "b"]) -> Wiener:
        """What the spectrum alone makes of noisy planes."""
        power = x.new_tensor(self.shape.latent_spectrum or (1.0,))
        shell = shell_index(x.shape[-1], ndim=2, device=x.device)
        variance = power[shell.clamp_max(len(power) - 1)]
        return wiener(x, variance.expand(len(x), *variance.shape), sigma)

    def denoise(self, x: Float[Tensor, "b 3 c n n"], sigma: Float[Tensor, "b"]) -> DenoisedPlanes:
        """The estimate of clean planes, and how far off the spectrum's own is expected to be."""
        start = self.start(x, sigma)
        seen = torch.cat((_wide(start.into) * x, start.estimate / _wide(start.spread)), dim=2)
        moved = self.network.unet(seen, level_features(torch.log(sigma.clamp_min(1e-8))))
        return DenoisedPlanes(start.estimate + _wide(start.out) * moved, start.out)

    def denoiser(self) -> TriplaneDenoiser:
        """The denoiser of whitened planes; there is nothing to condition on."""
        return TriplaneDenoiser(self)


@dataclass(frozen=True, eq=False)
class DenoisedPlanes:
    """The estimate of clean planes, and the standard deviation of the error that the spectrum alone would leave."""

    clean: Float[Tensor, "b 3 c n n"]
    expected_error: Float[Tensor, "b"]


@dataclass(frozen=True, eq=False)
class TriplaneDenoiser:
    """D(x; sigma) of whitened planes (`models.score.Denoiser`), shape (b, 3, c, n, n)."""

    prior: TriplanePrior

    @property
    def sigma_data(self) -> float:
        """1: the planes are whitened."""
        return 1.0

    def __call__(
        self, x: Float[Tensor, "b 3 c n n"], sigma: Float[Tensor, "b"]
    ) -> Float[Tensor, "b 3 c n n"]:
        """Mean of the clean planes given the noisy ones."""
        return self.prior.denoise(x, sigma).clean


def _wide(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1, 1)
