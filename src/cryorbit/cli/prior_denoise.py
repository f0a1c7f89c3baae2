"""`cryorbit prior denoise HALF1 HALF2 -o MAP`: the posterior mean of two half maps given a prior of maps, and its spread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.map_files import OutMap
from cryorbit.cli.options import ConfigOptions, set_threads
from cryorbit.cli.prior_files import PriorFile
from cryorbit.inference.half_posteriors import HalvesSettings
from cryorbit.inference.posterior import PosteriorSettings

if TYPE_CHECKING:
    from cryorbit.inference.prior_denoising import Denoised


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Denoise half maps with a learned prior: MAP, and MAP_spread beside it, on the half maps' grid and grey scale."""

    half1: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="HALF1")]]
    """First unfiltered, unmasked half map."""
    half2: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="HALF2")]]
    """Second half map."""
    out: OutMap
    """Map to write; its spread goes beside it with _spread in its name, if the prior helped."""
    prior: PriorFile = None
    """The prior.safetensors of `prior train`; the shipped prior of maps unless given."""
    inference: Annotated[HalvesSettings, Flat] = field(default_factory=lambda: HalvesSettings(half_samples=2))
    sampling: Annotated[PosteriorSettings, Flat] = field(
        default_factory=lambda: PosteriorSettings(samples=4, steps=30)
    )
    header_pixel_size_A: float | None = None
    """Pixel size of the half maps, where the header has none or a wrong one."""
    overwrite: bool = False
    """Replace the outputs if they are there."""
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Denoise and write; exit code 1 if the prior did not help, and the map is that of the data alone."""
    from cryorbit.cli.outputs import refuse_existing, refuse_no_folder
    from cryorbit.cli.prior_files import load_volume_prior
    from cryorbit.cli.progress import Teller
    from cryorbit.inference.prior_denoising import denoise_halves
    from cryorbit.io.mrc import read_map, refuse_not_finite, write_maps

    refuse_no_folder(settings.out)
    spread = settings.out.with_name(f"{settings.out.stem}_spread{settings.out.suffix or '.mrc'}")
    for path in (settings.out, spread):
        refuse_existing(path, overwrite=settings.overwrite)
    set_threads(settings.threads)
    prior = load_volume_prior(settings.prior)
    first, second = (
        read_map(path, pixel_size_A=settings.header_pixel_size_A) for path in (settings.half1, settings.half2)
    )
    for path, half in ((settings.half1, first), (settings.half2, second)):
        refuse_not_finite(path, half)
    source = str(settings.half1)
    found = None
    with Teller() as teller:
        for record in denoise_halves(
            first, second, prior, settings.inference, settings.sampling, source=source
        ):
            teller.tell(record)
            found = record.result
    assert found is not None  # the last record carries it
    write_maps({settings.out: found.map} | ({} if found.spread is None else {spread: found.spread}))
    if found.spread is None:
        spread.unlink(missing_ok=True)  # of an earlier run: it would be taken for this map's
    tell(settings.out, found)
    return 0 if found.prior_helped else 1


def tell(out: Path, found: Denoised) -> None:
    """What became of it, in a few lines."""
    from cryorbit.cli.progress import say

    result = found.result
    data, both = (c.resolution_A(0.143) for c in (result.data_curve, result.posterior_curve))
    limited = (c.nyquist_limited(0.143) for c in (result.data_curve, result.posterior_curve))
    words = [
        f"{v:.1f} A{' or better' if end else ''}" if math.isfinite(v) else "nowhere"
        for v, end in zip((data, both), limited, strict=True)
    ]
    chi = result.chi_square
    grid = result.grid
    say(f"{grid.box} voxels of {grid.voxel_size_A:.3g} A, {result.gain:.3g} grey values per volt")
    say(f"{out}: halves agree (FSC 0.143) to {words[0]}; with the prior, which they share, to {words[1]}")
    say(
        f"misfit of the other half per number: {min(chi['data only'], found.own_misfit):.4f} without the prior, "
        f"{chi['posterior']:.4f} with it; the data may correct the prior by {result.prior_error:g} sd"
    )
    if not found.prior_helped:
        say(
            "The prior does not suit this molecule: the map is that of the half maps alone, weighted by what they agree on, "
            "and no spread is written. "
            "Is it larger than the prior's box, or is --gain or --particle-diameter-A wrong?"
        )
