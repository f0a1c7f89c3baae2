"""A pose encoder trained on a known map: fresh projections, fresh noise, CTFs of the stack that it will serve.

The stack tells what its images are like (CTFs, noise spectrum, contrast, particle size, and with the map the signal's
scale and the spread of the shifts). Its images are searched for nothing but that: no image is ever trained on, and poses
that the stack may have are not looked at. Every step draws new poses, CTFs and noise, so nothing can be learned by heart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cryorbit.data import ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.amortised_data import Dreamer, Prefilter
from cryorbit.inference.amortised_losses import pose_loss
from cryorbit.inference.amortised_map import pack, unpack
from cryorbit.inference.engine import Progress, generator_from
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.map_scale import MapScale, fit_scale, map_for_images
from cryorbit.inference.observations import Contrast, Observations, contrast_of, observe
from cryorbit.inference.pose_model import ModelFacts, PoseModel
from cryorbit.models.pose_encoder import EncoderName, PoseEncoder, make_encoder
from cryorbit.models.slice_encoder import SliceEncoder

WARM_UP = 50
"""Steps over which the learning rate rises."""
FIRST_NOISE = 0.2
"""Of the stack's noise, in the first projections; it rises in proportion to the images seen until `quiet` of the training
is over. With all the noise at once an encoder of 4V5A at SNR 0.1 learned next to nothing from 24,000 images (loss 4.02
against 3.2 nats)."""
SHIFT_SD = 0.05
"""Spread of the shifts per axis over the field of view, unless told or measured."""


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings:
    """How an encoder is trained on a known map."""

    encoder: EncoderName = "d4-regular"
    """From image to poses: hypotheses (d4-regular, standard), one pose (d4, c4), or a grid of rotations (i2s, slice)."""
    box_px: int = 32
    """The network sees images cropped in Fourier space to this box."""
    map_px: int = 64
    """Edge of the map that predicted poses are refined against; at most the images' box."""
    width: float = 0.25
    """Channels of the encoder relative to the published network."""
    hypotheses: int = 4
    """Poses per image (standard), per image and element of D4 (d4-regular)."""
    max_images: int = 40_000
    """Projections to train on."""
    minutes: float | None = None
    """Stop after this time at the latest; the learning rate then follows the clock, and runs differ in the last bits."""
    batch: int = 16
    """Projections per step."""
    learning_rate: float = 1e-3
    """Of Adam at its highest; it falls along a half cosine."""
    spread: float = 0.3
    """Width of a hypothesis in the loss, as a Frobenius norm of a difference of rotations."""
    quiet: float = 0.5
    """Share of the training in which the noise rises from a fifth of the stack's to all of it; 0: all from the start."""
    prefilter: Prefilter = "wiener"
    """What is done to the CTF in the images that the encoder sees."""
    shift_sd_A: float | None = None
    """Spread of the particles' shifts per axis; 5 % of the field of view when not given."""
    particle_diameter_A: float | None = None
    """Diameter of the particle; measured from the images when not given."""
    contrast: Contrast = "auto"
    """Protein light on dark ice, or dark on light; auto asks the images."""
    seed: int = 0
    """Seed of everything random."""
    record_every: int = 20
    """Steps per record of progress."""

    def __post_init__(self) -> None:
        wanted = {
            "--box-px even and 8 or more": self.box_px >= 8 and self.box_px % 2 == 0,
            "--map-px even and not below --box-px": self.map_px >= self.box_px and self.map_px % 2 == 0,
            "--max-images of at least two batches": self.max_images >= 2 * self.batch,
            "--batch 2 or more": self.batch >= 2,
            "--width, --learning-rate and --spread positive": min(self.width, self.learning_rate, self.spread)
            > 0,
            "--hypotheses 1 or more": self.hypotheses >= 1,
            "--quiet 0 to 1": 0 <= self.quiet <= 1,
            "--minutes positive": self.minutes is None or self.minutes > 0,
            "--shift-sd-A positive": self.shift_sd_A is None or self.shift_sd_A > 0,
        }
        if missed := [text for text, good in wanted.items() if not good]:
            raise BadInput(f"Wanted {'; '.join(missed)}.")


@dataclass(frozen=True, eq=False)
class Subject:
    """What is trained on: a map on the images' scale, and how images of it look in the stack."""

    observed: Observations
    map: Volume
    scale: MapScale
    shift_sd_A: float
    dreamer: Dreamer


def prepare_subject(stack: ParticleStack, volume: Volume, settings: SupervisedSettings) -> Subject:
    """Measure the stack and bring the map to its images.

    Raises
    ------
    BadInput
        If the images are too small or unusable, or map and images do not go together.
    """
    s = settings
    if stack.box < s.box_px:
        raise BadInput(
            f"{stack.source}: images of {stack.box} px are smaller than --box-px {s.box_px}. Give a smaller --box-px."
        )
    observed = observe(
        stack,
        sign=contrast_of(stack, s.contrast),
        particle_diameter_A=s.particle_diameter_A,
        generator=generator_from(None, seed=s.seed),
    )
    field_A = stack.box * stack.pixel_size_A
    map_px = min(s.map_px, stack.box - stack.box % 2)
    unit = map_for_images(volume, box_px=map_px, field_of_view_A=field_A)
    found = fit_scale(observed, Lattice(map_px).to_half(unit.values), radius=s.box_px // 2 - 2)
    scaled = Volume(unit.values * found.scale, unit.pixel_size_A)
    return Subject(
        observed,
        scaled,
        found,
        SHIFT_SD * field_A if s.shift_sd_A is None else s.shift_sd_A,
        Dreamer(observed, torch.arange(len(stack)), s.box_px, s.prefilter),
    )


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
        observed, s = self.subject.observed, self.settings
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
        if isinstance(encoder, SliceEncoder):
            encoder.set_noise(subject.dreamer.noise_power(encoder.polar.radii()))
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
