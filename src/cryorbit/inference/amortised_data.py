"""What amortised inference sees of the images: cropped ones for the encoder, whitened half disks for the likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.inference.observations import Observations
from cryorbit.inference.ring_em import NOISE_FLOOR, SmallImages
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction
from cryorbit.models.slice_encoder import SliceEncoder
from cryorbit.physics.lattice import read_plane

Prefilter = Literal["none", "flip", "wiener"]

_WIENER = 0.1
"""Added to the squared CTF in the prefilter: what defocus took from low frequencies comes back, ten times at most."""


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Some images on the half disk of frequencies below a radius, divided by the deviation of the noise.

    With s the deviation, `transform` is X / s and `ctf` is C / s; both fit each other in `misfit`.
    """

    transform: Complex[Tensor, "b p"]
    ctf: Float[Tensor, "b p"]
    points: Float[Tensor, "p 2"]
    """(kx, ky) in Fourier pixels."""
    box: int
    """Edge of the cropped images in pixels, the unit of shifts."""

    def __len__(self) -> int:
        return len(self.ctf)

    def within(self, radius: float) -> ImageBatch:
        """The frequencies below a smaller radius."""
        keep = self.points.square().sum(1) <= radius**2
        return ImageBatch(self.transform[:, keep], self.ctf[:, keep], self.points[keep], self.box)

    def target(self, shift_px: Float[Tensor, "b k 2"]) -> Complex[Tensor, "b k p"]:
        """Whitened transforms with each image's centre moved back by each of its shifts."""
        phase = shift_px @ self.points.T * (2 * math.pi / self.box)
        return self.transform[:, None] * torch.polar(torch.ones_like(phase), phase)


def misfit(
    batch: ImageBatch, slices: Complex[Tensor, "b k p"], shift_px: Float[Tensor, "b k 2"]
) -> Float[Tensor, "b k"]:
    """sum_k |X - C e^(-2 pi i k.t) S|^2 / s^2 over the half disk: minus the log-likelihood, up to a constant."""
    residual = batch.target(shift_px) - slices * batch.ctf[:, None]
    return torch.view_as_real(residual).square().sum((-2, -1))


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Cropped images of a stack, held in memory, with what is known of their CTF and noise."""

    small: SmallImages
    inputs: Float[Tensor, "n box box"]
    """What the encoder is given."""
    prefilter: Prefilter = "none"

    @classmethod
    def of(cls, small: SmallImages, prefilter: Prefilter = "wiener") -> TrainingImages:
        """Prepare the encoder's inputs once: the images as they are, with phases flipped, or deconvolved."""
        if prefilter == "none":
            return cls(small, small.images, prefilter)
        n, inputs = small.box, torch.empty_like(small.images)
        points = _half_plane(n)
        for part in torch.arange(len(small.images)).split(512):
            rows = small.rows[part]
            gain = _gain(small.observed.ctf(rows, points), prefilter)
            transform = small.observed.undo_odd_phase(torch.fft.rfft2(small.images[part]), rows, points)
            inputs[part] = torch.fft.irfft2(transform * gain, s=(n, n))
        return cls(small, inputs, prefilter)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def box(self) -> int:
        """Edge of the cropped images in pixels."""
        return self.small.box

    @property
    def pixels_per_pixel(self) -> float:
        """Pixels of the stack per pixel of the cropped images."""
        return self.small.observed.box / self.box

    def batch(self, index: Int[Tensor, "b"], points: Float[Tensor, "p 2"]) -> ImageBatch:
        """Whitened transforms of some images at whole frequencies `points` within the cropped box."""
        observed, n, rows = self.small.observed, self.box, self.small.rows[index]
        half = torch.fft.rfft2(torch.fft.ifftshift(self.small.images[index], dim=(-2, -1)))
        values = half[:, points[:, 1].long() % n, points[:, 0].long()]
        values = observed.undo_odd_phase(values, rows, points)
        deviation = observed.noise_at(points.norm(dim=1), floor=NOISE_FLOOR).sqrt()
        return ImageBatch(values / deviation, observed.ctf(rows, points) / deviation, points, n)

    def dream(
        self,
        half: Complex[Tensor, "p p h"],
        count: int,
        *,
        shift_sd_px: float,
        generator: torch.Generator,
    ) -> Dream:
        """See `Dreamer.draw`; CTFs are those of these images."""
        return self.dreamer().draw(half, count, shift_sd_px=shift_sd_px, generator=generator)

    def dreamer(self) -> Dreamer:
        """What makes images like these."""
        return Dreamer(self.small.observed, self.small.rows, self.box, self.prefilter)


@dataclass(frozen=True, eq=False)
class Dreamer:
    """Makes images of a map as a stack would show them: its CTFs and noise, as the encoder sees images."""

    observed: Observations
    rows: Int[Tensor, "n"]
    """Particles whose CTFs are drawn from."""
    box: int
    """Edge of the cropped images in pixels, even."""
    prefilter: Prefilter = "none"

    @torch.no_grad()
    def draw(
        self,
        half: Complex[Tensor, "p p h"],
        count: int,
        *,
        shift_sd_px: float,
        generator: torch.Generator,
        noise: float = 1.0,
    ) -> Dream:
        """Fresh projections of a map at random poses, with CTFs of the stack and fresh noise, `noise` times the stack's.

        `half` is the map's transform on a lattice twice as fine as a Fourier pixel; shifts in pixels of the cropped box.
        """
        observed, n = self.observed, self.box
        rotation = random_rotations(count, generator=generator, dtype=torch.float32)
        shift = torch.randn(count, 2, generator=generator) * shift_sd_px
        rows = self.rows[torch.randint(len(self.rows), (count,), generator=generator)]
        points = _half_plane(n)
        radius = points.norm(dim=-1)
        inside = radius < n / 2 - 1
        at = points[inside]
        kx, ky = (2 * at).unbind(1)
        ctf = observed.ctf(rows, points)
        values = read_plane(half, rotation, kx.contiguous(), ky.contiguous()) * ctf[:, inside]
        phase = shift @ at.T * (-2 * math.pi / n)
        transform = torch.zeros(count, n, n // 2 + 1, dtype=values.dtype)
        transform[:, inside] = values * torch.polar(torch.ones_like(phase), phase)
        deviation = observed.noise_at(radius, floor=0.0).sqrt() * (noise / n)
        grain = torch.fft.rfft2(torch.randn(count, n, n, generator=generator)) * deviation
        grain[:, n // 2], grain[..., n // 2] = 0, 0  # cropped images have nothing at Nyquist
        gain = _gain(ctf, self.prefilter)
        centred = torch.fft.irfft2(transform * gain, s=(n, n))
        images = torch.fft.fftshift(centred, dim=(-2, -1)) + torch.fft.irfft2(grain * gain, s=(n, n))
        return Dream(images, rotation, shift)

    def noise_power(self, radius: Float[Tensor, "r"]) -> Float[Tensor, "r"]:
        """Mean power of the noise in the encoder's images at radii in Fourier pixels, after the prefilter."""
        angle = torch.arange(12) * (math.pi / 12)
        points = radius[:, None, None] * torch.stack((angle.cos(), angle.sin()), -1)
        rows = self.rows[torch.linspace(0, len(self.rows) - 1, min(len(self.rows), 300)).long()]
        gain = _gain(self.observed.ctf(rows, points), self.prefilter)
        return self.observed.noise_at(radius, floor=0.0) * gain.square().mean((0, 2))


def tell_noise(encoder: PoseEncoder, dreamer: Dreamer) -> None:
    """Give an encoder that whitens its images the spectrum of their noise."""
    if isinstance(encoder, SliceEncoder):
        encoder.set_noise(dreamer.noise_power(encoder.polar.radii()))


@dataclass(frozen=True, eq=False)
class Dream:
    """Images made from a map, as the encoder sees images, with their poses; shifts in pixels of the cropped box."""

    images: Float[Tensor, "b box box"]
    rotation: Float[Tensor, "b 3 3"]
    shift_px: Float[Tensor, "b 2"]


def _half_plane(n: int) -> Float[Tensor, "n h 2"]:
    """(kx, ky) of every entry of rfft2 of n x n pixels, Fourier pixels."""
    ky, kx = torch.fft.fftfreq(n) * n, torch.fft.rfftfreq(n) * n
    return torch.stack((kx.expand(n, -1), ky[:, None].expand(-1, n // 2 + 1)), -1)


def _gain(ctf: Tensor, prefilter: Prefilter) -> Tensor:
    if prefilter == "none":
        return torch.ones_like(ctf)
    return ctf.sign() if prefilter == "flip" else ctf / (ctf.square() + _WIENER)


def with_hypotheses(*parts: PosePrediction) -> PosePrediction:
    """The hypotheses of several predictions for the same images side by side."""
    if len({len(p) for p in parts}) != 1:
        raise BadInput(f"with_hypotheses: predictions for {[len(p) for p in parts]} images.")
    logits = torch.cat([p.logits for p in parts], 1)
    return PosePrediction(
        torch.cat([p.rotation for p in parts], 1),
        logits,
        torch.cat([p.shift_px for p in parts], 1),
        1 / logits.shape[1],
    )
