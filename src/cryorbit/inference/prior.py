"""Training of structure priors: a denoiser learns from clean structures with noise of all levels (Karras et al. 2022).

The same loop trains chains of points and maps; a task says how a batch becomes a loss. Batches come from the step alone
and noise from a generator whose state is saved, so a resumed run is the same run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.inference.amortised_map import pack, unpack
from cryorbit.inference.engine import Progress, generator_from
from cryorbit.inference.prior_data import PointSource, VolumeSource
from cryorbit.models.point_prior import PointPrior
from cryorbit.models.score import MovingAverage, TrainingNoise, denoising_loss
from cryorbit.models.triplane_prior import TriplanePrior
from cryorbit.models.volume_prior import VolumePrior

Prior = PointPrior | VolumePrior | TriplanePrior
_BANDS = (("fine", 0.0, 0.1), ("middle", 0.1, 1.0), ("coarse", 1.0, math.inf))
"""Levels of noise over sigma_data that losses are reported for."""


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """How a prior is trained."""

    steps: int = 1500
    """Batches to train on."""
    learning_rate: float = 3e-3
    """Of Adam at its highest; it rises over `warm_up` steps and falls along half a cosine."""
    warm_up: int = 50
    """Steps over which the rate rises."""
    noise_centre: float = -1.0
    """Mean of ln(noise / spread of the data) over the training; for chains. Maps need higher levels too: about 0.5 and 2."""
    noise_spread: float = 1.6
    """Its standard deviation."""
    average: float = 0.995
    """Decay per step of the moving average of the weights that samples are drawn with."""
    clip: float = 1.0
    """Longest gradient; longer ones are shortened to it."""
    seed: int = 0
    """Seed of the noise."""
    record_every: int = 20
    """Steps per record of progress."""

    def __post_init__(self) -> None:
        wanted = {
            "--steps, --warm-up and --record-every of 1 or more": min(
                self.steps, self.warm_up, self.record_every
            )
            >= 1,
            "--learning-rate, --noise-spread and --clip positive": min(
                self.learning_rate, self.noise_spread, self.clip
            )
            > 0,
            "--average 0 to 1": 0 <= self.average < 1,
        }
        if missed := [text for text, good in wanted.items() if not good]:
            raise BadInput(f"Wanted {'; '.join(missed)}.")


@dataclass(frozen=True, eq=False)
class TaskLoss:
    """Weighted loss and level of noise over sigma_data of each sample of a batch."""

    loss: Float[Tensor, "b"]
    relative_level: Float[Tensor, "b"]


@runtime_checkable
class PriorTask(Protocol):
    """A prior under training and what it learns from."""

    @property
    def network(self) -> nn.Module:
        """The network whose weights move."""
        ...

    def loss(self, step: int, noise: TrainingNoise, generator: torch.Generator) -> TaskLoss:
        """Of the batch of a step, with noise drawn from the generator."""
        ...

    def prior(self, network: nn.Module) -> Prior:
        """The same prior with the weights of another network."""
        ...


class PointTask:
    """Chains for a `PointPrior`; its weights are trained in place."""

    def __init__(self, prior: PointPrior, source: PointSource) -> None:
        self._prior, self._source = prior, source
        self._device = next(prior.network.parameters()).device

    @property
    def network(self) -> nn.Module:
        """The network whose weights move."""
        return self._prior.network

    def loss(self, step: int, noise: TrainingNoise, generator: torch.Generator) -> TaskLoss:
        """Mean square error per coordinate of the residues that exist."""
        batch, to = self._source(step), self._device
        mask = batch.mask.to(to)
        denoiser = self._prior.denoiser(mask, batch.chain.to(to), batch.residue.to(to))
        clean = self._prior.to_latent(batch.position_A.to(to), mask)
        spread = denoiser.spread.to(clean)
        sigma = noise.draw(spread.cpu(), generator=generator).to(to)
        fresh = denoiser.project(torch.randn(clean.shape, generator=generator).to(to))
        return TaskLoss(
            denoising_loss(denoiser, clean, fresh, sigma, sigma_data=spread, mask=mask), sigma / spread
        )

    def prior(self, network: nn.Module) -> PointPrior:
        """The same prior with the weights of another network."""
        return PointPrior.from_state(dict(network.state_dict()), self._prior.card())


class VolumeTask:
    """Densities for a `VolumePrior`; its weights are trained in place.

    Parameters
    ----------
    unconditioned
        Share of the maps whose resolution the network is not told, so that it learns to do without.
    """

    def __init__(self, prior: VolumePrior, source: VolumeSource, *, unconditioned: float = 0.1) -> None:
        if not 0 <= unconditioned <= 1:
            raise BadInput(f"VolumeTask: a share of {unconditioned} is not in 0 to 1. Give 0.1.")
        self._prior, self._source, self._unconditioned = prior, source, unconditioned
        self._device = next(prior.network.parameters()).device

    @property
    def network(self) -> nn.Module:
        """The network whose weights move."""
        return self._prior.network

    def loss(self, step: int, noise: TrainingNoise, generator: torch.Generator) -> TaskLoss:
        """Mean square error per voxel, over that of the Wiener filter of the mean spectrum."""
        batch, prior, to = self._source(step), self._prior, self._device
        clean = prior.to_latent(batch.density.to(to))
        b, spread = len(clean), prior.shape.sigma_data
        sigma = noise.draw(torch.full((b,), spread), generator=generator).to(to)
        told = (torch.rand(b, generator=generator) >= self._unconditioned).to(to)
        noisy = clean + sigma.view(-1, 1, 1, 1, 1) * torch.randn(clean.shape, generator=generator).to(to)
        found = prior.denoise(noisy, sigma, batch.voxel_size_A.to(to), batch.resolution_A.to(to), told)
        error = (found.clean - clean).square().flatten(1).mean(1)
        return TaskLoss(error / found.expected_error**2, sigma / spread)

    def prior(self, network: nn.Module) -> VolumePrior:
        """The same prior with the weights of another network."""
        return VolumePrior.from_state(dict(network.state_dict()), self._prior.card())


class PriorTraining:
    """The loop, step by step; `state` and `restore` make it resumable."""

    def __init__(self, task: PriorTask, settings: PriorSettings) -> None:
        self.task, self.settings = task, settings
        self.noise = TrainingNoise(centre=settings.noise_centre, spread=settings.noise_spread)
        self.generator = generator_from(None, seed=settings.seed)
        self.optimiser = torch.optim.Adam(
            task.network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99)
        )
        self.average = MovingAverage(task.network, decay=settings.average)
        self.steps = 0

    def step(self) -> TaskLoss:
        """One batch."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        found = self.task.loss(self.steps, self.noise, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        found.loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.task.network.parameters(), self.settings.clip)
        self.optimiser.step()
        self.average.update(self.task.network)
        self.steps += 1
        return TaskLoss(found.loss.detach(), found.relative_level.detach())

    def _rate(self) -> float:
        s = self.settings
        rising = min(1.0, (self.steps + 1) / s.warm_up)
        return s.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * self.steps / s.steps))

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        return {
            "steps": self.steps,
            "generator": self.generator.get_state(),
            **pack("network", self.task.network, self.optimiser),
            **self.average.state("average"),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.steps = int(state["steps"])
        self.generator.set_state(state["generator"])
        unpack("network", state, self.task.network, self.optimiser)
        self.average.restore("average", state)

    def result(self) -> Prior:
        """The prior with averaged weights."""
        return self.task.prior(self.average.network)


def train_prior(
    task: PriorTask, settings: PriorSettings, *, state: dict[str, Any] | None = None
) -> Iterator[Progress]:
    """Trains a prior; the last record carries it, with averaged weights.

    Metrics are mean losses since the last record, "loss" and those of the bands of noise that occurred: "loss_fine" below
    a tenth of sigma_data, "loss_middle" up to it, "loss_coarse" above. A network that says nothing has 1.

    Parameters
    ----------
    state
        Of an earlier record of the same task and settings: goes on from there, to the same result.
    """
    training = PriorTraining(task, settings)
    if state is not None:
        training.restore(state)
    while training.steps < settings.steps:
        todo = min(settings.record_every, settings.steps - training.steps)
        found = [training.step() for _ in range(todo)]
        yield Progress(
            "learning",
            training.steps,
            settings.steps,
            min(training.steps / settings.steps, 0.99),
            _metrics(found),
            training.state(),
        )
    yield Progress("done", training.steps, settings.steps, 1.0, {}, {}, training.result())


def _metrics(found: list[TaskLoss]) -> dict[str, float]:
    loss = torch.cat([f.loss for f in found])
    level = torch.cat([f.relative_level for f in found])
    out = {"loss": float(loss.mean())}
    for name, low, high in _BANDS:
        inside = (level >= low) & (level < high)
        if bool(inside.any()):
            out[f"loss_{name}"] = float(loss[inside].mean())
    return out
