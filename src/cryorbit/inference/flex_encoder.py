"""Latent vectors read from images by a network that is trained along with the Gaussians: amortised inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import Gaussians, Pose
from cryorbit.inference.amortised_map import pack, unpack
from cryorbit.inference.flex_likelihood import FlexLikelihood
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.inference.image_features import ImageFeatures, features_of, taken_how
from cryorbit.models.latent_encoder import Encoded, LatentEncoder
from cryorbit.models.pose_encoder import seeded

_READ = 64
"""Images whose features are read at a time."""
_ENCODED = 1024
_TAUGHT = 0.3
"""Share of the training in which the encoder learns the vectors that the linear model found."""


@dataclass(frozen=True, eq=False)
class FlexEncoder:
    """A trained network and what it looks at."""

    network: LatentEncoder
    features: ImageFeatures

    @torch.no_grad()
    def encode(self, likelihood: FlexLikelihood, pose: Pose, rows: Int[Tensor, "b"]) -> Encoded:
        """Latent vectors of images, of this stack or another one of the same grid. `pose` is that of the whole stack."""
        ctf = None if likelihood.ctf is None else likelihood.ctf[rows]
        return self.network(self.features.read(likelihood, pose, rows), taken_how(pose[rows], ctf))


class AmortisedLatents:
    """The encoder in training. Features are those at the poses that the training begins with, and are kept.

    Parameters
    ----------
    likelihood, pose
        Of all images.
    anchors
        The consensus.
    generator
        Decides the weights at the start and which vectors are drawn.
    """

    def __init__(
        self,
        likelihood: FlexLikelihood,
        pose: Pose,
        anchors: Gaussians,
        settings: FlexSettings,
        generator: torch.Generator,
    ) -> None:
        features = features_of(settings.encoder, anchors, box=likelihood.box)
        rows = torch.arange(len(pose))
        self.seen = torch.cat([features.read(likelihood, pose, part) for part in rows.split(_READ)])
        self.about = taken_how(pose, likelihood.ctf)
        with seeded(generator):
            network = LatentEncoder(self.seen.shape[1], self.about.shape[1], latent=settings.latent)
        network.settle(self.seen, self.about)
        self.encoder, self.generator = FlexEncoder(network, features), generator
        self.rate, self.divergence = settings.encoder_rate, settings.encoder_divergence
        self.taught = settings.start == "linear"
        self.optimiser = torch.optim.Adam(network.parameters(), lr=self.rate)

    def draw(
        self, rows: Int[Tensor, "b"], first: Float[Tensor, "b d"], *, progress: float
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, ""]]:
        """Latent vectors of a batch for the Gaussians to be judged at, and a loss of the encoder, nats per image.

        Parameters
        ----------
        first
            Where latent vectors began. Up to a `progress` of 0.3 the encoder learns these, and they are given back;
            not where they are noise.
        """
        found = self.encoder.network(self.seen[rows], self.about[rows])
        if self.taught and progress < _TAUGHT:
            return first, found.surprise(first).mean()
        noise = torch.randn(found.mean.shape, generator=self.generator)
        return found.draw(noise), self.divergence * found.divergence().mean()

    def step(self, factor: float) -> None:
        """Move the weights against the gradient that has been accumulated, at `factor` times the rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * factor
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    @torch.no_grad()
    def means(self) -> Float[Tensor, "n d"]:
        """The latent vector of every image."""
        parts = zip(self.seen.split(_ENCODED), self.about.split(_ENCODED), strict=True)
        return torch.cat([self.encoder.network(*part).mean for part in parts])

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat; features are read anew."""
        return pack("encoder", self.encoder.network, self.optimiser)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        unpack("encoder", state, self.encoder.network, self.optimiser)
