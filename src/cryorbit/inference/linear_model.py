"""`LinearModel`: what a fit of the linear model of volumes gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Volumes mean + sum_k z_k component_k, z ~ N(0, diag(variance)), and what each image says of its z.

    Parameters
    ----------
    mean
        The mean map, on the images' grid and scale (protein light).
    components
        Orthonormal maps, the one of the largest variance first, shape (k, n, n, n).
    variance
        Of the latents in the fitted prior, which is the power of each component in the volumes, shape (k,).
    latent, latent_covariance
        Posterior mean and covariance of each image's z, shapes (images, k) and (images, k, k).
    log_likelihood
        Log marginal likelihood over that of images of nothing but noise, per iteration; comparable within a stage, that is
        where `radius` stays the same. A step that was refused repeats the value before.
    radius
        Highest frequency used in each iteration, Fourier pixels.
    mask
        Outside which no map has density.
    """

    mean: Volume
    components: Float[Tensor, "k n n n"]
    variance: Float[Tensor, "k"]
    latent: Float[Tensor, "i k"]
    latent_covariance: Float[Tensor, "i k k"]
    log_likelihood: list[float]
    radius: list[float]
    mask: Float[Tensor, "n n n"]

    @property
    def rank(self) -> int:
        """Number of components."""
        return len(self.variance)

    def volume(self, z: Float[Tensor, "k"]) -> Volume:
        """The volume at a latent.

        Raises
        ------
        BadInput
            If `z` does not have one number per component.
        """
        if tuple(z.shape) != (self.rank,):
            raise BadInput(f"LinearModel.volume: wanted {self.rank} coordinates, got {tuple(z.shape)}.")
        moved = torch.tensordot(z.to(self.components), self.components, dims=1)
        return Volume(self.mean.values + moved, self.mean.pixel_size_A)

    def standard(self, *, least_variance: float) -> tuple[Float[Tensor, "i k"], Float[Tensor, "i k k"]]:
        """Means and precisions of the images' posteriors where the prior is the standard normal one.

        Parameters
        ----------
        least_variance
            Of the largest: components of less are not there, and their latents stay near 0 with the precision of the prior.
        """
        least = least_variance * float(self.variance.max())
        size = self.variance.double().clamp_min(least).sqrt()
        covariance = self.latent_covariance.double() / (size[:, None] * size)
        gone = self.variance.double() < least
        covariance[:, gone, gone] += (1 - self.variance.double() / least)[gone]
        return (self.latent / size).float(), torch.linalg.inv(covariance).float()

    def squared_distance(self, z: Float[Tensor, "k"]) -> Float[Tensor, "i"]:
        """Mahalanobis distance of every image's posterior to `z`, squared: chi-square of k degrees at its truth."""
        away = (self.latent - z).double()
        return (away * torch.linalg.solve(self.latent_covariance.double(), away)).sum(1).float()
