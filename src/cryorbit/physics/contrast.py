"""Is protein light or dark in these images? Estimated from the data, to be reported and overridable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import CTF
from cryorbit.errors import BadInput
from cryorbit.physics.noise import half_plane_multiplicity
from cryorbit.physics.project import transforms_of
from cryorbit.physics.transfer import ctf_image


@dataclass(frozen=True, eq=False)
class ContrastVerdict:
    """Which sign makes protein light, and how sure that is.

    Parameters
    ----------
    sign
        +1: protein is light, use the images as they are; -1: multiply them by -1.
    z_score
        Mean of the per-image evidence over its standard error; positive for light.
    n_images
        How many images spoke.
    """

    sign: int
    z_score: float
    n_images: int

    @property
    def confidence(self) -> float:
        """Probability that the sign is right, for Gaussian evidence: 0.5 knows nothing, 1 is sure."""
        return 0.5 * (1 + math.erf(abs(self.z_score) / math.sqrt(2)))

    def __str__(self) -> str:
        words = "light" if self.sign > 0 else "dark"
        return f"protein is {words} (z = {self.z_score:+.1f} from {self.n_images} images)"


def contrast_sign(
    images: Float[Tensor, "n box box"],
    ctf: CTF | None,
    *,
    pixel_size_A: float,
    radius_A: float | None = None,
) -> ContrastVerdict:
    """Sign of the contrast: whether the middle of the phase-corrected images is lighter than the rest.

    Each image is multiplied by its (positive-sign) CTF, which gives every frequency the sign of the
    potential, and correlated with a centred Gaussian without mean. The mean over images divided by its
    standard error is the evidence. Without a CTF only frequencies below the first zero speak, which the
    Gaussian mostly passes.

    Parameters
    ----------
    radius_A
        Radius of the particle; a quarter of the box where not known. A guess within a factor of two is
        enough.

    Raises
    ------
    BadInput
        With fewer than 2 images, or images without any variation.
    """
    n, box = images.shape[0], images.shape[-1]
    if n < 2:
        raise BadInput(f"contrast_sign: {n} image(s) cannot show a contrast. Give at least 2, better 100.")
    radius_px = box / 4 if radius_A is None else radius_A / pixel_size_A
    template = _template(box, radius_px, images)
    transform = transforms_of(images)
    if ctf is not None:
        transform = transform * ctf_image(ctf, box, pixel_size_A=pixel_size_A, dtype=images.dtype)
    weight = half_plane_multiplicity(box, images)
    evidence = ((transform * template.conj()).real * weight).sum((-2, -1)).double()
    spread = float(evidence.std())
    if not spread > 0:
        raise BadInput("contrast_sign: the images are all alike. Check that they hold data.")
    z = float(evidence.mean()) / (spread / math.sqrt(n))
    return ContrastVerdict(1 if z >= 0 else -1, z, n)


def _template(box: int, radius_px: float, like: Tensor) -> Tensor:
    """Transform of a centred Gaussian as wide as the particle, times |k|^(1/2) against slow gradients."""
    kx = torch.arange(box // 2 + 1, device=like.device, dtype=like.dtype) / box
    ky = torch.fft.fftfreq(box, device=like.device, dtype=like.dtype)
    k = torch.hypot(kx, ky[:, None])
    sigma = 0.5 * radius_px
    profile = torch.exp(-2 * (torch.pi * sigma * k) ** 2) * torch.sqrt(k)
    return profile.to(torch.complex64 if like.dtype == torch.float32 else torch.complex128)
