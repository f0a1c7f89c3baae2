"""A pose encoder trained on a known map: fresh projections, fresh noise, CTFs of the stack that it will serve.

The stack tells what its images are like (CTFs, noise spectrum, contrast, particle size, and with the map the signal's
scale and the spread of the shifts). Its images are searched for nothing but that: no image is ever trained on, and poses
that the stack may have are not looked at. Every step draws new poses, CTFs and noise, so nothing can be learned by heart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from cryorbit.data import ParticleStack, Volume
from cryorbit.inference.amortised_data import tell_noise
from cryorbit.inference.amortised_losses import pose_loss
from cryorbit.inference.amortised_map import pack, unpack
from cryorbit.inference.engine import Progress, generator_from
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.pose_model import ModelFacts, PoseModel
from cryorbit.inference.subject import Subject, prepare_subject
from cryorbit.inference.supervised_settings import SupervisedSettings
from cryorbit.models.pose_encoder import PoseEncoder, make_encoder

WARM_UP = 50
"""Steps over which the learning rate rises."""
FIRST_NOISE = 0.2
"""Of the stack's noise, in the first projections; it rises in proportion to the images seen until `quiet` of the training
is over. With all the noise at once an encoder of 4V5A at SNR 0.1 learned next to nothing from 24,000 images (loss 4.02
against 3.2 nats)."""


class SupervisedTraining:
    """The loop, step by step; `state` and `restore` make it resumable."""

    def __init__(self, subject: Subject, settings: SupervisedSettings) -> None:
        self.subject, self.settings = subject, settings
        self.half = Lattice(subject.map.box).to_half(subject.map.values)
        self.generator = generator_from(None, seed=settings.seed)
        self.encoder = encoder_for(subject, settings, self.generator)
        moving = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(moving, lr=settings.learning_rate)
        self.images = self.steps = 0
        self.seconds = 0.0
        self.loss = math.nan

    @property
    def fraction(self) -> float:
        """Share of the training that is done, by images or by time, whichever is further."""
        by_images = self.images / self.settings.max_images
        by_time = 0.0 if self.settings.minutes is None else self.seconds / (60 * self.settings.minutes)
        return min(1.0, max(by_images, by_time))

    @property
    def done(self) -> bool:
        """Whether all images are seen or the time is up."""
        return self.fraction >= 1.0

    def rate(self) -> float:
        """Learning rate of the next step."""
        s = self.settings
        rising = min(1.0, (self.steps + 1) / WARM_UP)
        return s.learning_rate * rising * (0.505 + 0.495 * math.cos(math.pi * self.fraction))

    def noise(self) -> float:
        """Noise of the next projections over the stack's."""
        if self.fraction >= self.settings.quiet:
            return 1.0
        return FIRST_NOISE + (1 - FIRST_NOISE) * self.fraction / self.settings.quiet

    def step(self) -> float:
        """One batch of fresh projections; its loss."""
        start = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        count = min(self.settings.batch, max(self.settings.max_images - self.images, 2))
        pixel_A = self.subject.observed.box * self.subject.observed.pixel_size_A / self.settings.box_px
        dream = self.subject.dreamer.draw(
            self.half,
            count,
            shift_sd_px=self.subject.shift_sd_A / pixel_A,
            generator=self.generator,
            noise=self.noise(),
        )
        self.encoder.train()
        self.optimiser.zero_grad(set_to_none=True)
        loss = pose_loss(self.encoder, dream, spread=self.settings.spread)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimiser.step()
        self.images += count
        self.steps += 1
        self.seconds += time.perf_counter() - start
        self.loss = float(loss.detach())
        return self.loss

    def model(self) -> PoseModel:
        """The encoder as it stands, with its map and facts."""
        observed, fit, s = self.subject.observed, self.subject.fit, self.settings
        self.encoder.eval()
        facts = ModelFacts(
            encoder=asdict(self.encoder.settings),  # pyright: ignore[reportArgumentType]
            box_px=s.box_px,
            field_of_view_A=observed.box * observed.pixel_size_A,
            prefilter=s.prefilter,
            particle_diameter_A=2 * observed.particle_radius_px * observed.pixel_size_A,
            shift_sd_A=self.subject.shift_sd_A,
            scale=self.subject.scale.scale,
            scale_standard_error=self.subject.scale.standard_error,
            noise_power=observed.noise_power[: s.box_px // 2 + 1].tolist(),
            contrast="dark" if observed.sign < 0 else "light",
            fit={}
            if fit is None
            else {
                "explained": fit.explained,
                "confidence": fit.confidence,
                "searched_for_fit": float(fit.images),
            },
            training={
                "images": self.images,
                "steps": self.steps,
                "seconds": round(self.seconds, 3),
                "loss": self.loss,
                "seed": s.seed,
            },
        )
        return PoseModel(self.encoder, self.subject.map, facts)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        plain = {name: getattr(self, name) for name in ("images", "steps", "seconds", "loss")}
        chance = {"generator": self.generator.get_state()}
        return plain | chance | pack("encoder", self.encoder, self.optimiser)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name in ("images", "steps", "seconds", "loss"):
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])
        unpack("encoder", state, self.encoder, self.optimiser)


def encoder_for(subject: Subject, settings: SupervisedSettings, generator: torch.Generator) -> PoseEncoder:
    """The encoder that the settings ask for, with fresh weights."""
    s = settings
    if s.encoder in ("i2s", "slice"):
        encoder = make_encoder(s.encoder, box=s.box_px, width=s.width, generator=generator)
        tell_noise(encoder, subject.dreamer)
        return encoder
    many = s.encoder in ("standard", "d4-regular")
    return make_encoder(
        s.encoder,
        box=s.box_px,
        width=s.width,
        hypotheses=s.hypotheses if many else 1,
        generator=generator,
        norm="group",
    )


def train_pose_model(
    stack: ParticleStack,
    volume: Volume,
    settings: SupervisedSettings,
    *,
    state: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Yield progress; the last record carries the `PoseModel`. `state` of any record continues from there.

    Raises
    ------
    BadInput
        See `prepare_subject`.
    """
    training = SupervisedTraining(prepare_subject(stack, volume, settings), settings)
    if state:
        training.restore(state)
    while not training.done:
        losses = [training.step() for _ in range(settings.record_every) if not training.done]
        metrics = {
            "loss": sum(losses) / len(losses),
            "learning_rate": training.rate(),
            "noise": training.noise(),
        }
        steps = settings.max_images
        yield Progress("training", training.images, steps, training.fraction, metrics, training.state())
    metrics = {"loss": training.loss}
    yield Progress("done", training.images, training.images, 1.0, metrics, {}, training.model())


__all__ = [
    "Subject",
    "SupervisedSettings",
    "SupervisedTraining",
    "prepare_subject",
    "train_pose_model",
]
