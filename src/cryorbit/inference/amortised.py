"""Poses by a network: an encoder and a map trained together on nothing but the images.

The encoder looks at an image once and gives pose hypotheses; the map's slices at these poses are compared with the image
(`amortised_losses`), and both are moved: the encoder by gradient, the map by gradient or by the sums of `ring_em`. The
radius of frequencies that are compared grows (frequency marching). With `teacher` > 0 a part of each batch is searched
exhaustively and the encoder learns from what was found (`hybrid`); with 0 nothing but the encoder ever proposes a pose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.amortised_data import TrainingImages
from cryorbit.inference.amortised_settings import AmortisedSettings
from cryorbit.inference.amortised_training import Training
from cryorbit.inference.engine import Progress, generator_from, workers
from cryorbit.inference.hybrid import Hybrid
from cryorbit.inference.observations import contrast_of, observe
from cryorbit.inference.ring_em import crop_small


@dataclass(frozen=True, eq=False)
class AmortisedResult:
    """What the encoder says of all images, and the map."""

    pose: Pose
    confidence: Float[Tensor, "n"]
    """Probability of the chosen hypothesis."""
    entropy: Float[Tensor, "n"]
    """Of the hypotheses, nats."""
    map: Volume
    image_visits: int
    steps: int
    radius: int
    """Frequencies that the poses were found with, Fourier pixels."""
    searched: bool
    """Whether there was a teacher."""
    parity_share: float
    """What a two-signed component of the residuals would explain, as a share of what the map does; 0 without a teacher."""


def run_amortised(
    stack: ParticleStack, settings: AmortisedSettings, *, state: dict[str, Any] | None = None
) -> Iterator[Progress]:
    """Yield progress; the last record carries the `AmortisedResult`. `state` of any record continues from there.

    Raises
    ------
    BadInput
        If there are too few images, or they are unusable.
    """
    if len(stack) < max(2 * settings.batch, 50):
        raise BadInput(f"{stack.source}: {len(stack)} images are too few for poses by a network.")
    training = new_training(training_images(stack, settings), settings)
    if state:
        training.restore(state)
    while not training.done:
        losses = [training.step() for _ in range(settings.record_every) if not training.done]
        metrics = {"image_visits": float(training.visits), "loss": sum(losses) / len(losses)}
        yield Progress(
            training.stage,
            training.visits,
            training.expected_visits,
            training.fraction,
            metrics | training.metrics(),
            training.state(),
        )
    result = result_of(training)
    yield Progress("done", 1, 1, 1.0, {"image_visits": float(training.visits)}, {}, result)


def new_training(images: TrainingImages, settings: AmortisedSettings) -> Training | Hybrid:
    """The loop that the settings ask for, at its beginning: pure, or with a teacher."""
    return Hybrid(images, settings) if settings.teacher > 0 else Training(images, settings)


def result_of(training: Training | Hybrid) -> AmortisedResult:
    """Poses of all images as they stand, and the map."""
    images = training.images
    observed = images.small.observed
    found = training.poses(torch.arange(len(images)))
    return AmortisedResult(
        Pose(found.rotation, found.shift_px * observed.pixel_size_A),
        found.confidence,
        found.entropy,
        training.volume(),
        training.visits,
        training.steps,
        int(training.radius()),
        training.settings.teacher > 0,
        training.parity_share,
    )


def training_images(stack: ParticleStack, settings: AmortisedSettings) -> TrainingImages:
    """Read, measure and crop all images of a stack."""
    observed = observe(
        stack,
        sign=contrast_of(stack, settings.contrast),
        particle_diameter_A=settings.particle_diameter_A,
        generator=generator_from(None, seed=settings.seed),
    )
    with workers(1) as team:
        small = crop_small(observed, torch.arange(len(stack)), min(settings.box_px, stack.box), team)
    return TrainingImages.of(small, settings.prefilter)
