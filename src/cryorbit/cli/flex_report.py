"""Pictures, films and report.html of `cryorbit flex analyze`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cryorbit.cli.run_folder import command_line

if TYPE_CHECKING:
    import numpy as np

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
        source=particles_name(job.settings.run_dir),
        pixel_size_A=result.pixel_size_A,
        gaussians=len(job.analysis.motion.rms_A),
        groups_folder=job.groups_name,
        ends_given=job.settings.from_particle is not None,
        command=command_line(),
        date=time.strftime("%Y-%m-%d %H:%M:%S"),
        notes=notes,
        settings=flatten(job.settings.analysis),
        versions=versions(),
    )
    write_flex_report(folder / REPORT, reading)


def particles_name(run_dir: Path) -> str:
    """What the run was given, by its settings; else the name of the folder."""
    import yaml

    path = run_dir / "settings.yaml"
    asked = yaml.safe_load(path.read_text()) if path.exists() else {}
    return Path((asked or {}).get("particles") or run_dir.resolve()).name


def draw(job: Job) -> FlexPictures:
    """Surfaces of all groups and series, with progress."""
    from cryorbit.cli.progress import Teller
    from cryorbit.inference.engine import Progress
    from cryorbit.inference.flex_decode import decode_gaussians
    from cryorbit.report.film import film
    from cryorbit.report.flex_figures import Stage, painted_figure, trimmed
    from cryorbit.report.flex_report import FlexPictures
    from cryorbit.report.style import house_style

    analysis, model = job.analysis, job.result.model
    series = {f"pc{k + 1}": s for k, s in enumerate(analysis.series)}
    series |= {} if analysis.path is None else {"path": analysis.path}
    latents = {"groups": analysis.groups.latent} | {name: s.latent for name, s in series.items()}
    decoded = {name: decode_gaussians(model, some) for name, some in latents.items()}
    mean = analysis.motion.mean
    every = [mean, *(g for some in decoded.values() for g in some)]
    stage = Stage.of(every, analysis.view, box=job.result.box, pixel_size_A=job.result.pixel_size_A)
    drawn: dict[str, list[tuple[int, np.ndarray]]] = {}
    wanted = {name: _shown(name, len(some)) for name, some in decoded.items()}
    total, done = sum(map(len, wanted.values())), 0
    with Teller() as teller:
        for name, places in wanted.items():
            drawn[name] = []
            for place in places:
                drawn[name] += [(place, stage.draw(decoded[name][place])[0])]
                done += 1
                teller.tell(Progress("drawing", done, total, done / total, {}, {}))
    pixel = stage.edge_A / drawn["groups"][0][1].shape[1]
    flat = iter(trimmed([picture for some in drawn.values() for _, picture in some]))
    drawn = {name: [(place, next(flat)) for place, _ in some] for name, some in drawn.items()}
    with house_style():
        gone = analysis.motion.fade > 0.5
        rms = analysis.motion.rms_A.masked_fill(gone, 0.0)
        motion = painted_figure(stage, mean, rms, unit="Å rms")
        fade = painted_figure(stage, mean, analysis.motion.fade, unit="lost", high=1.0)
    films = {name: film([picture for _, picture in drawn[name]]) for name in FILMS if name in drawn}
    groups = [picture for _, picture in drawn.pop("groups")]
    series = {name: [some[k] for k in _spread(len(some))] for name, some in drawn.items()}
    return FlexPictures(pixel_A=pixel, groups=groups, series=series, films=films, motion=motion, fade=fade)


def _shown(name: str, count: int) -> list[int]:
    """Which of a series are drawn: all for groups and films, else those that the report shows."""
    return list(range(count)) if name in ("groups", *FILMS) else _spread(count)


def _spread(count: int) -> list[int]:
    """Places of a few, evenly from the first to the last."""
    from cryorbit.cli.reading import spread_rows
    from cryorbit.report.flex_sections import SHOWN

    return spread_rows(count, SHOWN).tolist()
