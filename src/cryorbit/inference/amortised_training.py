"""Pure amortised inference: a training loop in which nothing but the encoder ever proposes a pose."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.inference.amortised_data import ImageBatch, TrainingImages, misfit
from cryorbit.inference.amortised_losses import (
    choose,
    logit_loss,
    pose_nll,
    predict,
    shortlist,
    softmin_weights,
)
from cryorbit.inference.amortised_map import GradientMap, RunningMap, SumsMap, pack, unpack
from cryorbit.inference.amortised_settings import AmortisedSettings, new_encoder
from cryorbit.inference.engine import generator_from
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.proposals import refine_proposals
from cryorbit.inference.refine import DiskData, half_disk, refine_poses
from cryorbit.inference.ring_em import level_for, random_start
from cryorbit.models.decoder import make_decoder
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction

RECENT = 500
"""Images whose last poses a checkpoint keeps."""


@dataclass(frozen=True, eq=False)
class FoundPoses:
    """One pose per image; shifts in pixels of the stack."""

    rotation: Float[Tensor, "n 3 3"]
    shift_px: Float[Tensor, "n 2"]
    confidence: Float[Tensor, "n"]
    """Probability of the chosen hypothesis."""
    entropy: Float[Tensor, "n"]
    """Of the hypotheses, nats, relative to all being equally probable (0: nothing is known)."""


@torch.no_grad()
def encoder_poses(encoder: PoseEncoder, images: TrainingImages, rows: Int[Tensor, "n"]) -> FoundPoses:
    """The most probable hypothesis of each image."""
    encoder.eval()
    parts = []
    for part in rows.split(256):
        out = encoder(images.inputs[part])
        log_p = out.logits.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1) - math.log(log_p.shape[1])
        best = PosePrediction(out.rotation, log_p, out.shift_px, out.cell_fraction).top(1)
        parts.append((best.rotation[:, 0], best.shift_px[:, 0], best.logits[:, 0].exp(), entropy))
    rotation, shift, confidence, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return FoundPoses(rotation, shift * images.pixels_per_pixel, confidence, entropy)


class Training:
    """An encoder and a map in training, step by step."""

    def __init__(self, images: TrainingImages, settings: AmortisedSettings) -> None:
        self.images, self.settings = images, settings
        self.visits = self.steps = 0
        self.seconds = self.processor_seconds = 0.0
        observed, n = images.small.observed, images.box
        self.turns_per_px = observed.particle_radius_px / observed.box
        self.limit = n // 2 - 2
        self.generator = generator_from(None, seed=settings.seed)
        self.encoder = new_encoder(settings, images, self.generator)
        moving = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(moving, lr=settings.learning_rate)
        self.map = self._map()
        self.recent_row, self.recent_rotation = torch.zeros(0, dtype=torch.long), torch.zeros(0, 3, 3)

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
            decoder = make_decoder(
                "siren", box=n, amplitude=20 * float(signal) ** 0.5, generator=self.generator
            )
            rate = 1e-3 * s.map_learning_rate
        return GradientMap(decoder, learning_rate=rate, particle_radius_px=radius_px)

    stage = "training"
    parity_share = 0.0

    @property
    def expected_visits(self) -> int:
        """Image visits at the end."""
        return self.settings.max_visits

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
        start, busy = time.perf_counter(), time.process_time()
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
        whole = predict(self.encoder, self.images.inputs[index], s.loss)
        prediction = shortlist(whole, generator=self.generator)
        scores = self.scores(batch, prediction)
        t = self.temperature()
        chosen = choose(
            scores, s.loss, temperature=t, most=s.winners, relaxed=s.relaxed, generator=self.generator
        )
        poses, n = chosen.of(prediction), 2 * len(batch.points)
        if s.refinement:
            poses, weight = self.refined(batch, poses, t)
            parts = [
                pose_nll(self.encoder, whole, poses.rotation[:, j], poses.shift_px[:, j], weight=weight[:, j])
                * weight[:, j].mean()
                for j in range(weight.shape[1])
            ]
            loss = torch.stack(parts).sum()
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
        self._remember(index, poses, weight)
        self.visits += len(index)
        self.steps += 1
        self.seconds += time.perf_counter() - start
        self.processor_seconds += time.process_time() - busy
        return float(scores.min(1).values.mean()) / n

    @torch.no_grad()
    def _remember(self, index: Tensor, poses: PosePrediction, weight: Tensor) -> None:
        """Keep the winners of the last images, for the history of poses."""
        best = weight.argmax(1)
        rotation = poses.rotation[torch.arange(len(best)), best]
        self.recent_row = torch.cat((self.recent_row, self.images.small.rows[index]))[-RECENT:]
        self.recent_rotation = torch.cat((self.recent_rotation, rotation))[-RECENT:]

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
        slices = self.map.slices(prediction.rotation.detach().flatten(0, 1), batch.points).unflatten(
            0, (b, k)
        )
        return misfit(batch, slices, prediction.shift_px)

    def metrics(self) -> dict[str, float]:
        """Where the loop stands, for the log."""
        return {"radius": self.radius(), "temperature": self.temperature()}

    def volume(self) -> Volume:
        """The map at the cropped images' pixel size, over the scale of the stack."""
        images = self.images
        return self.map.volume(images.small.observed.pixel_size_A * images.pixels_per_pixel)

    def encoder_poses(self, rows: Int[Tensor, "n"]) -> FoundPoses:
        """What the encoder alone says of some images; for sym and mirror of the images as they are."""
        return encoder_poses(self.encoder, self.images, rows)

    def poses(self, rows: Int[Tensor, "n"]) -> FoundPoses:
        """The encoder's pose; for softmin the likeliest of its hypotheses, with refinement the likeliest after that."""
        observed = self.images.small.observed
        if not self.settings.refinement:
            one = self.settings.loss != "softmin"
            return self.encoder_poses(rows) if one else self._likeliest(rows)
        found = refine_proposals(
            self.encoder,
            self.images,
            rows,
            self.map.half(),
            radius=self.radius(),
            shift_sd_px=0.1 * observed.box,
        )
        return FoundPoses(found.rotation, found.shift_px, found.confidence, found.entropy)

    @torch.no_grad()
    def _likeliest(self, rows: Int[Tensor, "n"]) -> FoundPoses:
        self.encoder.eval()
        parts = []
        for part in rows.split(128):
            whole = self.encoder(self.images.inputs[part])
            out = shortlist(whole, strays=0)
            weight = softmin_weights(self.scores(self.images.batch(part, half_disk(self.radius())), out), 1.0)
            entropy = torch.special.entr(weight).sum(1) - math.log(whole.logits.shape[1])
            best = PosePrediction(out.rotation, weight, out.shift_px, out.cell_fraction).top(1)
            parts.append((best.rotation[:, 0], best.shift_px[:, 0], best.logits[:, 0], entropy))
        rotation, shift, confidence, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        return FoundPoses(rotation, shift * self.images.pixels_per_pixel, confidence, entropy)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        return {
            "visits": self.visits,
            "steps": self.steps,
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "recent_row": self.recent_row,
            "recent_rotation": self.recent_rotation,
            "generator": self.generator.get_state(),
            **pack("encoder", self.encoder, self.optimiser),
            **self.map.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name in ("visits", "steps", "seconds", "processor_seconds", "recent_row", "recent_rotation"):
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])
        unpack("encoder", state, self.encoder, self.optimiser)
        self.map.restore(state)
