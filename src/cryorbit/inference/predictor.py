"""A stack under a pose model: both brought to fit each other, and what is done with a block of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.data import ParticleStack, Pose
from cryorbit.errors import BadInput
from cryorbit.inference.amortised_data import TrainingImages
from cryorbit.inference.effort import Effort, counted
from cryorbit.inference.engine import generator_from
from cryorbit.inference.field_of_view import framed
from cryorbit.inference.known_map import PoseSearch
from cryorbit.inference.locate import Located, disk_data
from cryorbit.inference.map_scale import fit_scale
from cryorbit.inference.observations import Contrast, Observations, contrast_of, crop_images, observe
from cryorbit.inference.pose_model import PoseModel
from cryorbit.inference.proposals import (
    Stage,
    entropy_of,
    low_then_all,
    probability_near_best,
    refine_hypotheses,
    separate,
)
from cryorbit.inference.refine import refine_poses
from cryorbit.inference.ring_em import SmallImages
from cryorbit.models.pose_encoder import PosePrediction

APART_DEG = 15.0
"""Hypotheses nearer to a more probable one than this start from elsewhere if there is an elsewhere."""
EXACT_SCALE = 0.1
"""Relative standard error below which the scale of a new stack is believed; else the training stack's is taken."""


@dataclass(frozen=True, eq=False)
class PosePosterior:
    """The `k` hypotheses kept of each image, most probable first."""

    rotation: Float[Tensor, "n k 3 3"]
    log_probability: Float[Tensor, "n k"]
    """Of the encoder, normalised over all its hypotheses."""
    shift_A: Float[Tensor, "n k 2"]
    entropy: Float[Tensor, "n"]
    """Of all hypotheses, nats relative to all being equally probable: 0 when nothing is known. NaN where the encoder has
    but one, whose probability of 1 says nothing."""
    mode_probability: Float[Tensor, "n"]
    """Of all hypotheses within 15 degrees of the most probable one, kept or not; NaN as `entropy`."""

    @classmethod
    def of(cls, whole: PosePrediction, *, top: int, pixel_A: float) -> PosePosterior:
        """The `top` most probable hypotheses, those at different places before others; shifts were in `pixel_A`."""
        ranked = separate(whole, top, apart_deg=APART_DEG).top(top)
        several = whole.logits.shape[1] > 1
        unknown = whole.logits.new_full((len(whole),), math.nan)
        return cls(
            ranked.rotation,
            ranked.logits - whole.logits.logsumexp(1, keepdim=True),
            ranked.shift_px * pixel_A,
            entropy_of(whole.logits) if several else unknown,
            probability_near_best(whole, within_deg=APART_DEG) if several else unknown,
        )

    @classmethod
    def joined(cls, parts: Sequence[PosePosterior]) -> PosePosterior:
        """Those of several sets of images, one set after the other."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


@dataclass(frozen=True, eq=False)
class Refined:
    """Poses of some images, shifts in pixels as framed, and what it took to find them."""

    found: Located
    effort: Effort


class Predictor:
    """Hypotheses, refined poses and searches of any images of a stack; blocks may be worked on by several threads.

    Parameters
    ----------
    stack
        Brought to the model's field of view (`framed`), measured, and its signal's scale over the map's fitted.
    contrast, seed
        See `observations`; the seed decides which images the noise is measured on.

    Raises
    ------
    BadInput
        If the images cannot be brought to the field of view, or are unusable.
    """

    def __init__(
        self, stack: ParticleStack, model: PoseModel, *, contrast: Contrast = "auto", seed: int = 0
    ) -> None:
        self.model, self.encoder = model, model.encoder.eval()
        self.observed = observe_for(stack, model, contrast=contrast, seed=seed)
        self.pixel_A = self.observed.pixel_size_A
        self.shift_sd_px = model.facts.shift_sd_A / self.pixel_A
        self.radius = model.facts.box_px // 2 - 2
        """Frequencies that modes are told apart with, Fourier pixels."""
        self.last_radius = min(model.map.box, self.observed.box) // 2 - 2
        """Frequencies that the chosen pose is refined with at last: those that map and images have."""
        self.scale = relative_scale(self.observed, model)
        """Of these images over the model's map."""
        self.half = model.half() * self.scale
        self._search = PoseSearch(
            self.observed,
            self.half,
            self.shift_sd_px,
            box=model.facts.box_px,
            grid_radius=self.radius,
            radius=self.radius,
        )

    @torch.no_grad()
    def propose(self, rows: Int[Tensor, "b"], *, top: int) -> tuple[PosePosterior, Refined]:
        """The encoder's hypotheses, and the likeliest pose that a local search from them finds."""
        transforms = self.observed.transforms(rows)
        posterior = self._hypotheses(rows, transforms, top)
        return posterior, self._from(rows, transforms, posterior)

    @torch.no_grad()
    def refine(self, rows: Int[Tensor, "b"], posterior: PosePosterior) -> Refined:
        """The likeliest pose that a local search finds from hypotheses, whoever made them."""
        return self._from(rows, self.observed.transforms(rows), posterior)

    def _from(self, rows: Tensor, transforms: Tensor, posterior: PosePosterior) -> Refined:
        stages = low_then_all(self.radius, most=posterior.rotation.shape[1])
        return self._refined(rows, transforms, posterior.rotation, posterior.shift_A, stages)

    @torch.no_grad()
    def hypotheses(self, rows: Int[Tensor, "b"], *, top: int) -> PosePosterior:
        """The encoder's most probable hypotheses, those at different places before others."""
        return self._hypotheses(rows, self.observed.transforms(rows), top)

    @torch.no_grad()
    def from_pose(self, rows: Int[Tensor, "b"], pose: Pose) -> Refined:
        """What a local search finds from one pose per image: from the truth, what an oracle would.

        Confidence and entropy are NaN: nothing else was looked at.
        """
        start = pose.rotation[:, None].float(), pose.shift_A[:, None].float()
        return self._refined(rows, self.observed.transforms(rows), *start, (Stage(self.radius, 1),))

    @torch.no_grad()
    def search(self, rows: Int[Tensor, "b"]) -> Refined:
        """Exact posterior over the whole grid of poses, its best modes refined, the best one at all frequencies."""
        transforms = self.observed.transforms(rows)
        with counted() as effort:
            found = self._polished(rows, transforms, self._search(rows))
        return Refined(found, effort)

    def _hypotheses(self, rows: Tensor, transforms: Complex[Tensor, "b box half"], top: int) -> PosePosterior:
        facts = self.model.facts
        small = SmallImages(self.observed, rows, crop_images(transforms, facts.box_px))
        whole = self.encoder(TrainingImages.of(small, facts.prefilter).inputs)
        return PosePosterior.of(whole, top=top, pixel_A=facts.coarsest_pixel_A)

    def _refined(
        self,
        rows: Tensor,
        transforms: Complex[Tensor, "b box half"],
        rotation: Float[Tensor, "b k 3 3"],
        shift_A: Float[Tensor, "b k 2"],
        stages: tuple[Stage, ...],
    ) -> Refined:
        data = disk_data(self.observed, rows, transforms, self.radius)
        shift = shift_A / self.pixel_A
        with counted() as effort:
            found = refine_hypotheses(
                data, self.half, rotation, shift, stages=stages, shift_sd_px=self.shift_sd_px
            )
            found = self._polished(rows, transforms, found)
        if rotation.shape[1] == 1:  # no rival was looked at, so the 1 that is there says nothing
            unknown = torch.full_like(found.confidence, math.nan)
            found = replace(found, confidence=unknown, entropy=unknown)
        return Refined(found, effort)

    def _polished(self, rows: Tensor, transforms: Complex[Tensor, "b box half"], found: Located) -> Located:
        """The same poses after some steps at all frequencies that the map has; `confidence` stays that of the modes."""
        if self.last_radius <= self.radius:
            return found
        data = disk_data(self.observed, rows, transforms, self.last_radius)
        last = refine_poses(
            data, self.half, found.rotation, found.shift_px, iterations=3, shift_sd_px=self.shift_sd_px
        )
        kept = {"confidence": found.confidence, "entropy": found.entropy}
        return Located(
            **{f.name: getattr(last, f.name) for f in fields(Located) if f.name not in kept}, **kept
        )


def observe_for(stack: ParticleStack, model: PoseModel, *, contrast: Contrast, seed: int) -> Observations:
    """The stack in the model's field of view, with its statistics.

    Raises
    ------
    BadInput
        See `field_of_view.framed` and `observations.observe`.
    """
    facts = model.facts
    own = framed(
        stack,
        field_of_view_A=facts.field_of_view_A,
        particle_diameter_A=facts.particle_diameter_A,
        coarsest_pixel_A=facts.coarsest_pixel_A,
    )
    return observe(
        own,
        sign=contrast_of(own, contrast),
        particle_diameter_A=facts.particle_diameter_A,
        generator=generator_from(None, seed=seed),
    )


def relative_scale(observed: Observations, model: PoseModel) -> float:
    """Scale of these images over that of the training stack's; 1 where they do not tell it."""
    try:
        found = fit_scale(observed, model.half(), radius=model.facts.box_px // 2 - 2)
    except BadInput:
        return 1.0
    return found.scale if found.standard_error < EXACT_SCALE * found.scale else 1.0
