"""Maps that are learnt from their slices: what a decoder is, and how to make one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryorbit.data import Volume
from cryorbit.errors import BadInput

DecoderName = Literal["fourier", "siren"]


class DecoderSettings(Protocol):
    """`make_decoder(**dataclasses.asdict(settings))` makes the decoder again, without its weights."""

    @property
    def name(self) -> DecoderName:
        """Which kind of decoder."""
        ...

    @property
    def box(self) -> int:
        """Edge of the map, and side of its images, in pixels."""
        ...

    @property
    def amplitude(self) -> float:
        """Size of a typical coefficient of a slice: weights are in this unit, whatever the scale of the images."""
        ...


S = TypeVar("S", bound=DecoderSettings, covariant=True)


class Decoder(nn.Module, ABC, Generic[S]):
    """The transform V^ of a real map of `box` pixels: V^(-k) = conj V^(k), whatever the weights.

    Transforms are unnormalised with the origin at index box // 2, so that a slice is the transform of the sum of the
    map's pixels along the view. What lies at `reach_px` Fourier pixels or beyond is zero.
    """

    settings: S

    @property
    def box(self) -> int:
        """Edge of the map in pixels."""
        return self.settings.box

    @property
    @abstractmethod
    def reach_px(self) -> float:
        """Frequencies below this are represented, in Fourier pixels: about box / 2."""

    def slices(
        self, rotation: Float[Tensor, "b 3 3"], points: Float[Tensor, "p 2"]
    ) -> Complex[Tensor, "b p"]:
        """V^ at A^T (kx, ky, 0), differentiable in the weights and in `rotation`.

        Parameters
        ----------
        rotation
            RELION's A of each image.
        points
            (kx, ky) in Fourier pixels of the box, whole or not; half a disk is enough, the other half is its conjugate.
        """
        if (
            rotation.ndim != 3
            or tuple(rotation.shape[1:]) != (3, 3)
            or points.ndim != 2
            or points.shape[1] != 2
        ):
            raise BadInput(
                "Decoder.slices: wanted rotations (b, 3, 3) and points (p, 2), got "
                f"{tuple(rotation.shape)} and {tuple(points.shape)}."
            )
        inside = points.square().sum(1, keepdim=True) < self.reach_px**2
        values = self.read(rotation, points * inside)
        return values * (self.settings.amplitude * inside[:, 0])

    @abstractmethod
    def read(self, rotation: Float[Tensor, "b 3 3"], points: Float[Tensor, "p 2"]) -> Complex[Tensor, "b p"]:
        """`slices` over the amplitude, of points within reach."""

    @abstractmethod
    def volume(self, pixel_size_A: float) -> Volume:
        """The map, without gradient."""

    @abstractmethod
    def grown(self, box: int, *, scale: float = 1.0) -> Decoder:
        """A decoder of a larger box over the same field of view, whose slices are `scale` times these where both reach.

        Images resampled with their values kept (`fourier_resample`) have transforms (box / old box)^2 as large.
        """

    def check_growth(self, box: int) -> None:
        """Raise BadInput if `box` is smaller than the present one."""
        if box < self.box:
            raise BadInput(f"Decoder.grown: box {box} is smaller than {self.box}. Decoders only grow.")


def make_decoder(
    name: DecoderName,
    *,
    box: int,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Decoder:
    """A decoder with fresh weights.

    Parameters
    ----------
    name
        "fourier" (the transform on a lattice) or "siren" (cryoAI's FourierNet).
    box
        Edge of the map in pixels.
    generator
        Draws the weights; torch's global state does if None.
    options
        Fields of `LatticeVolumeSettings` or `SirenVolumeSettings`.

    Raises
    ------
    BadInput
        If the name or an option is unknown.
    """
    from cryorbit.models.fourier_volume import LatticeVolume, LatticeVolumeSettings
    from cryorbit.models.siren_volume import SirenVolume, SirenVolumeSettings

    if name not in get_args(DecoderName):
        raise BadInput(f"Decoder {name!r} is not one of {', '.join(get_args(DecoderName))}.")
    known = (LatticeVolumeSettings if name == "fourier" else SirenVolumeSettings).__dataclass_fields__
    if unknown := sorted(set(options) - set(known)):
        raise BadInput(f"Decoder {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    if name == "fourier":
        return LatticeVolume(LatticeVolumeSettings(box=box, **options), generator=generator)
    return SirenVolume(SirenVolumeSettings(box=box, **options), generator=generator)
