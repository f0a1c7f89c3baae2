"""The hybrid's first stage: random starts until a map is believed by the images it was made of."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.inference.amortised_data import TrainingImages
from cryorbit.inference.amortised_settings import AmortisedSettings
from cryorbit.inference.coarse import KICK_ABOVE, CoarsePlan, CoarseStage, Start
from cryorbit.inference.engine import Workers
from cryorbit.inference.known_map import KnownMap

ATTEMPTS = 3
"""Sets of random starts, each twice as long as the one before, until a map is believed."""
EXTENSIONS, LONGER = 3, 16
"""How often, and by how many batches, a set goes on before it is thrown away."""
UNEVEN = 0.05
"""How unevenly a right map explains its images without noise: the twentieth worst against the median."""
SURE = 0.75
"""Mean probability of the best mode, above which a map without two-signed residuals is believed."""
TEST_IMAGES = 200
_PLAIN = ("attempt", "extended", "earlier_visits")


class FirstMap:
    """Sets of random starts, batch by batch; `state` and `restore` make it resumable.

    Parameters
    ----------
    images, settings
        Of the run; the settings' seed and the attempt decide the starts.
    generator
        Of the run: chooses the images that a map is tested on.
    """

    def __init__(
        self, images: TrainingImages, settings: AmortisedSettings, generator: torch.Generator
    ) -> None:
        self.images, self.settings, self.generator = images, settings, generator
        self.group, self.team = torch.eye(3)[None], Workers(None, 1)
        self.attempt = self.extended = self.earlier_visits = 0
        self.coarse = self._starts()
        self.coarse.begin()

    def plan(self) -> CoarsePlan:
        """Batches and radii of this attempt."""
        s, observed = self.settings, self.images.small.observed
        turn = observed.box / observed.particle_radius_px
        first = max(3, round(s.first_turns * turn))
        last = min(max(first + 2, round(s.last_turns * turn)), self.images.box // 2 - 4)
        batches = s.search_batches * 2**self.attempt
        ramp = max(int(0.75 * batches), 4)
        return CoarsePlan(
            n_starts=s.starts * (1 + self.attempt),
            ramp=ramp,
            hold=max(batches - ramp, 1) + LONGER * self.extended,
            batch=min(s.search_batch, len(self.images)),
            forgetting=s.search_forgetting ** (s.search_batch / 100),
            first_radius=min(first, last - 1),
            last_radius=last,
            box=self.images.box,
        )

    def _starts(self) -> CoarseStage:
        seed = self.settings.seed + 7919 * self.attempt
        return CoarseStage(self.images.small, self.plan(), self.group, seed=seed, team=self.team)

    @property
    def best(self) -> Start:
        """The likeliest start."""
        return self.coarse.best

    @property
    def radius(self) -> int:
        """Frequencies that the starts end with, Fourier pixels."""
        return self.coarse.plan.last_radius

    @property
    def visits(self) -> int:
        """Images compared with a map so far, by every start and in tests."""
        return self.earlier_visits + self.coarse.image_visits

    @property
    def fraction(self) -> float:
        """Share of this attempt that is done."""
        return self.coarse.batch / self.coarse.plan.batches

    @property
    def parity_share(self) -> float:
        """Gain of a second, two-signed map, as a share of the evidence; large where the map mixes the hands."""
        return self.coarse.parity_gain / max(abs(self.best.recent_evidence()), 1e-6)

    def step(self) -> tuple[Int[Tensor, "b"], Float[Tensor, "b 3 3"], Float[Tensor, "b 2"]]:
        """One batch of every start; images that the likeliest saw, their rotations, and shifts in pixels of the stack."""
        self.coarse.step()
        recent = self.best.recent[-self.coarse.plan.batch :]
        return recent[:, 0].long(), recent[:, 1:10].reshape(-1, 3, 3), recent[:, 10:]

    def decide(self) -> bool:
        """Whether the map stands. At the end of an attempt that is not believed, more batches or other starts are set up."""
        if not self.coarse.done:
            return False
        if self.believed() or (self.extended == EXTENSIONS and self.attempt + 1 == ATTEMPTS):
            return True
        if self.extended < EXTENSIONS:
            self.extended += 1
            self.coarse.plan = self.plan()
        else:
            self.extended = 0
            self.earlier_visits += self.coarse.image_visits
            self.attempt += 1
            self.coarse = self._starts()
            self.coarse.begin()
        return False

    def believed(self) -> bool:
        """Whether the best map has residuals of one sign and explains its images alike; looks at 200 of them.

        A map that mixes poses explains some images and fails others: the twentieth worst of them falls short of the
        median by more than noise makes of it. (Measured of the tenth worst: 0.84 to 0.90 of the median while poses mix,
        0.92 to 0.97 when they are found.)
        """
        if self.parity_share > 1.5 * KICK_ABOVE:
            return False
        rows = torch.randperm(len(self.images), generator=self.generator)[:TEST_IMAGES]
        self.earlier_visits += len(rows)
        found = self.known_map().search(rows)
        allowed = UNEVEN + 1.645 / math.sqrt(max(abs(self.best.recent_evidence()), 1.0))
        alike = float(found.explained.quantile(0.05) / found.explained.median()) > 1 - allowed
        return alike and float(found.confidence.mean()) > SURE

    def known_map(self) -> KnownMap:
        """The likeliest start's map, for poses."""
        half = self.coarse.lattice.to_half(self.best.map)
        return KnownMap(self.images, half, self.best.shift_sd_px, grid_radius=self.radius, radius=self.radius)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        return {**{name: getattr(self, name) for name in _PLAIN}, **self.coarse.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.coarse = self._starts()
        self.coarse.restore(state)
