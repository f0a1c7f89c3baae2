"""What a user may say about an ab initio run."""

from __future__ import annotations

from dataclasses import dataclass

from cryorbit.inference.observations import Contrast


@dataclass(frozen=True, kw_only=True)
class AbinitioSettings:
    """How to find poses and a map from nothing."""

    symmetry: str = "C1"
    """Point group in RELION's settings: C1, C2, D2, T, O, I ..."""
    seed: int = 0
    """Seed of everything random; the same seed, threads and machine give the same result, bit for bit."""
    starts: int = 4
    """Random starts; the less likely half is dropped twice on the way."""
    batches: int = 60
    """Batches of the start that is carried to the end of the coarse stage."""
    batch_images: int = 100
    """Images per batch. Large early batches average to a ball."""
    forgetting: float = 0.9
    """What a batch leaves of the sums of those before it."""
    coarse_images: int = 20000
    """At most this many images, drawn at random, feed the coarse stage."""
    particle_diameter_A: float | None = None
    """Diameter of the particle; measured from the images when not given."""
    max_resolution_A: float | None = None
    """Do not use finer detail than this."""
    rounds: int = 6
    """Rounds of refinement at most; they end when the radius no longer grows."""
    contrast: Contrast = "auto"
    """Protein light on dark ice, or dark on light; auto asks the images."""
    threads: int = 0
    """Workers; 0 for one per core."""
