"""Noise: adding it, measuring it, and bringing images to a common scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class NoiseSpectrum:
    """Noise power per Fourier shell, in the units of |rfft2|^2 of a whole image (white noise: box^2 sigma^2).

    Parameters
    ----------
    power
        Shape (box // 2 + 1,): shell i holds |k| rounded to i; the last holds everything beyond as well.
    standard_error
        Of `power`, from the scatter between images.
    """

    power: Float[Tensor, "shells"]
    standard_error: Float[Tensor, "shells"]


def add_white_noise(
    images: Float[Tensor, "*n h w"], *, sigma: float, generator: torch.Generator
) -> Float[Tensor, "*n h w"]:
    """Images plus independent Gaussian noise of standard deviation `sigma` per pixel."""
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    return images + sigma * noise


def add_coloured_noise(
    images: Float[Tensor, "*n box box"], *, power: Float[Tensor, "shells"], generator: torch.Generator
) -> Float[Tensor, "*n box box"]:
    """Images plus stationary Gaussian noise whose shells have the given power, linear between shells.

    Parameters
    ----------
    power
        Shape (box // 2 + 1,), units of `NoiseSpectrum.power`; beyond the last shell it stays constant.
    """
    box = images.shape[-1]
    if power.shape != (box // 2 + 1,) or bool((power < 0).any()):
        raise BadInput(
            f"add_coloured_noise: wanted {box // 2 + 1} non-negative powers, got {tuple(power.shape)}."
        )
    white = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    amplitude = torch.sqrt(spread_shells(power.to(images), box) / box**2)
    return images + torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(box, box))


def noise_spectrum(
    images: Float[Tensor, "n box box"], *, radius_px: float, edge_px: float = 4.0
) -> NoiseSpectrum:
    """Noise power per shell from the pixels outside a circle, so that the particle does not count.

    The masked image's power, divided by the mask's mean square, estimates the spectrum blurred by the mask's
    transform. The mean outside the circle is taken away first; the lowest shells are therefore a little low.

    Parameters
    ----------
    radius_px
        Radius of the circle the particle lies in; `edge_px` more for the mask to rise to 1.

    Raises
    ------
    BadInput
        If less than 2 % of the image lies outside the circle.
    """
    box = images.shape[-1]
    mask = 1 - _disc(box, radius_px, edge_px, images)
    share = (mask**2).mean()
    if float(share) < 0.02:
        raise BadInput(
            f"noise_spectrum: only {float(share):.1%} of the image lies outside radius {radius_px:.1f} px. "
            "Give a smaller radius or a larger box."
        )
    mean = (images * mask).sum((-2, -1), keepdim=True) / mask.sum()
    power = torch.fft.rfft2((images - mean) * mask).abs().square() / share
    per_image = shell_means(power, box)
    error = (
        per_image.std(0) / len(images) ** 0.5 if len(images) > 1 else torch.full_like(per_image[0], torch.inf)
    )
    return NoiseSpectrum(per_image.mean(0), error)


def normalise_images(images: Float[Tensor, "*n box box"], *, radius_px: float) -> Float[Tensor, "*n box box"]:
    """Images with mean 0 and standard deviation 1 outside the circle of `radius_px` (RELION's convention).

    An image without any variation there is only shifted, not scaled.
    """
    outside = ~_inside(images.shape[-1], radius_px, images)
    if int(outside.sum()) < 8:
        raise BadInput(
            f"normalise_images: fewer than 8 pixels lie outside radius {radius_px:.1f} px of a box of "
            f"{images.shape[-1]} px. Give a smaller radius."
        )
    background = images[..., outside]
    mean = background.mean(-1)[..., None, None]
    spread = background.std(-1)[..., None, None]
    return (images - mean) / torch.where(spread > 0, spread, torch.ones_like(spread))


def spread_shells(shells: Float[Tensor, "*n shells"], box: int) -> Float[Tensor, "*n box half"]:
    """A radial profile (box // 2 + 1 values) on the half plane of rfft2, linear between shells."""
    radius = _radius(box, shells).clamp_max(box // 2)
    low = radius.floor().long().clamp_max(max(box // 2 - 1, 0))
    return torch.lerp(shells[..., low], shells[..., low + 1], radius - low)


def shell_means(plane: Float[Tensor, "*n box half"], box: int) -> Float[Tensor, "*n shells"]:
    """Mean over each shell; every coefficient counts as often as it stands in the whole plane."""
    shell = _radius(box, plane).round().long().clamp_max(box // 2).reshape(-1)
    weight = half_plane_multiplicity(box, plane).expand(box, -1).reshape(-1)
    total = plane.new_zeros((*plane.shape[:-2], box // 2 + 1))
    total.index_add_(-1, shell, plane.reshape(*plane.shape[:-2], -1) * weight)
    return total / weight.new_zeros(box // 2 + 1).index_add_(0, shell, weight)


def half_plane_multiplicity(box: int, like: Tensor) -> Float[Tensor, "half"]:
    """How often each column of rfft2 stands in the whole transform: 1 at kx = 0 and Nyquist, else 2."""
    weight = torch.full((box // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    weight[0] = 1
    if box % 2 == 0:
        weight[-1] = 1
    return weight


def _radius(box: int, like: Tensor) -> Tensor:
    kx = torch.arange(box // 2 + 1, device=like.device, dtype=like.dtype)
    ky = torch.fft.fftfreq(box, d=1 / box, device=like.device, dtype=like.dtype)
    return torch.hypot(kx, ky[:, None])


def _pixel_radius(box: int, like: Tensor) -> Tensor:
    x = torch.arange(box, device=like.device, dtype=like.dtype) - box // 2
    return torch.hypot(x, x[:, None])


def _inside(box: int, radius_px: float, like: Tensor) -> Bool[Tensor, "box box"]:
    return _pixel_radius(box, like) <= radius_px


def _disc(box: int, radius_px: float, edge_px: float, like: Tensor) -> Tensor:
    """1 inside, 0 beyond radius + edge, a raised cosine between."""
    t = ((_pixel_radius(box, like) - radius_px) / edge_px).clamp(0, 1)
    return 0.5 * (1 + torch.cos(torch.pi * t))
