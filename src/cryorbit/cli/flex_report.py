"""Pictures, films and report.html of `cryorbit flex analyze`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cryorbit.cli.run_folder import command_line

if TYPE_CHECKING:
    from cryorbit.cli.flex_analysis_files import Job
    from cryorbit.report.flex_report import FlexPictures

FILMS = ("pc1", "path")
REPORT = "report.html"


def write_pictures_and_report(folder: Path, job: Job, notes: Sequence[str]) -> None:
    """film.gif in the folders of the first component and of the path, and report.html."""
    from cryorbit.cli.config import flatten
    from cryorbit.cli.report import versions
    from cryorbit.io.atomic import atomic_path
    from cryorbit.report.flex_report import FlexReading, write_flex_report

    pictures = draw(job) if job.settings.pictures else None
    for name, gif in ({} if pictures is None else pictures.films).items():
        with atomic_path(folder / name / "film.gif") as part:
            part.write_bytes(gif)
    result = job.result
    reading = FlexReading(
        analysis=job.analysis,
        pictures=pictures,
        chi_square=torch.tensor(job.table["chi_square"].to_numpy(float)),
        source=Path(job.settings.run_dir.resolve()).name,
        pixel_size_A=result.pixel_size_A,
        gaussians=len(job.analysis.motion.rms_A),
        groups_folder=job.groups_name,
        command=command_line(),
        date=time.strftime("%Y-%m-%d %H:%M:%S"),
        notes=notes,
        settings=flatten(job.settings.analysis),
        versions=versions(),
    )
    write_flex_report(folder / REPORT, reading)


def draw(job: Job) -> FlexPictures:
    """Surfaces of all groups and series, with progress."""
    from cryorbit.cli.progress import Teller
    from cryorbit.inference.engine import Progress
    from cryorbit.inference.flex_decode import decode_gaussians
    from cryorbit.report.flex_figures import Stage, film, motion_figure
    from cryorbit.report.flex_report import FlexPictures
    from cryorbit.report.style import house_style

    analysis, model = job.analysis, job.result.model
    series = {f"pc{k + 1}": s for k, s in enumerate(analysis.series)}
    series |= {} if analysis.path is None else {"path": analysis.path}
    wanted = {"groups": analysis.groups.latent} | {name: s.latent for name, s in series.items()}
    decoded = {name: decode_gaussians(model, latents) for name, latents in wanted.items()}
    mean = analysis.motion.mean
    every = [mean, *(g for some in decoded.values() for g in some)]
    stage = Stage.of(every, analysis.view, box=job.result.box, pixel_size_A=job.result.pixel_size_A)
    drawn: dict[str, list] = {name: [] for name in decoded}
    total, done = len(every), 0
    with Teller() as teller:
        for name, some in decoded.items():
            for gaussians in some:
                drawn[name] += stage.draw(gaussians)
                done += 1
                teller.tell(Progress("drawing", done, total, done / total, {}, {}))
    with house_style():
        motion = motion_figure(stage, mean, analysis.motion.rms_A)
    return FlexPictures(
        stage=stage,
        groups=drawn.pop("groups"),
        series=drawn,
        films={name: film(drawn[name]) for name in FILMS if name in drawn},
        motion=motion,
    )
