"""Settings of heterogeneity with Gaussians: one frozen dataclass, from which the command line is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cryorbit.errors import BadInput
from cryorbit.inference.image_features import EncoderName
from cryorbit.inference.observations import Contrast
from cryorbit.models.deformation import DeformationName

Latents = Literal["table", "encoder"]
Start = Literal["linear", "zero"]


@dataclass(frozen=True, kw_only=True)
class FlexSettings:
    """How molecules that move or come and go are learned from particle images."""

    latent: int = 10
    """Numbers that say which conformation an image shows. Too many cost little: what the images do not tell stays at 0."""
    deformation: DeformationName = "mesh"
    """Family of motions: a low-rank "basis" with learned coefficients, rigid "parts", a coarse "mesh", an "mlp" per
    Gaussian, "parts+mlp", or "none" for molecules that only come and go."""
    gates: bool = True
    """Whether Gaussians may come and go."""
    rank: int = 32
    """Modes of "basis" and of the gates."""
    parts: int = 6
    """Rigid parts."""
    nodes: int = 100
    """Nodes of "mesh"."""
    width: int = 64
    """Hidden units."""
    count: int = 800
    """Gaussians fitted to the map where none are given."""
    start: Start = "linear"
    """Where latent vectors begin: "linear", the posterior means of probabilistic PCA of volumes, or "zero"."""
    latents: Latents = "table"
    """"table": every image's latent vector is its own parameter; "encoder": a network reads it from the image. It learns
    the vectors of `start` first, then what explains the images; with --no-polish its answers are final."""
    encoder: EncoderName = "gradient"
    """What the network sees: the likelihood's "gradient" by the consensus Gaussians, or the aligned "image"."""
    encoder_rate: float = 0.001
    """Step of Adam on the encoder's weights."""
    encoder_divergence: float = 1.0
    """Weight of the divergence of what the encoder says from the prior; 1 makes the loss a bound of the likelihood. From
    --start zero an encoder of images may say nothing at all at 1; 0.01 makes it speak."""
    epochs: int = 10
    """How often every image is seen."""
    max_images: int | None = None
    """No more image visits than this, whatever `epochs` says."""
    batch: int = 64
    """Images per step."""
    basis_rate: float = 0.01
    """Step of Adam on the modes; networks take a fifth of it, anchors twice of it (units of pixels and logarithms)."""
    latent_rate: float = 0.3
    """Step of Adam on latent vectors, where `freeze` lets them move; their prior is the standard normal distribution."""
    freeze: float = 1.0
    """Share of the training in which latent vectors stay where they began or where the last pass put them. Letting them
    move with every step fits noise: it cost 0.004 to 0.02 of FSC area on simulated sets."""
    rounds: int = 1
    """Parts of the training, each with a pass over all images after it that brings every latent vector (and pose) to the
    mode of its posterior; with --refine-poses at least 2."""
    polish: bool = True
    """Whether those passes move latent vectors; without, they tell only how sure each is."""
    refine_poses: bool = False
    """Whether poses are refined with the motion; the molecule's own rigid motion is then taken out of it."""
    pose_sd_deg: float = 3.0
    """Standard deviation of the given rotations' errors, for --refine-poses."""
    shift_sd_A: float = 4.0
    """Standard deviation of the given shifts' errors per axis, for --refine-poses."""
    elastic: float = 0.0
    """Weight of the elastic prior: nats per square pixel that neighbouring Gaussians' distance changes, per image."""
    smooth: float = 0.0
    """Weight of the smoothness prior: nats per square pixel by which neighbours' displacements differ, per image."""
    clash: float = 0.0
    """Weight of the clash prior: nats per square pixel that two Gaussians come nearer than half their spacing, per image."""
    resolution_A: float | None = None
    """Detail of the images that is used; None: to nearly their Nyquist frequency."""
    contrast: Contrast = "auto"
    """Whether protein is light or dark in the images."""
    threads: int = 0
    """Cores to use; 0: all."""
    seed: int = 0
    """Decides all chance."""

    def __post_init__(self) -> None:
        low = {
            "latent": 1,
            "rank": 1,
            "parts": 1,
            "nodes": 2,
            "width": 4,
            "count": 1,
            "epochs": 1,
            "batch": 1,
            "rounds": 1,
        }
        for name, least in low.items():
            if getattr(self, name) < least:
                raise BadInput(f"flex: {name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("elastic", "smooth", "clash", "encoder_divergence"):
            if getattr(self, name) < 0:
                raise BadInput(f"flex: {name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.freeze <= 1:
            raise BadInput(f"flex: freeze is a share of the training, 0 to 1, got {self.freeze}.")
        if not (self.pose_sd_deg > 0 and self.shift_sd_A > 0):
            raise BadInput("flex: pose_sd_deg and shift_sd_A must be positive.")
