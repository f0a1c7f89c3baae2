"""How to refine."""

from __future__ import annotations

from dataclasses import dataclass

from cryorbit.errors import BadInput
from cryorbit.inference.observations import Contrast


@dataclass(frozen=True, kw_only=True)
class RefinementSettings:
    """How to refine."""

    symmetry: str = "C1"
    """Point group in RELION's settings: C1, C2, D2, T, O, I ..."""
    seed: int = 0
    """Decides the half sets where the file has none and no micrographs either."""
    start_resolution_A: float = 30.0
    """Low-pass of the reference that both halves start from. Poses of a file with half sets in it start from the maps
    of their own halves instead, as far as these agree."""
    start_snr: float | None = None
    """Power of the map's projections over the noise, up to the starting resolution; measured on the images unless given."""
    search: bool = False
    """Search all poses of every image first, even where the file has poses; needs a map."""
    near_deg: float | None = None
    """How far the given poses may be off, degrees, for the first round's local search; 0 for none. Unless given: none for
    poses that come with half sets, else by the starting resolution (7 degrees at 30 A for a particle 200 A wide)."""
    rounds: int = 12
    """Rounds at most."""
    scale: bool = True
    """Estimate the contrast of each particle."""
    defocus: bool = False
    """Refine the defocus of each particle from the third round on."""
    defocus_sd_A: float = 300.0
    """How far defocus values may be off: standard deviation of their prior."""
    particle_diameter_A: float | None = None
    """Diameter of the particle; measured from the images when not given."""
    max_resolution_A: float | None = None
    """Do not use finer detail than this."""
    contrast: Contrast = "auto"
    """Protein light on dark ice, or dark on light; auto asks the images."""
    threads: int = 0
    """Workers; 0 for one per core."""

    def __post_init__(self) -> None:
        positive = {
            "--start-resolution-A": self.start_resolution_A,
            "--start-snr": 1 if self.start_snr is None else self.start_snr,
            "--rounds": self.rounds,
            "--defocus-sd-A": self.defocus_sd_A,
            "--max-resolution-A": 1 if self.max_resolution_A is None else self.max_resolution_A,
            "--particle-diameter-A": 1 if self.particle_diameter_A is None else self.particle_diameter_A,
        }
        for name, value in positive.items():
            if not value > 0:
                raise BadInput(f"{name} {value:g}: wanted more than 0.")
        if self.near_deg is not None and not 0 <= self.near_deg <= 60:
            raise BadInput(f"--near-deg {self.near_deg:g}: wanted 0 to 60; farther away, use --search.")
