"""`cryorbit check PARTICLES`: everything that can go wrong, looked at before any long run."""

from __future__ import annotations

import json as json_format
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.fsc import finite
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.reading import ParticlesFile, ReadOptions, read
from cryorbit.errors import CryorbitError

if TYPE_CHECKING:
    from cryorbit.cli.checks import Finding
    from cryorbit.data import ParticleStack


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Look a particle file over; exit code 1 if anything is an error."""

    particles: tyro.conf.Positional[ParticlesFile]
    """A .star, .cs, .mrcs or .txt file or a job folder."""
    json: bool = False
    """Print JSON instead of a table."""
    reading: Annotated[ReadOptions, Flat] = field(default_factory=ReadOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Print the findings; 1 if one of them is an error."""
    from cryorbit.cli.checks import Finding

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stack = read(settings.particles, settings.reading)
        findings = [Finding("reading", "warning", " ".join(str(w.message).split())) for w in caught]
        findings += look(stack)
    except CryorbitError as error:
        findings = [Finding("reading", "error", " ".join(str(error).split()))]
    errors = sum(finding.level == "error" for finding in findings)
    remarks = sum(finding.level == "warning" for finding in findings)
    if settings.json:
        report = {"source": str(settings.particles), "errors": errors, "warnings": remarks}
        print(json_format.dumps(finite(report | {"checks": [asdict(f) for f in findings]})))
    else:
        for finding in findings:
            print(f"{finding.level:8s} {finding.name:11s} {finding.message}")
        print(f"{errors} error(s), {remarks} warning(s)")
    return 1 if errors else 0


def look(stack: ParticleStack) -> list[Finding]:
    """All findings about a stack that could be read."""
    from cryorbit.cli import checks
    from cryorbit.cli.contrast import contrast

    pixels = checks.images(stack)
    found = [checks.counts(stack), pixels, *checks.pixel_size(stack), checks.ctf(stack)]
    if pixels.level != "error":
        found += contrast(stack)
    found += [checks.half_sets(stack), *checks.duplicates(stack), checks.poses(stack)]
    return [*found, checks.resources(stack, Path.cwd()), checks.readiness(stack)]
