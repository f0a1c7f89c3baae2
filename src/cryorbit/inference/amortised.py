"""Poses by a network: an encoder and a map trained together on nothing but the images.

The encoder looks at an image once and gives pose hypotheses; the map's slices at these poses are compared with the image
(`amortised_losses`), and both are moved: the encoder by gradient, the map by gradient or by the sums of `ring_em`. The
radius of frequencies that are compared grows (frequency marching). With `teacher` > 0 a part of each batch is searched
exhaustively and the encoder learns from what was found (`hybrid`); with 0 nothing but the encoder ever proposes a pose.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.amortised_data import ImageBatch, Prefilter, TrainingImages, misfit
from cryorbit.inference.amortised_losses import (
    LossName,
    choose,
    distillation_loss,
    logit_loss,
    predict,
    softmin_weights,
)
from cryorbit.inference.amortised_map import GradientMap, RunningMap, SumsMap, pack, unpack
from cryorbit.inference.engine import Progress, generator_from, workers
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import Contrast, contrast_of, observe
from cryorbit.inference.refine import DiskData, half_disk, refine_poses
from cryorbit.inference.ring_em import crop_small, level_for, random_start
from cryorbit.models.decoder import make_decoder
from cryorbit.models.pose_encoder import EncoderName, PosePrediction, make_encoder

DecoderChoice = Literal["volume", "fouriernet"]


@dataclass(frozen=True, kw_only=True)
class AmortisedSettings:
    """How an encoder and a map are trained together."""

    encoder: EncoderName = "d4-regular"
    """Network from image to pose hypotheses."""
    decoder: DecoderChoice = "volume"
    """The map: its transform on a lattice, or cryoAI's FourierNet."""
    loss: LossName = "softmin"
    """Which hypotheses are moved."""
    update: Literal["sums", "gradient"] = "sums"
    """How an explicit volume follows the images; FourierNet always by gradient."""
    width: float = 0.25
    """Channels of the encoder relative to the published network."""
    hypotheses: int = 8
    """Hypotheses per image, or per image and element of D4; `standard` and `d4-regular` only."""
    box_px: int = 32
    """Images are Fourier-cropped to this box."""
    batch: int = 32
    """Images per step."""
    learning_rate: float = 1e-3
    """Of the encoder (Adam), at first; it falls to a tenth along a half cosine."""
    map_learning_rate: float = 0.1
    """Of a map that follows by gradient, in units of its amplitude; a thousandth of it for FourierNet."""
    forgetting: float = 0.9
    """What 100 images leave of the sums before them."""
    first_turns: float = 1.1
    last_turns: float = 2.9
    """Waves along the particle's radius that are compared, at first and at last: frequency marching."""
    march: float = 0.5
    """Share of the image visits over which the radius grows."""
    first_temperature: float = 4.0
    last_temperature: float = 1.0
    """Of the softmin, in nats; it falls with the growing radius."""
    winners: int = 2
    """Hypotheses per image that are moved, besides one at random."""
    relaxed: float = 0.05
    """Weight of the one at random."""
    logit_weight: float = 1.0
    """Of the cross-entropy of the logits, beside a misfit per coefficient."""
    refinement: int = 0
    """Damped Gauss-Newton steps that winners take from where the encoder put them; the encoder then learns where they
    came to. 0: the encoder follows the gradient through its poses (pure amortisation)."""
    prefilter: Prefilter = "wiener"
    """What is done to the CTF in the images that the encoder sees."""
    norm: Literal["batch", "group"] = "group"
    """Of the encoder."""
    frozen_shift_head: bool = False
    """As published by cryoAI, whose shift head was never trained; `standard` only."""
    max_visits: int = 60_000
    """Images compared with the map at most."""
    max_seconds: float = float("inf")
    """Seconds of training at most."""
    seed: int = 0
    """Seed of everything random."""
    particle_diameter_A: float | None = None
    """Diameter of the particle; measured from the images when not given."""
    contrast: Contrast = "auto"
    """Protein light on dark ice, or dark on light; auto asks the images."""
    record_every: int = 10
    """Steps per record of progress."""


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


def run_amortised(
    stack: ParticleStack, settings: AmortisedSettings, *, state: dict[str, Any] | None = None
) -> Iterator[Progress]:
    """Yield progress; the last record carries the `AmortisedResult`. `state` of any record continues from there.

    Raises
    ------
    BadInput
        If there are too few images, or they are unusable.
    """
    if len(stack) < 2 * settings.batch:
        raise BadInput(f"{stack.source}: {len(stack)} images are too few for batches of {settings.batch}.")
    training = Training(training_images(stack, settings), settings)
    if state:
        training.restore(state)
    while not training.done:
        metrics = [training.step() for _ in range(settings.record_every) if not training.done]
        yield Progress(
            "training",
            training.visits,
            settings.max_visits,
            training.fraction,
            {
                "image_visits": float(training.visits),
                "radius": float(training.radius()),
                "loss": sum(metrics) / len(metrics),
            },
            training.state(),
        )
    rows = torch.arange(len(stack))
    found = training.poses(rows)
    result = AmortisedResult(
        Pose(found.rotation[:, 0], found.shift_px[:, 0] * training.images.pixels_per_pixel * stack.pixel_size_A),
        found.logits[:, 0].exp(),
        training.entropy,
        training.map.volume(stack.pixel_size_A * training.images.pixels_per_pixel),
        training.visits,
        training.steps,
    )
    yield Progress("done", 1, 1, 1.0, {"image_visits": float(training.visits)}, {}, result)


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


class Training:
    """An encoder and a map in training, step by step."""

    def __init__(self, images: TrainingImages, settings: AmortisedSettings) -> None:
        self.images, self.settings = images, settings
        self.visits = self.steps = 0
        self.seconds = 0.0
        observed, n = images.small.observed, images.box
        self.turns_per_px = observed.particle_radius_px / observed.box
        self.limit = n // 2 - 2
        self.generator = generator_from(None, seed=settings.seed)
        self.encoder = self._encoder()
        moving = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(moving, lr=settings.learning_rate)
        self.map = self._map()
        self.entropy = torch.zeros(0)

    def _encoder(self) -> Any:
        s = self.settings
        options: dict[str, Any] = {}
        if s.encoder not in ("i2s", "slice"):
            options["norm"] = s.norm
        if s.encoder == "standard":
            options["frozen_shift_head"] = s.frozen_shift_head
        many = s.encoder in ("standard", "d4-regular") and s.loss == "softmin"
        return make_encoder(
            s.encoder,
            box=self.images.box,
            width=s.width,
            hypotheses=s.hypotheses if many else 1,
            generator=self.generator,
            **options,
        )

    def _map(self) -> RunningMap:
        s, observed, n = self.settings, self.images.small.observed, self.images.box
        radius_px = observed.particle_radius_px * n / observed.box
        if s.decoder == "volume" and s.update == "sums":
            lattice = Lattice(n)
            level = level_for(int(self.radius()), observed.particle_radius_px, box=observed.box)
            raw = random_start(
                self.images.small, lattice, level, torch.eye(3)[None], count=200, generator=self.generator
            )
            out = SumsMap(raw, lattice, particle_radius_px=radius_px, forgetting=s.forgetting)
            out.solve(self.radius())
            return out
        batch = self.images.batch(torch.arange(min(1000, len(self.images))), half_disk(self.radius()))
        # Noise is 1 per whitened coefficient; what is above it is the map's slices times C / s.
        signal = batch.transform.abs().square().sum() / batch.ctf.square().sum()
        if s.decoder == "volume":
            decoder = make_decoder("fourier", box=n, amplitude=float(signal) ** 0.5, generator=self.generator)
            rate = s.map_learning_rate
        else:
            decoder = make_decoder("siren", box=n, amplitude=20 * float(signal) ** 0.5, generator=self.generator)
            rate = 1e-3 * s.map_learning_rate
        return GradientMap(decoder, learning_rate=rate, particle_radius_px=radius_px)

    @property
    def fraction(self) -> float:
        """Share of the visits or the time that is used up."""
        s = self.settings
        return min(1.0, max(self.visits / s.max_visits, self.seconds / s.max_seconds))

    @property
    def done(self) -> bool:
        """Whether a cap is reached."""
        return self.fraction >= 1.0

    @property
    def marched(self) -> float:
        """Share of the growth of the radius that is behind us."""
        return min(1.0, self.visits / max(1.0, self.settings.march * self.settings.max_visits))

    def radius(self) -> float:
        """Frequencies compared at present, Fourier pixels."""
        s = self.settings
        turns = s.first_turns + (s.last_turns - s.first_turns) * self.marched
        return min(max(turns / self.turns_per_px, 2.5), self.limit)

    def temperature(self) -> float:
        """Of the softmin at present."""
        first, last = self.settings.first_temperature, self.settings.last_temperature
        if min(first, last) <= 0:
            return last
        return first * (last / first) ** self.marched

    def draw(self) -> Int[Tensor, "b"]:
        """Images of this step: pass after pass over the stack, each in its own random order."""
        n, size = len(self.images), self.settings.batch
        per_pass = n // size
        seed = (self.settings.seed * 1_000_003 + self.steps // per_pass + 17) % 2**63
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        at = self.steps % per_pass * size
        return order[at : at + size]

    def step(self) -> float:
        """One batch; its misfit per coefficient."""
        start = time.perf_counter()
        s = self.settings
        rate = s.learning_rate * (0.55 + 0.45 * math.cos(math.pi * self.fraction))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        index = self.draw()
        radius = self.radius()
        batch = self.images.batch(index, half_disk(radius))
        self.encoder.train()
        self.optimiser.zero_grad(set_to_none=True)
        self.map.zero_grad()
        prediction = predict(self.encoder, self.images.inputs[index], s.loss)
        scores = self.scores(batch, prediction)
        t = self.temperature()
        chosen = choose(
            scores, s.loss, temperature=t, most=s.winners, relaxed=s.relaxed, generator=self.generator
        )
        poses, n = chosen.of(prediction), 2 * len(batch.points)
        if s.refinement:
            poses, weight = self.refined(batch, poses, t)
            loss = sum(
                distillation_loss(prediction, poses.rotation[:, j], poses.shift_px[:, j], weight=weight[:, j])
                * weight[:, j].mean()
                for j in range(weight.shape[1])
            )
        else:
            weight = chosen.weight
            slices = self.map.slices(poses.rotation.flatten(0, 1), batch.points)
            energy = misfit(batch, slices.unflatten(0, weight.shape), poses.shift_px)
            loss = (energy * weight).sum(1).mean() / n
            if prediction.logits.shape[1] > 1 and s.loss == "softmin":
                loss = loss + s.logit_weight * logit_loss(prediction.logits, softmin_weights(scores, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.map.update(batch, poses, weight, radius=radius)
        self.visits += len(index)
        self.steps += 1
        self.seconds += time.perf_counter() - start
        return float(scores.min(1).values.mean()) / n

    @torch.no_grad()
    def refined(
        self, batch: ImageBatch, poses: PosePrediction, temperature: float
    ) -> tuple[PosePrediction, Float[Tensor, "b m"]]:
        """Poses after some Gauss-Newton steps from where they are, and their softmin weights."""
        data = DiskData(batch.transform, batch.ctf, batch.points, batch.box)
        half, sd = self.map.half(), 0.1 * batch.box
        found = [
            refine_poses(
                data,
                half,
                poses.rotation[:, j].contiguous(),
                poses.shift_px[:, j].contiguous(),
                iterations=self.settings.refinement,
                shift_sd_px=sd,
            )
            for j in range(poses.logits.shape[1])
        ]
        likelihood = torch.stack([f.log_likelihood for f in found], 1)
        out = PosePrediction(
            torch.stack([f.rotation for f in found], 1),
            likelihood,
            torch.stack([f.shift_px for f in found], 1),
            1.0,
        )
        return out, softmin_weights(-likelihood, temperature)

    @torch.no_grad()
    def scores(self, batch: ImageBatch, prediction: PosePrediction) -> Float[Tensor, "b k"]:
        """Misfit of all hypotheses; zeros where there is only one."""
        b, k = prediction.logits.shape
        slices = self.map.slices(prediction.rotation.detach().flatten(0, 1), batch.points).unflatten(0, (b, k))
        return misfit(batch, slices, prediction.shift_px)

    @torch.no_grad()
    def poses(self, rows: Int[Tensor, "n"]) -> PosePrediction:
        """The most probable hypothesis of some images; for sym and mirror that of the image as it is."""
        self.encoder.eval()
        best, entropy = [], []
        for part in rows.split(256):
            out = self.encoder(self.images.inputs[part])
            log_p = out.logits.log_softmax(1)
            entropy.append(-(log_p.exp() * log_p).sum(1))
            best.append(PosePrediction(out.rotation, log_p, out.shift_px, out.cell_fraction).top(1))
        self.entropy = torch.cat(entropy)
        return PosePrediction(
            torch.cat([b.rotation for b in best]),
            torch.cat([b.logits for b in best]),
            torch.cat([b.shift_px for b in best]),
            1.0,
        )

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        return {
            "visits": self.visits,
            "steps": self.steps,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
            **pack("encoder", self.encoder, self.optimiser),
            **self.map.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.visits, self.steps, self.seconds = state["visits"], state["steps"], state["seconds"]
        self.generator.set_state(state["generator"])
        unpack("encoder", state, self.encoder, self.optimiser)
        self.map.restore(state)
