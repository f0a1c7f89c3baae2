"""`cryorbit flex analyze DIR`: what a flex run found, as maps, groups, motions, pictures and a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions, set_threads
from cryorbit.cli.reading import ReadOptions
from cryorbit.errors import BadFile, BadInput
from cryorbit.inference.flex_analysis import AnalysisSettings

if TYPE_CHECKING:
    from cryorbit.data import ParticleStack
    from cryorbit.inference.flex import FlexResult

FACTS = "analysis.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Look at a flex run: groups of particles, maps along components and paths, motions, a film, report.html."""

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Folder of a finished `cryorbit flex train`."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="OUT")] = None
    """Folder for the results; DIR/analysis unless given."""
    overwrite: bool = False
    """Replace an earlier analysis."""
    from_particle: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Where the path begins: a particle's name (rlnImageName) or row, from 1; an end of the first component unless
    given."""
    to_particle: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Where the path ends."""
    select: Annotated[str | None, tyro.conf.arg(metavar="'pc1<0'")] = None
    """Write selected.star too: particles for which comparisons of pc1, pc2, ..., z1, ..., group, probability or
    chi_square with numbers, joined by 'and', hold."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="MODEL.pdb")] = None
    """Atoms to carry along, PDB or mmCIF, fitted to mean.mrc (see --model-group)."""
    model_group: int = 0
    """Group whose map the model was fitted to; 0: mean.mrc."""
    model_frame: Literal["viewer", "particle"] = "viewer"
    """Where the model's coordinates count from: as viewers place these maps, or from the particle's centre."""
    pictures: bool = True
    """Draw surfaces and films: the longest part."""
    analysis: Annotated[AnalysisSettings, Flat] = field(default_factory=AnalysisSettings)
    reading: Annotated[ReadOptions, Flat] = field(default_factory=ReadOptions)
    threads: int | None = None
    """CPU threads; all cores unless given."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Analyse, then write everything into a folder that appears when it is whole."""
    from cryorbit.cli.flex_analysis_files import Job, write_analysis
    from cryorbit.cli.flex_files import load_flex
    from cryorbit.cli.progress import say
    from cryorbit.inference.flex_analysis import analyse, verdict
    from cryorbit.io.atomic import atomic_folder

    out = settings.out or settings.run_dir / "analysis"
    refuse_occupied_by_others(out, overwrite=settings.overwrite)
    set_threads(settings.threads)
    result, _ = load_flex(settings.run_dir)
    stack = particles_of(settings, result)
    analysis = analyse(result, settings.analysis, ends=ends_of(settings, stack))
    job = Job.of(settings, result, stack, analysis)
    with atomic_folder(out) as folder:
        notes = write_analysis(folder, job)
    for note in notes:
        say(f"note: {note}")
    say(verdict(analysis)[1])
    say(f"{out / 'report.html'}: written")
    return 0


def refuse_occupied_by_others(out: Path, *, overwrite: bool) -> None:
    """Raise if `out` holds anything that may not be replaced.

    Raises
    ------
    BadInput
        If it is a file, an earlier analysis without --overwrite, or something that no analysis wrote.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f"{out}: is a file, wanted an output folder. Choose another name with -o.")
    if not any(out.iterdir()):
        return
    if not (out / FACTS).exists():
        raise BadInput(f"{out}: holds files that no flex analyze wrote. Choose another folder with -o.")
    if not overwrite:
        raise BadInput(f"{out}: holds an earlier analysis. Give --overwrite, or another folder with -o.")


def particles_of(settings: Settings, result: FlexResult) -> ParticleStack:
    """The run's particles, images not needed.

    Raises
    ------
    BadFile
        If they are not those of the latents.
    """
    from cryorbit.cli.reading import read

    stack = read(settings.run_dir / "particles.star", settings.reading, images="if found")
    if len(stack) != len(result.z):
        raise BadFile(
            f"{stack.source}: {len(stack)} particles, but the run has latents of {len(result.z)}. Restore the file that the "
            "run wrote."
        )
    return stack


def ends_of(settings: Settings, stack: ParticleStack) -> tuple[int, int] | None:
    """Rows of the particles named for the path; None where none is.

    Raises
    ------
    BadInput
        If one is named and the other not, or there is no such particle.
    """
    names = (settings.from_particle, settings.to_particle)
    if names == (None, None):
        return None
    if None in names:
        raise BadInput("a path has two ends. Give both --from-particle and --to-particle.")
    start, end = (row_of(str(name), stack) for name in names)
    return start, end


def row_of(name: str, stack: ParticleStack) -> int:
    """The row of a particle given by its name, or by its row from 1.

    Raises
    ------
    BadInput
        If there is no such particle.
    """
    import numpy as np

    from cryorbit.io.particles import match_ids

    if name.isdigit():
        if not 1 <= int(name) <= len(stack):
            raise BadInput(f"particle {name}: rows count from 1 to {len(stack)}.")
        return int(name) - 1
    return int(match_ids(np.array([name]), stack.ids)[0])
