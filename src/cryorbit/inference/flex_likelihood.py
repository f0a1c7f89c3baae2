"""How well Gaussians explain images: noise-whitened misfit in Fourier space, CTF and pose of each image in it."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.data import CTF, Gaussians, Pose
from cryorbit.errors import BadInput
from cryorbit.fourier.shells import sample_weight
from cryorbit.inference.observations import Observations
from cryorbit.physics.splat import splat_transforms

_NOISE_FLOOR = 0.02
"""Of the images' own power: noise is never taken to be less, so that images without noise can be used too."""


class FlexLikelihood:
    """Images of a stack against Gaussians. The misfit is chi-square / 2: nats, up to a constant.

    Parameters
    ----------
    observed
        The stack and its noise; it must have poses.
    resolution_A
        Detail that counts; None: nearly to Nyquist.

    Raises
    ------
    BadInput
        If the resolution is finer than the pixels show.
    """

    def __init__(self, observed: Observations, *, resolution_A: float | None) -> None:
        box, pixel = observed.box, observed.pixel_size_A
        limit = box / 2 - 0.5 if resolution_A is None else box * pixel / resolution_A
        if limit > box / 2:
            raise BadInput(
                f"flex: {resolution_A:g} A is finer than pixels of {pixel:g} A show. Give {2 * pixel:.3g} A or coarser."
            )
        ky, kx = torch.fft.fftfreq(box, 1 / box), torch.arange(box // 2 + 1.0)
        radius = (ky[:, None].square() + kx.square()).sqrt()
        noise = observed.noise_at(radius, floor=_NOISE_FLOOR)
        # The background's mean was taken off the images, so their lowest coefficient tells nothing.
        used = (radius < limit) & (radius > 0.5)
        # Half of chi-square; what the half plane leaves out counts as well, with the same residual.
        self.weight = torch.where(used, 0.5 * sample_weight(box, ndim=2) / noise, 0.0).to(torch.float32)
        self.observed, self.box, self.pixel_size_A, self.limit_px = observed, box, pixel, float(limit)
        self.count = int((used * sample_weight(box, ndim=2)).sum())

    @property
    def ctf(self) -> CTF | None:
        """Of all images."""
        return self.observed.stack.ctf

    def transforms(self, rows: Int[Tensor, "b"]) -> Complex[Tensor, "b box half"]:
        """Transforms of images, in the layout of `torch.fft.rfft2`, origin at pixel box // 2."""
        return torch.fft.rfft2(torch.fft.ifftshift(self.observed.images(rows), dim=(-2, -1)))

    def model(
        self, gaussians: Gaussians, pose: Pose, rows: Int[Tensor, "b"]
    ) -> Complex[Tensor, "b box half"]:
        """Transforms of what Gaussians, one conformation per image or one for all, look like in the images."""
        ctf = None if self.ctf is None else self.ctf[rows]
        return splat_transforms(gaussians, pose, ctf, box=self.box, pixel_size_A=self.pixel_size_A)

    def misfit(
        self, model: Complex[Tensor, "b box half"], data: Complex[Tensor, "b box half"]
    ) -> Float[Tensor, "b"]:
        """Half of each image's chi-square: about half of `count` for a true model."""
        return (self.weight * (model - data).abs().square()).sum((-2, -1))

    def inner(
        self, a: Complex[Tensor, "b p box half"], b: Complex[Tensor, "b q box half"]
    ) -> Float[Tensor, "b p q"]:
        """Products of whitened transforms: `inner(r, r)` is twice `misfit`."""
        scale = (2 * self.weight).sqrt()
        left, right = (torch.view_as_real(x * scale).flatten(2) for x in (a, b))
        return left @ right.mT
