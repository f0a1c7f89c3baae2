"""`FlexResult`: what a training with moving Gaussians gives."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Pose
from cryorbit.inference.flex_encoder import FlexEncoder
from cryorbit.models.deformation import GaussianModel


@dataclass(frozen=True, eq=False)
class LatentPosterior:
    """Latent vectors of all images under a standard normal prior.

    Parameters
    ----------
    z, precision
        Mean (n, d) and precision (n, d, d) of each image's posterior.
    """

    z: Float[Tensor, "n d"]
    precision: Float[Tensor, "n d d"]


@dataclass(frozen=True, eq=False)
class FlexResult:
    """What was learned from a stack.

    Parameters
    ----------
    model
        z -> Gaussians, light protein, on the images' grey scale.
    z, precision
        Each image's latent vector, the mode of its posterior, (n, d), and its precision (n, d, d).
    pose
        Given, or refined.
    misfit
        Half chi-square of each image, nats.
    numbers
        Whitened real numbers in an image: twice the misfit of a true model, on average.
    box, pixel_size_A
        Grid of the images, on which maps are decoded.
    encoder
        Reads latent vectors from images, where one was trained.
    linear
        What the linear model, where the training began with it, knows of each image: exact for parts that come and go, so
        states are told apart by it.
    """

    model: GaussianModel
    z: Float[Tensor, "n d"]
    precision: Float[Tensor, "n d d"]
    pose: Pose
    misfit: Float[Tensor, "n"]
    numbers: int
    box: int
    pixel_size_A: float
    encoder: FlexEncoder | None = None
    linear: LatentPosterior | None = None
