"""A learned prior of density maps by way of their tri-planes: a denoiser of planes, and the codec between planes and maps.

Planes know directions, so structures stand in the orientation that their own principal axes give
(`geometry.principal_axes`), and all maps have one voxel size, box and resolution.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadFile, BadInput
from cryorbit.models.pose_encoder import seeded
from cryorbit.models.prior_card import VERSION, opened_card
from cryorbit.models.score import LEVEL_FEATURES, level_features, preconditioning
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
    latent_mean: tuple[float, ...] = ()
    """Of each channel of each plane over the training maps, plane by plane; empty: 0."""
    latent_spread: tuple[float, ...] = ()
    """Their standard deviations; empty: 1. x = (planes - mean) / spread is what is denoised."""

    def __post_init__(self) -> None:
        if min(self.voxel_size_A, self.resolution_A, self.density_scale, *self.latent_spread, 1.0) <= 0:
            raise BadInput(
                "TriplanePriorShape: lengths, density_scale and spreads have to be positive. Measure them on maps."
            )
        for values in (self.latent_mean, self.latent_spread):
            if len(values) not in (0, 3 * self.features):
                raise BadInput(
                    f"TriplanePriorShape: {len(values)} constants for 3 planes of {self.features} channels. Give one each."
                )


class TriplaneNetworks(nn.Module):
    """The codec, and the denoiser of its planes."""

    def __init__(self, shape: TriplanePriorShape) -> None:
        super().__init__()
        self.codec = TriplaneCodec(shape.box, shape.features, shape.hidden)
        self.unet = PlaneUNet(shape.features, shape.channels, conditions=LEVEL_FEATURES)


class TriplanePrior:
    """Networks, units and preconditioning: x = (planes of density / density_scale - mean) / spread, (batch, 3, c, n, n).

    D(x; s) = c_skip x + c_out F(c_in x; c_noise) with the coefficients of Karras et al. 2022 for data of unit variance.
    Weights of new networks are drawn from `generator`, or torch's global state.
    """

    def __init__(self, shape: TriplanePriorShape, *, generator: torch.Generator | None = None) -> None:
        self.shape = shape
        with seeded(generator):
            self.network = TriplaneNetworks(shape)

    def to_latent(self, density: Float[Tensor, "b n n n"]) -> Float[Tensor, "b 3 c n n"]:
        """From density as `physics.scatter` makes it to whitened planes."""
        planes = self.network.codec.encoder(density / self.shape.density_scale)
        mean, spread = self._constants(planes)
        return (planes - mean) / spread

    def to_density(self, x: Float[Tensor, "b 3 c n n"]) -> Float[Tensor, "b n n n"]:
        """From whitened planes to density at the planes' own voxels."""
        return self.network.codec.decoder.at_voxels(self.to_planes(x)) * self.shape.density_scale

    def to_planes(self, x: Float[Tensor, "b 3 c n n"]) -> Float[Tensor, "b 3 c n n"]:
        """From whitened planes to those that the decoder reads."""
        mean, spread = self._constants(x)
        return x * spread + mean

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        count = 3 * self.shape.features
        mean, spread = self.shape.latent_mean or (0.0,) * count, self.shape.latent_spread or (1.0,) * count
        wide = (3, self.shape.features, 1, 1)
        return like.new_tensor(mean).view(wide), like.new_tensor(spread).view(wide)

    def denoiser(self) -> TriplaneDenoiser:
        """The denoiser of whitened planes; there is nothing to condition on."""
        return TriplaneDenoiser(self)

    def card(self) -> dict[str, Any]:
        """All that `from_state` needs beside the tensors, JSON-able."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.shape).items()}
        return {"kind": "triplanes", "version": VERSION, **plain}

    def tensors(self) -> dict[str, Tensor]:
        """The networks' weights by name."""
        return dict(self.network.state_dict())

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], card: dict[str, Any]) -> TriplanePrior:
        """The prior of `tensors` and `card`, ready to sample with.

        Raises
        ------
        BadFile
            If they are of another kind of prior, or do not belong together.
        """
        given = opened_card(card, "triplanes")
        try:
            known: dict[str, Any] = {name: given[name] for name in TriplanePriorShape.__dataclass_fields__}
            known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
            prior = cls(TriplanePriorShape(**known), generator=torch.Generator())
            prior.network.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            raise BadFile(
                f"This prior's card does not fit its weights ({error}). Train or download it anew."
            ) from error
        prior.network.requires_grad_(False).eval()
        return prior


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
        c = preconditioning(sigma, 1.0)
        moved = self.prior.network.unet(_wide(c.into) * x, level_features(4 * c.noise))
        return _wide(c.skip) * x + _wide(c.out) * moved


def _wide(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1, 1)
