"""Amortised inference with a teacher: the exact posterior finds the map, the encoder learns from it and takes over.

Two stages. In the first, random starts of `coarse` (exhaustive search of a few thousand images, hands told apart by
likelihood and the parity kick) give a map and poses; the encoder learns every pose the likeliest start finds, and fresh
projections of its map. A map that its own images do not agree on is thrown away, and more starts are made. In the second,
all images are posed, block by block: a share `teacher` of each block is searched (`locate`), and the rest gets the
encoder's best hypotheses, refined by likelihood; where these do not explain an image as well as the search explains its
own, or the encoder does not find what the teacher finds, the image is searched too. So nothing ever rests on the encoder
being right, and what it saves grows as it learns.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.inference.amortised_data import TrainingImages
from cryorbit.inference.amortised_losses import pose_nll
from cryorbit.inference.amortised_map import map_of_poses, pack, unpack
from cryorbit.inference.amortised_settings import AmortisedSettings, new_encoder
from cryorbit.inference.amortised_training import FoundPoses, encoder_poses
from cryorbit.inference.engine import generator_from
from cryorbit.inference.first_map import TEST_IMAGES, FirstMap
from cryorbit.inference.known_map import KnownMap
from cryorbit.inference.locate import Located
from cryorbit.inference.rounds import PoseTable

BLOCK = 200
"""Images per step of the second stage."""
FIRST_MAP = 500
"""Images that have a pose when the first map is made of them, to take the place of the likeliest start's; then each time
that their number has doubled."""
TRUST_ABOVE = 0.5
"""Share of the teacher's poses that the encoder's hypotheses must lead to before they stand for a search."""
SAME_DEG = 10.0
_PLAIN = (
    "steps",
    "posed",
    "seconds",
    "processor_seconds",
    "agreement",
    "next_map",
)
"""Numbers that a checkpoint keeps as they are."""


@dataclass
class Counts:
    """Image visits by kind."""

    searched: int = 0
    """Images compared with the map at all poses of the grid, in the second stage."""
    proposed: int = 0
    """Images compared with a map at the encoder's hypotheses."""
    accepted: int = 0
    """Those whose pose was taken from there."""


class Hybrid:
    """The two stages, step by step; `state` and `restore` make it resumable."""

    def __init__(self, images: TrainingImages, settings: AmortisedSettings) -> None:
        self.images, self.settings = images, settings
        self.generator = generator_from(None, seed=settings.seed)
        self.encoder = new_encoder(settings, images, self.generator)
        moving = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(moving, lr=settings.learning_rate)
        self.counts, self.table = Counts(), PoseTable.empty(len(images))
        self.steps = self.posed = 0
        self.seconds = self.processor_seconds = self.agreement = 0.0
        self.stage = "random starts"
        self.map_of_posed: Tensor | None = None
        self.next_map = FIRST_MAP
        self.first = FirstMap(images, settings, self.generator)

    @property
    def visits(self) -> int:
        """Images compared with a map so far, by searches of every start and by proposals."""
        return self.first.visits + self.counts.searched + self.counts.proposed

    @property
    def expected_visits(self) -> int:
        """Image visits at the end, if the first map is believed."""
        return self.visits + (len(self.images) - self.posed)

    @property
    def done(self) -> bool:
        """Whether every image has its pose, or a cap is reached."""
        s = self.settings
        return self.posed >= len(self.images) or self.visits >= s.max_visits or self.seconds >= s.max_seconds

    @property
    def fraction(self) -> float:
        """Share of the run that is done."""
        return 0.3 * self.first.fraction + 0.7 * self.posed / len(self.images)

    def radius(self) -> float:
        """Frequencies that poses are found with at last, Fourier pixels."""
        return self.first.radius

    @property
    def parity_share(self) -> float:
        """See `FirstMap`."""
        return self.first.parity_share

    def metrics(self) -> dict[str, float]:
        """Where the loop stands, for the log."""
        return {
            "searched": float(self.first.visits + self.counts.searched),
            "proposed": float(self.counts.proposed),
            "accepted": float(self.counts.accepted),
            "agreement": self.agreement,
        }

    def step(self) -> float:
        """One batch of the starts, or one block of images; the encoder's loss."""
        start, busy = time.perf_counter(), time.process_time()
        loss = self._search_step() if self.stage == "random starts" else self._pose_step()
        self.steps += 1
        self.seconds += time.perf_counter() - start
        self.processor_seconds += time.process_time() - busy
        return loss

    def _search_step(self) -> float:
        loss = self.learn(*self.first.step())
        if self.first.decide():
            self.stage = "poses"
        return loss

    def known_map(self) -> KnownMap:
        """The map that poses are found with: of the images that have theirs, else of the likeliest start."""
        first = self.first.known_map()
        if self.map_of_posed is None:
            return first
        half = self.first.coarse.lattice.to_half(self.map_of_posed)
        return replace(first, half=half, radius=self.images.box // 2 - 2)

    def search(self, rows: Int[Tensor, "n"]) -> Located:
        """Exact posterior of some images over the whole grid against the map, its best modes refined."""
        self.counts.searched += len(rows)
        return self.known_map().search(rows)

    def propose(self, rows: Int[Tensor, "n"]) -> Located:
        """The best of the encoder's hypotheses for some images, refined against the map."""
        self.counts.proposed += len(rows)
        return self.known_map().propose(self.encoder, rows)

    def _pose_step(self) -> float:
        rows = torch.arange(self.posed, min(self.posed + BLOCK, len(self.images)))
        order = rows[torch.randperm(len(rows), generator=self.generator)]
        n_taught = max(1, round(self.settings.teacher * len(rows)))
        taught, rest = order[:n_taught], order[n_taught:]
        found = self.search(taught)
        self.table.put(taught, found)
        tried = self.propose(taught)
        same = _close(tried.rotation, found.rotation)
        self.agreement = 0.7 * self.agreement + 0.3 * float(same.float().mean()) if self.posed else 0.0
        if self.agreement > TRUST_ABOVE and len(rest):
            proposed = self.propose(rest)
            doubtful = proposed.explained < found.explained.quantile(0.1)
            self.table.put(rest, proposed)
            self.counts.accepted += int((~doubtful).sum())
            rest = rest[doubtful]
        if len(rest):
            self.table.put(rest, self.search(rest))
        self.posed += len(rows)
        if self.posed >= self.next_map:
            self._renew_map()
        return self.learn(order, self.table.rotation[order], self.table.shift_px[order])

    def _renew_map(self) -> None:
        """Make the map of all images that have their pose; the first time, search again those that it may place anew.

        The likeliest start's map is made of few images, with poses from early maps among them; the one that follows it is
        as good as those after it.
        """
        first = self.map_of_posed is None
        self.map_of_posed, self.next_map = self._volume_of_posed().values, 2 * self.posed
        if first:
            doubtful = self.table.of(torch.arange(self.posed)).doubtful()
            self.table.put(doubtful, self.search(doubtful))

    def learn(
        self, index: Int[Tensor, "n"], rotation: Float[Tensor, "n 3 3"], shift_px: Float[Tensor, "n 2"]
    ) -> float:
        """Steps of the encoder on images with known poses, each followed by one on as many fresh projections."""
        images, s = self.images, self.settings
        known = self.known_map()
        half, sd = known.half, known.shift_sd_px
        losses = []
        self.encoder.train()
        for part in torch.randperm(len(index), generator=self.generator).split(s.batch):
            if len(part) < 2:
                continue
            dream = images.dream(
                half, len(part), shift_sd_px=sd / images.pixels_per_pixel, generator=self.generator
            )
            true_shift = shift_px[part] / images.pixels_per_pixel
            for inputs, turn, shift in (
                (images.inputs[index[part]], rotation[part], true_shift),
                (dream.images, dream.rotation, dream.shift_px),
            ):
                self.optimiser.zero_grad(set_to_none=True)
                loss = pose_nll(self.encoder, self.encoder(inputs), turn, shift)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
                self.optimiser.step()
            losses.append(float(loss.detach()))
        return sum(losses) / max(len(losses), 1)

    def poses(self, rows: Int[Tensor, "n"]) -> FoundPoses:
        """Poses as they stand: those found, and a search for images that have none yet. Not counted as visits."""
        missing = rows[rows >= self.posed]
        found = {name: getattr(self.table, name)[rows] for name in FoundPoses.__dataclass_fields__}
        if len(missing):
            new, place = self.known_map().search(missing), rows >= self.posed
            for name, values in found.items():
                values[place] = getattr(new, name)
        return FoundPoses(**found)

    def encoder_poses(self, rows: Int[Tensor, "n"]) -> FoundPoses:
        """What the encoder alone says."""
        return encoder_poses(self.encoder, self.images, rows)

    def volume(self) -> Volume:
        """The map at the cropped images' pixel size: of the images that have their pose, else of the likeliest start."""
        if self.posed < TEST_IMAGES and self.map_of_posed is None:
            images = self.images
            return Volume(self.first.best.map, images.small.observed.pixel_size_A * images.pixels_per_pixel)
        return self._volume_of_posed()

    def _volume_of_posed(self) -> Volume:
        images = self.images
        rotation = self.table.rotation[: self.posed]
        shift = self.table.shift_px[: self.posed] / images.pixels_per_pixel
        return map_of_poses(images, rotation, shift, radius=images.box // 2 - 2)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        return {
            "loop": self.stage,
            **{name: getattr(self, name) for name in _PLAIN},
            **{f"count_{name}": value for name, value in vars(self.counts).items()},
            "generator": self.generator.get_state(),
            **pack("encoder", self.encoder, self.optimiser),
            **self.table.state(),
            **self.first.state(),
            **({} if self.map_of_posed is None else {"map_of_posed": self.map_of_posed}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.stage = state["loop"]
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.counts = Counts(**{n: state[f"count_{n}"] for n in vars(self.counts)})
        self.generator.set_state(state["generator"])
        unpack("encoder", state, self.encoder, self.optimiser)
        self.table = PoseTable.restore({k: v for k, v in state.items() if k.startswith("pose_")})
        self.map_of_posed = state.get("map_of_posed")
        self.first.restore(state)


def _close(a: Float[Tensor, "n 3 3"], b: Float[Tensor, "n 3 3"]) -> Tensor:
    return (a * b).sum((1, 2)) > 1 + 2 * math.cos(math.radians(SAME_DEG))
