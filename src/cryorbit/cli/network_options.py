"""Options of the networks of `cryorbit abinitio --method amortised | hybrid`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cryorbit.inference.abinitio_settings import AbinitioSettings
    from cryorbit.inference.amortised_settings import AmortisedSettings

Method = Literal["search", "amortised", "hybrid"]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The network of --method amortised and hybrid; the search has none."""

    encoder: Literal["standard", "c4", "d4", "d4-regular", "i2s", "slice"] = "d4-regular"
    """From image to poses: cryoAI's network, its equivariant forms, or a trained distribution on a grid (i2s, slice)."""
    decoder: Literal["volume", "fouriernet"] = "volume"
    """The map: its transform on a lattice, or cryoAI's FourierNet."""
    loss: Literal["l2", "sym", "mirror", "softmin"] = "softmin"
    """Which poses are moved; sym and mirror are for standard and c4."""
    width: float = 0.25
    """Channels of the encoder relative to the published network."""
    hypotheses: int = 4
    """Poses per image (standard), per image and element (d4-regular)."""
    box_px: int = 32
    """The network sees images cropped in Fourier space to this box."""
    precision: Literal["full", "bfloat16"] = "full"
    """Of the network's convolutions: bfloat16 is faster where the processor multiplies it, and coarser."""
    refinement: int = 3
    """Gauss-Newton steps of the likeliest poses before the encoder learns them; 0: the encoder's poses alone."""
    teacher: float = 0.2
    """Hybrid: share of the images that are searched although the encoder is trusted."""
    max_visits: int = 60_000
    """Amortised: images compared with the map before the poses are taken."""


def network_settings(
    method: Method, options: NetworkOptions, inference: AbinitioSettings, *, device: str = "cpu"
) -> AmortisedSettings:
    """The settings of `inference.amortised`, with the ones that ab initio has too."""
    from cryorbit.inference.amortised_settings import AmortisedSettings

    hybrid = method == "hybrid"
    return AmortisedSettings(
        encoder=options.encoder,
        decoder=options.decoder,
        loss=options.loss,
        width=options.width,
        hypotheses=options.hypotheses,
        box_px=options.box_px,
        batch=16,
        refinement=0 if options.loss != "softmin" else options.refinement,
        winners=4 if options.refinement else 1,
        teacher=options.teacher if hybrid else 0.0,
        max_visits=10**9 if hybrid else options.max_visits,
        seed=inference.seed,
        particle_diameter_A=inference.particle_diameter_A,
        contrast=inference.contrast,
        precision=options.precision,
        device=device,
    )
