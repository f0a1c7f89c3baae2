"""A learned prior of density maps: a denoiser of electron scattering density at a stated voxel size and resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.models.map_spectrum import MapSpectrum
from cryorbit.models.pose_encoder import seeded
from cryorbit.models.prior_card import CardedPrior
from cryorbit.models.score import LEVEL_FEATURES, level_features
from cryorbit.nn.unet import UNet

CONDITIONS = LEVEL_FEATURES + 3
_UNKNOWN = 4
"""Resolutions within the range that the spectrum is averaged over where none is known."""


@dataclass(frozen=True, kw_only=True)
class VolumePriorShape:
    """Sizes of the network, its units, and what it was trained for; all of it stands in the checkpoint's card."""

    channels: tuple[int, ...] = (16, 32, 64)
    """Of each level, from the full box down."""
    patch: int = 1
    """2: cubes of two voxels become channels first, for large boxes."""
    blocks: int = 1
    """Blocks per level, down and up."""
    attention: bool = False
    """Voxels of the coarsest level look at one another."""
    box: int = 32
    """Edge of the maps it is trained on; others work, further away the worse."""
    density_scale: float = 1.0
    """Density in the unit of the data per unit of the network; one number for all maps."""
    sigma_data: float = 1.0
    """Root mean square of the maps in units of density_scale, over the training set."""
    voxel_size_A: tuple[float, float] = (3.0, 3.0)
    """Least and largest voxel trained on."""
    resolution_A: tuple[float, float] = (6.0, 6.0)
    """Finest and coarsest low-pass trained on."""
    spectrum: tuple[float, ...] = ()
    """Power of the maps in the network's unit (`map_spectrum.MapSpectrum`); empty: the plain preconditioning of EDM."""
    spectrum_step_per_A: float = 0.01
    """Distance of its samples."""

    def __post_init__(self) -> None:
        for name in ("voxel_size_A", "resolution_A"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise BadInput(
                    f"VolumePriorShape: {name} {low} to {high} is no range. Give the smaller one first."
                )
        if min(self.density_scale, self.sigma_data) <= 0:
            raise BadInput(
                "VolumePriorShape: density_scale and sigma_data have to be positive. Measure them on maps."
            )


@dataclass(frozen=True, eq=False)
class DenoisedMaps:
    """The estimate of clean maps, and the standard deviation per voxel of the error that the spectrum alone would leave."""

    clean: Float[Tensor, "b 1 n n n"]
    expected_error: Float[Tensor, "b"]


class VolumePrior(CardedPrior[VolumePriorShape, UNet]):
    """Network, units and preconditioning: x = density / density_scale, shape (batch, 1, n, n, n).

    D(x; s) = W x + c_out F(c_in x, W x / spread): the network corrects the Wiener filter W of the maps' mean spectrum by
    as much as that errs. For a white spectrum these are the coefficients of Karras et al. 2022. Weights of a new network are
    drawn from `generator`, or torch's global state.
    """

    KIND: ClassVar[str] = "volumes"
    SHAPE: ClassVar[type[VolumePriorShape]] = VolumePriorShape

    def __init__(self, shape: VolumePriorShape, *, generator: torch.Generator | None = None) -> None:
        self.shape = shape
        with seeded(generator):
            self.network = UNet(
                shape.channels,
                conditions=CONDITIONS,
                inputs=2,
                patch=shape.patch,
                blocks=shape.blocks,
                attention=shape.attention,
            )

    def to_latent(self, density: Float[Tensor, "*batch n n n"]) -> Float[Tensor, "*batch n n n"]:
        """From density as `physics.scatter` makes it to the network's unit."""
        return density / self.shape.density_scale

    def to_density(self, x: Float[Tensor, "*batch n n n"]) -> Float[Tensor, "*batch n n n"]:
        """From the network's unit to density."""
        return x * self.shape.density_scale

    def denoiser(
        self,
        *,
        voxel_size: float | Float[Tensor, "b"],
        resolution: float | Float[Tensor, "b"] | None = None,
        guidance: float = 0.0,
    ) -> VolumeDenoiser:
        """The denoiser of maps with voxels of this size and, if known, low-passed to this resolution.

        Parameters
        ----------
        voxel_size, resolution
            In angstrom; one number, or one per sample. Without a resolution the network averages over those it knows.
        guidance
            w of D_without + (1 + w) (D_with - D_without): above 0 samples follow the resolution more closely than the
            data did (Ho and Salimans 2022), and are no longer samples of the prior.

        Raises
        ------
        BadInput
            If a size lies outside what the prior was trained for, or guidance is asked for without a resolution.
        """
        sizes = torch.as_tensor(voxel_size, dtype=torch.float64)
        limits = torch.as_tensor(resolution, dtype=torch.float64) if resolution is not None else None
        self._check("voxel size", sizes, self.shape.voxel_size_A)
        if limits is not None:
            self._check("resolution", limits, self.shape.resolution_A)
        elif guidance:
            raise BadInput("VolumePrior: guidance sharpens a condition. Give the resolution, or guidance 0.")
        return VolumeDenoiser(self, sizes, limits, guidance)

    def _check(self, name: str, value: Tensor, known: tuple[float, float]) -> None:
        """Refuse what the network has never seen; a twentieth beyond is let pass."""
        low, high = known
        if bool(((value < 0.95 * low) | (value > 1.05 * high)).any()):
            raise BadInput(
                f"VolumePrior: {name} {value.flatten().tolist()} A, but this prior was trained on {low:g} to {high:g} A. "
                "Resample the map, or use another prior."
            )

    def denoise(
        self,
        x: Float[Tensor, "b 1 n n n"],
        sigma: Float[Tensor, "b"],
        voxel_size_A: Float[Tensor, "..."],
        resolution_A: Float[Tensor, "..."] | None,
        known: Bool[Tensor, "b"] | None = None,
    ) -> DenoisedMaps:
        """The denoiser with its conditions as arguments; where not `known`, no resolution is told."""
        size = voxel_size_A.to(x).expand(len(x))
        told = torch.ones_like(sigma, dtype=torch.bool) if known is None else known
        if resolution_A is None:
            told, resolution_A = torch.zeros_like(told), size.new_tensor(self.shape.resolution_A[0])
        limit = resolution_A.to(x).expand(len(x))
        anywhere = torch.linspace(*self.shape.resolution_A, _UNKNOWN).to(x)
        start = self.spectrum.filter(x, sigma, size, torch.where(told[:, None], limit[:, None], anywhere))
        seen = torch.cat((_wide(start.into) * x, start.estimate / _wide(start.spread)), dim=1)
        moved = self.network(seen, self._condition(sigma, size, limit, told.to(x)))
        return DenoisedMaps(start.estimate + _wide(start.out) * moved, start.out)

    @property
    def spectrum(self) -> MapSpectrum:
        """Of the maps in the network's unit."""
        return MapSpectrum(self.shape.spectrum, self.shape.spectrum_step_per_A, self.shape.sigma_data**2)

    def _condition(self, sigma: Tensor, size: Tensor, limit: Tensor, told: Tensor) -> Tensor:
        """Features of ln(sigma / sigma_data), voxel size and resolution."""
        level = torch.log((sigma / self.shape.sigma_data).clamp_min(1e-8))
        size = torch.log(size / math.sqrt(math.prod(self.shape.voxel_size_A)))
        limit = torch.log(limit / math.sqrt(math.prod(self.shape.resolution_A)))
        rest = torch.stack((4 * size, 4 * limit * told, told), dim=1)
        return torch.cat((level_features(level), rest), dim=1)


@dataclass(frozen=True, eq=False)
class VolumeDenoiser:
    """D(x; sigma) at a voxel size and resolution (`models.score.Denoiser`); x has shape (b, 1, n, n, n)."""

    prior: VolumePrior
    voxel_size_A: Float[Tensor, "..."]
    resolution_A: Float[Tensor, "..."] | None
    guidance: float = 0.0

    @property
    def sigma_data(self) -> float:
        """Root mean square of the clean maps in units of `density_scale`."""
        return self.prior.shape.sigma_data

    def __call__(
        self, x: Float[Tensor, "b 1 n n n"], sigma: Float[Tensor, "b"]
    ) -> Float[Tensor, "b 1 n n n"]:
        """Mean of the clean maps given the noisy ones."""
        informed = self.prior.denoise(x, sigma, self.voxel_size_A, self.resolution_A).clean
        if not self.guidance:
            return informed
        without = self.prior.denoise(x, sigma, self.voxel_size_A, None).clean
        return without + (1 + self.guidance) * (informed - without)


def _wide(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1, 1)
