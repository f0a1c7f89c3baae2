"""Heterogeneity with 3D Gaussians: from particles with poses to Gaussians that move and come and go with a latent vector.

The likelihood is that of the whitened images, CTF and pose of each in it. What makes it easy is the start: the posterior
means of probabilistic PCA of volumes (`linear_flex`) already lie on the curve or in the clusters that conformations form,
if bent, on all sets tried. Gaussians then learn to be at z what the images at z show. Every image's latent vector ends at
the mode of its posterior under the Gaussians, with its curvature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import Gaussians, Pose
from cryorbit.errors import BadInput
from cryorbit.inference.amortised_map import pack, unpack
from cryorbit.inference.engine import Progress, generator_from
from cryorbit.inference.flex_encoder import AmortisedLatents
from cryorbit.inference.flex_latents import PosePrior, Posterior, RowTable, latent_posterior
from cryorbit.inference.flex_likelihood import FlexLikelihood
from cryorbit.inference.flex_priors import MotionPriors
from cryorbit.inference.flex_result import FlexResult
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.inference.observations import Observations
from cryorbit.models.deformation import make_gaussian_model
from cryorbit.models.pose_encoder import seeded

_RECORD_EVERY = 20
"""Steps between progress records."""
_WARM_UP = 0.1
"""Share of the training over which rates rise."""
POSTERIOR_BATCH = 64


class FlexTraining:
    """The loop, step by step; `state` and `restore` make it resumable.

    Parameters
    ----------
    observed
        Images with poses.
    anchors
        Gaussians of the consensus, on the images' grey scale.
    z
        Latent vectors to begin with, shape (n, latent).
    given
        Poses that their priors are about, if they have been moved since; None: those of the stack.
    """

    def __init__(
        self,
        observed: Observations,
        anchors: Gaussians,
        z: Float[Tensor, "n d"],
        settings: FlexSettings,
        *,
        given: Pose | None = None,
    ) -> None:
        pose = observed.stack.pose
        if pose is None:
            raise BadInput(
                f"{observed.stack.source}: no poses in it. Run `cryorbit refine` (or abinitio) first and give its particles."
            )
        self.settings, self.observed = settings, observed
        self.likelihood = FlexLikelihood(observed, resolution_A=settings.resolution_A)
        self.generator = generator_from(None, seed=settings.seed)
        s = settings
        with seeded(self.generator):
            self.model = make_gaussian_model(
                anchors,
                s.deformation,
                latent=s.latent,
                unit_A=observed.pixel_size_A,
                rank=s.rank,
                parts=s.parts,
                nodes=s.nodes,
                width=s.width,
                gates=s.gates,
            )
        self.pose = pose
        self.given = pose if given is None else given
        self.prior = pose_prior(anchors, s) if s.refine_poses else None
        self.z = RowTable(z.to(torch.float32))
        self.precision = torch.eye(s.latent).repeat(len(z), 1, 1)
        self.misfit = torch.full((len(z),), torch.nan)
        self.priors = MotionPriors(anchors, s, unit_A=observed.pixel_size_A)
        self.amortised: AmortisedLatents | None = None
        if s.latents == "encoder":
            self.amortised = AmortisedLatents(self.likelihood, pose, anchors, s, self.generator)
        self.optimiser = torch.optim.Adam(self._groups(), betas=(0.9, 0.99))
        n = len(z)
        self.steps_wanted = max(1, s.epochs * n // s.batch)
        if s.max_images is not None:
            self.steps_wanted = max(1, min(self.steps_wanted, s.max_images // s.batch))
        self.steps, self.queue = 0, torch.zeros(0, dtype=torch.long)
        self.polished = 0

    def _groups(self) -> list[dict[str, Any]]:
        """Anchors, modes and networks, each with its share of the rate."""
        model, rate = self.model, self.settings.basis_rate
        anchors = [model.position, model.log_amplitude, model.log_width]
        modes = [p for name, p in model.named_parameters() if name.endswith(("basis", "logit", "centre"))]
        taken = {id(p) for p in (*anchors, *modes)}
        networks = [p for p in model.parameters() if id(p) not in taken]
        groups = ((anchors, 2 * rate), (modes, rate), (networks, 0.2 * rate))
        return [{"params": params, "lr": r, "share": r} for params, r in groups if params]

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.steps / self.steps_wanted

    def step(self) -> float:
        """One batch; mean misfit per whitened number, 0.5 for a true model."""
        rows = self._next_rows()
        factor = _one_cycle(self.progress)
        for group in self.optimiser.param_groups:
            group["lr"] = group["share"] * factor
        learn_z = self.progress >= self.settings.freeze
        z, nats = self._latents(rows, learn=learn_z)
        data = self.likelihood.transforms(rows)
        gaussians = self.model(z)
        misfit = self.likelihood.misfit(self.likelihood.model(gaussians, self.pose[rows], rows), data)
        loss = (misfit.mean() + nats + self.priors(self.model, gaussians)) / self.likelihood.count
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if self.amortised is not None:
            self.amortised.step(factor)
        elif learn_z:
            assert z.grad is not None  # it was asked for above
            grad = z.grad * len(rows) * self.likelihood.count + z.detach()
            self.z.step(rows, grad, rate=self.settings.latent_rate * factor)
        self.steps += 1
        return float(misfit.detach().mean()) / self.likelihood.count

    def _latents(self, rows: Int[Tensor, "b"], *, learn: bool) -> tuple[Tensor, Tensor]:
        """Latent vectors that gradients reach if they are learned now, and an encoder's own loss, nats per image."""
        if self.amortised is not None:
            return self.amortised.draw(rows, self.z.values[rows], progress=self.progress)
        return self.z.values[rows].requires_grad_(learn), torch.zeros(())

    def read_latents(self) -> None:
        """An encoder's means become the latent vectors that are polished."""
        if self.amortised is not None:
            self.z.values = self.amortised.means()

    def _next_rows(self) -> Int[Tensor, "b"]:
        """The next batch of a shuffled epoch."""
        if len(self.queue) < self.settings.batch:
            self.queue = torch.randperm(len(self.z.values), generator=self.generator)
        rows, self.queue = self.queue.tensor_split([self.settings.batch])
        return rows

    def polish(self, rows: Int[Tensor, "b"]) -> Posterior:
        """A Gauss-Newton step of some images; it is taken over. Their precision alone where settings ask for no step."""
        found = latent_posterior(
            self.model,
            self.likelihood,
            rows,
            self.z.values[rows],
            self.pose[rows],
            given=self.given[rows],
            prior=self.prior,
            steps=1 if self.settings.polish or self.prior is not None else 0,
        )
        self.z.values[rows], self.precision[rows] = found.z, found.precision
        self.misfit[rows] = found.misfit
        if self.prior is not None:
            rotation, shift = self.pose.rotation.clone(), self.pose.shift_A.clone()
            rotation[rows], shift[rows] = found.pose.rotation, found.pose.shift_A
            self.pose = Pose(rotation, shift)
        return found

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, flat."""
        return {
            "steps": self.steps,
            "polished": self.polished,
            "queue": self.queue,
            "generator": self.generator.get_state(),
            "rotation": self.pose.rotation,
            "shift_A": self.pose.shift_A,
            "precision": self.precision,
            "misfit": self.misfit,
            **self.z.state("z"),
            **pack("model", self.model, self.optimiser),
            **({} if self.amortised is None else self.amortised.state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.steps, self.polished, self.queue = state["steps"], state["polished"], state["queue"]
        self.generator.set_state(state["generator"])
        self.pose = Pose(state["rotation"], state["shift_A"])
        self.precision, self.misfit = state["precision"].clone(), state["misfit"].clone()
        self.z.restore("z", state)
        unpack("model", state, self.model, self.optimiser)
        if self.amortised is not None:
            self.amortised.restore(state)

    def result(self) -> FlexResult:
        """What is known now."""
        return FlexResult(
            self.model,
            self.z.values,
            self.precision,
            self.pose,
            self.misfit,
            self.likelihood.count,
            self.observed.box,
            self.observed.pixel_size_A,
            None if self.amortised is None else self.amortised.encoder,
        )


def pose_prior(gaussians: Gaussians, settings: FlexSettings) -> PosePrior:
    """Of the errors that the settings expect, for a molecule of the Gaussians' size."""
    spread = gaussians.position_A - gaussians.position_A.mean(0)
    return PosePrior(
        angle_sd_rad=math.radians(settings.pose_sd_deg),
        shift_sd_A=settings.shift_sd_A,
        lever_A=float(spread.square().sum(1).mean().sqrt()),
    )


def _one_cycle(progress: float) -> float:
    """Rises to 1 over the first tenth, then falls along half a cosine."""
    if progress < _WARM_UP:
        return 0.04 + 0.96 * progress / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def run_training(training: FlexTraining) -> Iterator[Progress]:
    """Rounds of steps, each with a pass of Gauss-Newton over all images; the last record carries the `FlexResult`."""
    s, batches = training.settings, torch.arange(len(training.z.values)).split(POSTERIOR_BATCH)
    rounds = max(s.rounds, 2 if s.refine_poses else 1)
    # A pass renders each image d + 2 times or d + 7 times; a step of training about three times.
    cost = (s.latent + 2 + 5 * s.refine_poses) / 3 * POSTERIOR_BATCH / s.batch
    total = training.steps_wanted + cost * rounds * len(batches)

    def record(stage: str, done: int, wanted: int, metrics: dict[str, float]) -> Progress:
        fraction = (training.steps + cost * training.polished) / total
        visits = {"image_visits": float(training.steps * s.batch)}
        return Progress(stage, done, wanted, min(fraction, 0.99), metrics | visits, training.state())

    for turn in range(1, rounds + 1):
        steps, polished = training.steps_wanted * turn // rounds, turn * len(batches)
        while training.steps < steps:
            misfits = [training.step() for _ in range(min(_RECORD_EVERY, steps - training.steps))]
            mean = {"misfit_per_number": sum(misfits) / len(misfits)}
            yield record("learning", training.steps, training.steps_wanted, mean)
        while training.polished < polished:
            for _ in range(min(_RECORD_EVERY, polished - training.polished)):
                if training.polished % len(batches) == 0:
                    training.read_latents()
                training.polish(batches[training.polished % len(batches)])
                training.polished += 1
            known = training.misfit[~training.misfit.isnan()].mean()
            mean = {"misfit_per_number": float(known) / training.likelihood.count}
            yield record("reading every image", training.polished, polished, mean)
    yield Progress("done", training.steps, training.steps, 1.0, {}, {}, training.result())


__all__ = ["FlexResult", "FlexSettings", "FlexTraining", "run_training"]
