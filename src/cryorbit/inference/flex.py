"""Heterogeneity with 3D Gaussians: from particles with poses to Gaussians that move and come and go with a latent vector.

The likelihood is that of the whitened images, CTF and pose of each in it. What makes it easy is the start: probabilistic
PCA of volumes (`linear_flex`) has one optimum and finds it, so its posterior means already lie on the curve or in the
clusters that the conformations form, if bent. Gaussians then learn to be at z what the images at z show. Every image's
latent vector ends at the mode of its posterior under the Gaussians, with its curvature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import Gaussians, ParticleStack, Pose
from cryorbit.errors import BadInput
from cryorbit.inference.amortised_map import pack, unpack
from cryorbit.inference.engine import Progress, generator_from
from cryorbit.inference.flex_latents import PosePrior, Posterior, RowTable, latent_posterior
from cryorbit.inference.flex_likelihood import FlexLikelihood
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.inference.observations import Observations
from cryorbit.models.deformation import GaussianModel, make_gaussian_model
from cryorbit.models.motion_priors import (
    clash_energy,
    elastic_energy,
    neighbour_pairs,
    pair_lengths,
    smoothness,
    without_rigid_motion,
)
from cryorbit.models.pose_encoder import seeded

_RECORD_EVERY = 20
"""Steps between progress records."""
_WARM_UP = 0.1
"""Share of the training over which rates rise."""
POSTERIOR_BATCH = 64


@dataclass(frozen=True, eq=False)
class FlexResult:
    """What was learned from a stack.

    Parameters
    ----------
    model
        z -> Gaussians, light protein, on the images' grey scale.
    z, precision
        Each image's latent vector, the mode of its posterior, (n, d), and its precision (n, d, d).
    pose
        Given, or refined.
    misfit
        Half chi-square of each image, nats.
    numbers
        Whitened real numbers in an image: twice the misfit of a true model, on average.
    box, pixel_size_A
        Grid of the images, on which maps are decoded.
    """

    model: GaussianModel
    z: Float[Tensor, "n d"]
    precision: Float[Tensor, "n d d"]
    pose: Pose
    misfit: Float[Tensor, "n"]
    numbers: int
    box: int
    pixel_size_A: float


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
        self.pairs = neighbour_pairs(anchors.position_A)
        rest = pair_lengths(anchors.position_A / observed.pixel_size_A, self.pairs)
        self.rest, self.least = rest, 0.5 * float(rest.median())
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
        z = self.z.values[rows].requires_grad_(learn_z)
        data = self.likelihood.transforms(rows)
        gaussians = self.model(z)
        misfit = self.likelihood.misfit(self.likelihood.model(gaussians, self.pose[rows], rows), data)
        loss = (misfit.mean() + self._priors(gaussians)) / self.likelihood.count
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if learn_z:
            assert z.grad is not None  # it was asked for above
            grad = z.grad * len(rows) * self.likelihood.count + z.detach()
            self.z.step(rows, grad, rate=self.settings.latent_rate * factor)
        self.steps += 1
        return float(misfit.detach().mean()) / self.likelihood.count

    def _priors(self, gaussians: Gaussians) -> Tensor:
        """Nats per image of the priors that are asked for."""
        s, total = self.settings, torch.zeros(())
        position = gaussians.position_A / self.model.unit_A
        if s.elastic:
            total = total + s.elastic * elastic_energy(position, self.rest, self.pairs)
        if s.smooth:
            total = total + s.smooth * smoothness(position - self.model.position, self.pairs)
        if s.clash:
            total = total + s.clash * clash_energy(position, self.pairs, least=self.least)
        if s.refine_poses:
            # A soft gauge: what poses can do is not the motion's to do.
            moved = position - self.model.position.detach()
            weight = gaussians.amplitude.detach().mean(0)
            rigid = moved - without_rigid_motion(moved, self.model.position.detach(), weight)
            total = total + rigid.square().sum(-1).mean()
        return total

    def _next_rows(self) -> Int[Tensor, "b"]:
        """The next batch of a shuffled epoch."""
        if len(self.queue) < self.settings.batch:
            self.queue = torch.randperm(len(self.z.values), generator=self.generator)
        rows, self.queue = self.queue.tensor_split([self.settings.batch])
        return rows

    def polish(self, rows: Int[Tensor, "b"]) -> Posterior:
        """A Gauss-Newton step of some images; it is taken over."""
        found = latent_posterior(
            self.model,
            self.likelihood,
            rows,
            self.z.values[rows],
            self.pose[rows],
            given=self.given[rows],
            prior=self.prior,
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
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.steps, self.polished, self.queue = state["steps"], state["polished"], state["queue"]
        self.generator.set_state(state["generator"])
        self.pose = Pose(state["rotation"], state["shift_A"])
        self.precision, self.misfit = state["precision"].clone(), state["misfit"].clone()
        self.z.restore("z", state)
        unpack("model", state, self.model, self.optimiser)

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
    """Steps, with passes of Gauss-Newton over all images between and after them; the last record carries the `FlexResult`.

    With poses that move the first pass comes halfway, so that the Gaussians learn from better poses too.
    """
    s, batches = training.settings, torch.arange(len(training.z.values)).split(POSTERIOR_BATCH)
    passes = max(s.polish, 1)
    halfway = (training.steps_wanted // 2, len(batches)) if s.refine_poses else (0, 0)
    # A pass renders each image d + 2 times or d + 7 times; a step of training about three times.
    cost = (s.latent + 2 + 5 * s.refine_poses) / 3 * POSTERIOR_BATCH / s.batch
    total = training.steps_wanted + cost * (halfway[1] + passes * len(batches))

    def record(stage: str, done: int, wanted: int, metrics: dict[str, float]) -> Progress:
        fraction = (training.steps + cost * training.polished) / total
        visits = {"image_visits": float(training.steps * s.batch)}
        return Progress(stage, done, wanted, min(fraction, 0.99), metrics | visits, training.state())

    for steps, polished in (halfway, (training.steps_wanted, halfway[1] + passes * len(batches))):
        while training.steps < steps:
            misfits = [training.step() for _ in range(min(_RECORD_EVERY, steps - training.steps))]
            mean = {"misfit_per_number": sum(misfits) / len(misfits)}
            yield record("learning", training.steps, training.steps_wanted, mean)
        while training.polished < polished:
            for _ in range(min(_RECORD_EVERY, polished - training.polished)):
                training.polish(batches[training.polished % len(batches)])
                training.polished += 1
            known = training.misfit[~training.misfit.isnan()].mean()
            mean = {"misfit_per_number": float(known) / training.likelihood.count}
            yield record("reading every image", training.polished, polished, mean)
    yield Progress("done", training.steps, training.steps, 1.0, {}, {}, training.result())


__all__ = ["FlexResult", "FlexSettings", "FlexTraining", "ParticleStack", "run_training"]
