"""From what an image shows to its latent vector, in one pass: a network that knows the view and the defocus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.models.deformation import coefficient_net

_LAYERS = 3
_LEAST_LOG_VARIANCE, _MOST_LOG_VARIANCE = -10.0, 2.0
_FIRST_LOG_VARIANCE = -1.0


@dataclass(frozen=True, eq=False)
class Encoded:
    """A normal distribution of each image's latent vector, its coordinates independent of each other."""

    mean: Float[Tensor, "b d"]
    log_variance: Float[Tensor, "b d"]

    def draw(self, noise: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """The vectors that standard normal `noise` stands for, differentiable in mean and variance."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def divergence(self) -> Float[Tensor, "b"]:
        """Kullback-Leibler divergence to the standard normal distribution, nats per image."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance).sum(1)

    def surprise(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
        """Negative log density at z, nats per image, up to a constant."""
        away = (z - self.mean).square() * (-self.log_variance).exp()
        return 0.5 * (away + self.log_variance).sum(1)


class LatentEncoder(nn.Module):
    """Features of an image and of how it was taken, to a normal distribution of its latent vector.

    What was seen enters a residual network; what is known of the view scales and shifts its hidden units (FiLM, Perez et al.
    2018), because the same features mean something else from another side. Both are standardised by buffers, which
    `settle` measures.

    Parameters
    ----------
    features, about
        How many numbers say what the image shows, and how it was taken.
    latent
        Length of a latent vector.
    width
        Hidden units.
    """

    def __init__(self, features: int, about: int, *, latent: int, width: int = 256) -> None:
        super().__init__()
        for name, count in (("features", features), ("about", about)):
            self.register_buffer(f"{name}_mean", torch.zeros(count))
            self.register_buffer(f"{name}_scale", torch.ones(count))
        self.features_mean: Tensor
        self.features_scale: Tensor
        self.about_mean: Tensor
        self.about_scale: Tensor
        self.first = nn.Linear(features, width)
        self.film = coefficient_net(about, 2 * _LAYERS * width, width=64)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(_LAYERS))
        self.last = nn.Linear(width, 2 * latent)
        with torch.no_grad():
            self.last.weight[latent:] *= 0.1
            self.last.bias[:latent].zero_()
            self.last.bias[latent:].fill_(_FIRST_LOG_VARIANCE)

    @torch.no_grad()
    def settle(self, features: Float[Tensor, "n f"], about: Float[Tensor, "n a"]) -> None:
        """Take means and deviations from a data set; numbers that never vary are left out."""
        for name, values in (("features", features), ("about", about)):
            deviation = values.std(0) if len(values) > 1 else torch.zeros_like(values[0])
            varies = deviation > 1e-6 * values.abs().amax(0).clamp_min(1e-30)
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_scale").copy_(torch.where(varies, 1 / deviation, 0.0))

    def forward(self, features: Float[Tensor, "b f"], about: Float[Tensor, "b a"]) -> Encoded:
        """Means and log variances."""
        seen = (features - self.features_mean) * self.features_scale
        known = self.film((about - self.about_mean) * self.about_scale).unflatten(-1, (_LAYERS, 2, -1))
        hidden = self.first(seen)
        for k, layer in enumerate(self.layers):
            scale, shift = known[:, k].unbind(1)
            hidden = hidden + layer(nn.functional.silu(hidden * (1 + scale) + shift))
        mean, log_variance = self.last(hidden).chunk(2, dim=-1)
        return Encoded(mean, log_variance.clamp(_LEAST_LOG_VARIANCE, _MOST_LOG_VARIANCE))
