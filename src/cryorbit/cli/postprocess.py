"""`cryorbit postprocess DIR`: mask, corrected FSC, sharpened map, local resolution and anisotropy of two half maps."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.analysis.local_resolution import LocalResolutionSettings
from cryorbit.analysis.postprocess import PostprocessSettings
from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions, set_threads
from cryorbit.cli.progress import Teller, say
from cryorbit.errors import BadFile, BadInput

if TYPE_CHECKING:
    from cryorbit.analysis.postprocess import PostprocessResult
    from cryorbit.data import Volume


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Postprocess DIR/half1.mrc and half2.mrc, or two half maps with -o: sharpened and masked map, FSC, report."""

    maps: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR | HALF1 HALF2")]]
    """Folder of an abinitio, reconstruct or refine run; or two unfiltered half maps."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for the results; the run's own unless given."""
    mask: Annotated[Path | None, tyro.conf.arg(metavar="M.mrc")] = None
    """Soft mask; made from the half maps unless given."""
    pixel_size_A: float | None = None
    """Pixel size, where the half maps' headers are wrong or silent."""
    local: bool = True
    """Measure local resolution too: the longest part."""
    report: bool = True
    """Write report.html anew."""
    json: bool = False
    """Print the numbers as JSON."""
    post: Annotated[PostprocessSettings, Flat] = field(default_factory=PostprocessSettings)
    windows: Annotated[LocalResolutionSettings, Flat] = field(default_factory=LocalResolutionSettings)
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Compute everything, then write everything."""
    from cryorbit.analysis.postprocess import postprocess
    from cryorbit.cli.postprocess_files import refuse_others, summary, write_all
    from cryorbit.cli.report import rebuild_report
    from cryorbit.io.mrc import read_map

    set_threads(settings.threads)
    paths, out = places(settings)
    refuse_others(out)
    half1, half2 = (read_map(path, pixel_size_A=settings.pixel_size_A) for path in paths)
    mask = None if settings.mask is None else read_map(settings.mask, pixel_size_A=settings.pixel_size_A)
    found = postprocess(half1, half2, settings.post, mask=mask)
    local = local_map(half1, half2, found, settings) if settings.local else None
    facts = summary(found, local, settings, paths)
    write_all(out, found, local, facts)
    if settings.report:
        rebuild_report(out)
    if settings.json:
        print(json_format.dumps(facts))
    tell(out, facts)
    return 0


def places(settings: Settings) -> tuple[tuple[Path, Path], Path]:
    """The two half maps and the folder for the results.

    Raises
    ------
    BadFile, BadInput
        If it is neither a folder with half maps nor two files with -o.
    """
    from cryorbit.cli.outputs import HALF1, HALF2

    if len(settings.maps) == 1:
        folder = settings.maps[0]
        if not folder.is_dir():
            what = "is a single file" if folder.exists() else "is not there"
            raise BadFile(f"{folder}: {what}. Give the folder of a finished run, or two half maps and -o.")
        pair = (folder / HALF1, folder / HALF2)
        missing = [path.name for path in pair if not path.exists()]
        if missing:
            raise BadFile(
                f"{folder}: no {' and no '.join(missing)} in it. Give the folder of a finished run, or two half maps."
            )
        return pair, settings.out or folder
    if len(settings.maps) != 2:
        raise BadInput(f"postprocess: {len(settings.maps)} names given, wanted one folder or two half maps.")
    if settings.maps[0].resolve() == settings.maps[1].resolve():
        raise BadInput(
            f"{settings.maps[0]}: given twice. Its correlation with itself says nothing: give both half maps."
        )
    if settings.out is None:
        raise BadInput("postprocess: two half maps need a folder for the results. Name it with -o.")
    return (settings.maps[0], settings.maps[1]), settings.out


def local_map(half1: Volume, half2: Volume, found: PostprocessResult, settings: Settings) -> Volume:
    """Local resolution, with progress."""
    from cryorbit.analysis.local_resolution import local_resolution

    steps = local_resolution(half1, half2, found.mask, settings.windows, resolution_A=found.resolution_A)
    result = None
    with Teller() as teller:
        for step in steps:
            teller.tell(step)
            result = step.result
    assert result is not None  # the last step carries it
    return result


def tell(out: Path, facts: dict) -> None:
    """The numbers and warnings in a few lines on stderr."""
    cones = facts["cone_fsc"]
    low, middle, high = (f"{v:.2f}" if v is not None else "none" for v in cones["resolution_A"])
    limit = " (limited by the pixel size)" if facts["nyquist_limited"] else ""
    say(f"{out}: {facts['resolution_0143_A']:.2f} A at FSC 0.143, corrected for the mask{limit}")
    say(f"B-factor {facts['b_factor_A2']:.0f} A^2; by direction {low} to {high} A, median {middle} A")
    if facts["local_resolution"] is not None:
        best, middle, worst = facts["local_resolution"]["quantiles_A"]
        say(
            f"local resolution: {best:.2f} to {worst:.2f} A in nine tenths of the mask, median {middle:.2f} A"
        )
    for warning in facts["warnings"]:
        say(f"warning: {warning}")
