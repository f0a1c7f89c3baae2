"""How an encoder is trained on a known map."""

from __future__ import annotations

from dataclasses import dataclass

from cryorbit.errors import BadInput
from cryorbit.inference.amortised_data import Prefilter
from cryorbit.inference.observations import Contrast
from cryorbit.models.pose_encoder import EncoderName


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
    batch: int = 8
    """Projections per step; 8 learn faster than 16 from as many images at low SNR, at the same pace per image."""
    learning_rate: float = 5e-4
    """Of Adam at its highest; it falls along a half cosine. (At 1e-3 an encoder of one 70S ribosome learned nothing until
    the rate had fallen; after 40,000 images its loss was 6.2 nats, against 0.1 from here.)"""
    spread: float = 0.3
    """Width of a hypothesis in the loss, as a Frobenius norm of a difference of rotations."""
    quiet: float = 0.25
    """Share of the training in which the noise rises from a fifth of the stack's to all of it; 0: all from the start."""
    prefilter: Prefilter = "wiener"
    """What is done to the CTF in the images that the encoder sees."""
    shift_sd_A: float | None = None
    """Spread of the particles' shifts per axis; measured on some images, searched against the map, when not given."""
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
