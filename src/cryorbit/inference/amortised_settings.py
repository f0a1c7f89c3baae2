"""How an encoder and a map are trained together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from cryorbit.errors import BadInput
from cryorbit.inference.amortised_data import Prefilter, TrainingImages, tell_noise
from cryorbit.inference.amortised_losses import LossName
from cryorbit.inference.observations import Contrast
from cryorbit.models.pose_encoder import EncoderName, PoseEncoder, computing_on, make_encoder

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
    teacher: float = 0.0
    """Share of the images that are searched exhaustively for the encoder to learn from; 0 turns the teacher off."""
    starts: int = 2
    search_batches: int = 56
    search_batch: int = 50
    """Random starts of the teacher's map, its batches and their size; see `coarse`. (Batches of 50 find the map in 0.6
    of the image visits that batches of 100 take.)"""
    search_forgetting: float = 0.7
    """What 100 images leave of the sums of the teacher's map. (At 0.9 a map in which one hand has begun to win takes
    twice as many images to be won over.)"""
    refinement: int = 0
    """Damped Gauss-Newton steps that winners take from where the encoder put them; the encoder then learns where they
    came to. 0: the encoder follows the gradient through its poses (pure amortisation)."""
    prefilter: Prefilter = "wiener"
    """What is done to the CTF in the images that the encoder sees."""
    norm: Literal["batch", "group"] = "group"
    """Of the encoder."""
    precision: Literal["full", "bfloat16"] = "full"
    """Of the encoder's convolutions (weights stay float32); bfloat16 is faster where the processor multiplies it. Fit for
    `d4-regular`; the vectors of `c4` and `d4` are short at first, and their rotations then move by tens of degrees."""
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
    device: str = "cpu"
    """Where the encoder computes; the map, likelihoods and searches stay on the CPU."""
    record_every: int = 10
    """Steps per record of progress."""

    def __post_init__(self) -> None:
        if not 0 <= self.teacher <= 1 or self.batch < 1 or self.width <= 0 or self.box_px < 8:
            raise BadInput(
                f"Wanted teacher 0 to 1, batch >= 1, width > 0 and box_px >= 8, got {self.teacher}, {self.batch}, "
                f"{self.width} and {self.box_px}."
            )
        if self.encoder in ("i2s", "slice") and self.loss != "softmin":
            raise BadInput(
                f"Loss {self.loss!r} moves poses, but the cells of {self.encoder!r} stay where they are and nothing would "
                "be learned. Use softmin."
            )
        if self.precision == "bfloat16" and self.encoder not in ("standard", "d4-regular"):
            raise BadInput(
                f"Precision bfloat16 turns the poses of {self.encoder!r} by tens of degrees early on, or is not made for "
                "it. Use full, or encoder d4-regular."
            )
        if self.loss in ("sym", "mirror") and self.encoder in ("d4", "d4-regular"):
            raise BadInput(
                f"Loss {self.loss!r} gives an encoder a second chance that {self.encoder!r} has built in: its prediction "
                "for the moved image is the moved prediction. Use l2 or softmin."
            )


def new_encoder(
    settings: AmortisedSettings, images: TrainingImages, generator: torch.Generator
) -> PoseEncoder:
    """The encoder that the settings ask for, with fresh weights, on the device that they name, told the images' noise."""
    s, options = settings, dict[str, Any]()
    if s.encoder not in ("i2s", "slice"):
        options |= {"norm": s.norm, "precision": s.precision}
    if s.encoder == "standard":
        options["frozen_shift_head"] = s.frozen_shift_head
    many = s.encoder in ("standard", "d4-regular") and s.loss == "softmin"
    encoder = make_encoder(
        s.encoder,
        box=images.box,
        width=s.width,
        hypotheses=s.hypotheses if many else 1,
        generator=generator,
        **options,
    )
    tell_noise(encoder, images.dreamer())
    return computing_on(encoder, s.device)
