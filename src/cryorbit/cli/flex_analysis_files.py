"""The files of `cryorbit flex analyze`, all but the pictures and the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from cryorbit.cli.run_folder import command_line, write_json, write_text
from cryorbit.data import Volume
from cryorbit.errors import BadFile, BadInput

if TYPE_CHECKING:
    from cryorbit.analysis.latent_paths import Series
    from cryorbit.cli.flex_analyze import Settings
    from cryorbit.data import Gaussians, ParticleStack
    from cryorbit.inference.flex import FlexResult
    from cryorbit.inference.flex_analysis import FlexAnalysis


@dataclass(frozen=True, eq=False)
class Job:
    """A run, its analysis, and the table of its particles.

    Parameters
    ----------
    centre_A
        Where viewers show the particle's centre, x, y, z: that of the map that the run began with, if there was one.
    table
        A row per particle: coordinates, group, fit.
    """

    settings: Settings
    result: FlexResult
    stack: ParticleStack
    analysis: FlexAnalysis
    centre_A: torch.Tensor
    table: pd.DataFrame

    @classmethod
    def of(cls, settings: Settings, result: FlexResult, stack: ParticleStack, analysis: FlexAnalysis) -> Job:
        """With frame and table found."""
        centre = viewer_centre_A(settings.run_dir, result)
        return cls(settings, result, stack, analysis, centre, particle_table(result, stack, analysis))

    @property
    def groups_name(self) -> str:
        """Folder of the groups."""
        return self.settings.analysis.grouping

    def mean_gaussians(self) -> Gaussians:
        """What the model shows at the mean latent."""
        from cryorbit.inference.flex_decode import decode_gaussians

        cloud = self.analysis.cloud
        return decode_gaussians(self.result.model, cloud.units.latents(cloud.axes.mean[None]))[0]

    def write_map(self, path: Path, gaussians: Gaussians) -> None:
        """A map of Gaussians, placed so that it overlays the map that the run began with."""
        from cryorbit.io.mrc import write_map
        from cryorbit.physics.splat import gaussians_to_map

        box, pixel = self.result.box, self.result.pixel_size_A
        values = gaussians_to_map(gaussians, box=box, pixel_size_A=pixel).values
        x, y, z = (round(float(c) - (box // 2) * pixel, 4) for c in self.centre_A)
        write_map(path, Volume(values, pixel, origin_A=(x, y, z)))


def viewer_centre_A(run_dir: Path, result: FlexResult) -> torch.Tensor:
    """Where viewers show the particle's centre: as in the run's own --map, or as in a map whose ORIGIN is 0."""
    import yaml

    from cryorbit.io.mrc import read_map

    place = torch.full((3,), (result.box // 2) * result.pixel_size_A, dtype=torch.float64)
    path = run_dir / "settings.yaml"
    asked = yaml.safe_load(path.read_text()) if path.exists() else {}
    given = (asked or {}).get("map")
    if not given or not Path(given).exists():
        return place
    try:
        volume = read_map(given)
    except BadFile:  # it may have gone bad since; the run does not need it any more
        return place
    return torch.tensor(volume.place_A, dtype=torch.float64) + (volume.box // 2) * volume.pixel_size_A


def particle_table(result: FlexResult, stack: ParticleStack, analysis: FlexAnalysis) -> pd.DataFrame:
    """Coordinates, group and fit of each particle."""
    columns: dict[str, Any] = {"particle": stack.ids}
    scores = analysis.cloud.scores()
    columns |= {f"pc{k + 1}": scores[:, k].numpy() for k in range(scores.shape[1])}
    columns |= {f"z{k + 1}": result.z[:, k].double().numpy() for k in range(result.z.shape[1])}
    columns |= {"group": (analysis.groups.label + 1).numpy()}
    columns |= {"probability": analysis.groups.probability.numpy()}
    columns |= {"chi_square": (2 * result.misfit.double() / result.numbers).numpy()}
    if analysis.plane is not None:
        columns |= {"x": analysis.plane[:, 0].numpy(), "y": analysis.plane[:, 1].numpy()}
    return pd.DataFrame(columns)


def write_analysis(folder: Path, job: Job) -> list[str]:
    """Everything into an empty folder; remarks for people.

    Raises
    ------
    BadInput
        If the model does not lie in the map, or the selection is not understood.
    BadFile
        If the disk refuses.
    """
    from cryorbit.cli.flex_model import read_model, write_model
    from cryorbit.inference.flex_decode import decode_gaussians

    notes: list[str] = []
    analysis = job.analysis
    rows = chosen_rows(job)  # before any work: a misspelt selection is told at once
    atoms = read_model(job)
    job.write_map(folder / "mean.mrc", job.mean_gaussians())
    write_csv(folder / "particles.csv", job.table)
    write_groups(folder / job.groups_name, job)
    series = {f"pc{k + 1}": s for k, s in enumerate(analysis.series)}
    if analysis.path is not None:
        series["path"] = analysis.path
    for name, one in series.items():
        gaussians = decode_gaussians(job.result.model, one.latent)
        write_series(folder / name, one, gaussians, job)
        if atoms is not None:
            remark = write_model(folder / f"model_{name}.pdb", gaussians, atoms)
            notes += [] if remark is None else [remark]
    write_motion(folder / "motion", job, notes)
    if rows is not None:
        notes.append(f"selected.star: {len(rows)} of {len(job.stack)} particles.")
        write_subset(folder / "selected.star", job.stack, rows)
    from cryorbit.cli.flex_report import write_pictures_and_report

    write_json(folder / "analysis.json", facts_of(job, notes))
    write_pictures_and_report(folder, job, notes)
    return notes


def facts_of(job: Job, notes: list[str]) -> dict[str, Any]:
    """What analysis.json says."""
    from cryorbit.cli.config import flatten
    from cryorbit.inference.flex_analysis import verdict

    analysis = job.analysis
    level, words = verdict(analysis)
    return {
        "command": command_line(),
        "verdict": words,
        "verdict_level": level,
        "notes": notes,
        "particles": len(job.stack),
        "variance_in_error_variances": analysis.cloud.axes.variance.tolist(),
        "group_sizes": analysis.groups.size.tolist(),
        "settings": flatten(job.settings.analysis),
    }


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """A table, six digits a number, at once or not at all."""
    write_text(path, table.to_csv(index=False, float_format="%.6g"))


def write_subset(path: Path, stack: ParticleStack, rows: torch.Tensor) -> None:
    """Some particles as a STAR file, with all their columns."""
    from cryorbit.io.particles import write_particles

    write_particles(path, stack.select(rows))


def write_groups(folder: Path, job: Job) -> None:
    """vol_001.mrc, particles_001.star, ...: a map and the particles of each group; groups.csv."""
    from cryorbit.inference.flex_decode import decode_gaussians

    folder.mkdir()
    groups = job.analysis.groups
    decoded = decode_gaussians(job.result.model, groups.latent)
    for k, gaussians in enumerate(decoded):
        job.write_map(folder / f"vol_{k + 1:03d}.mrc", gaussians)
        rows = torch.nonzero(groups.label == k)[:, 0]
        write_subset(folder / f"particles_{k + 1:03d}.star", job.stack, rows)
    nearest = job.table.iloc[groups.particle.numpy()].reset_index(drop=True)
    size = groups.size
    about = pd.DataFrame(
        {
            "group": range(1, len(size) + 1),
            "particles": size.numpy(),
            "share": (size / size.sum()).numpy(),
            "nearest_particle": nearest["particle"],
            "row": (groups.particle + 1).numpy(),
        }
    )
    kept = [c for c in nearest if str(c).startswith(("pc", "z"))]
    write_csv(folder / "groups.csv", pd.concat([about, nearest[kept]], axis=1))


def write_series(folder: Path, series: Series, gaussians: list[Gaussians], job: Job) -> None:
    """vol_01.mrc, ... in the order of the series, and latents.csv with the latents that were decoded."""
    folder.mkdir()
    for k, one in enumerate(gaussians):
        job.write_map(folder / f"vol_{k + 1:02d}.mrc", one)
    columns: dict[str, Any] = {
        "volume": [f"vol_{k + 1:02d}.mrc" for k in range(len(gaussians))],
        "score": series.score.numpy(),
        "standard_errors_off_data": series.off_data.numpy(),
    }
    if series.particle is not None:
        columns["particle"] = job.stack.ids[series.particle.numpy()]
    columns |= {f"z{k + 1}": z.double().numpy() for k, z in enumerate(series.latent.T)}
    write_csv(folder / "latents.csv", pd.DataFrame(columns))


def write_motion(folder: Path, job: Job, notes: list[str]) -> None:
    """Displacements along the first component: B-factors of pseudo-atoms, arrows for ChimeraX, and a table."""
    from cryorbit.io.atoms import write_atoms
    from cryorbit.io.bild import arrows

    folder.mkdir()
    motion = job.analysis.motion
    start = motion.mean.position_A.double() - 0.5 * motion.step_A.double()
    shown = start + job.centre_A
    name = "displacement.pdb"
    atoms = motion.atoms()
    atoms = replace(atoms, position_A=atoms.position_A.double() + job.centre_A)
    try:
        write_atoms(folder / name, atoms)
    except BadInput:  # 999.99 is the largest B-factor of a PDB file: 6 A
        name = "displacement.cif"
        write_atoms(folder / name, atoms)
        notes.append(
            "motion/displacement.cif: mmCIF, since B-factors of motions beyond 6 Å do not fit into a PDB file."
        )
    width = float(job.result.pixel_size_A)
    write_text(
        folder / "arrows.bild",
        arrows(shown, shown + motion.step_A.double(), width_A=0.3 * width, least_A=0.5 * width),
    )
    table: dict[str, Any] = {"gaussian": range(1, len(start) + 1)}
    for label, values in (("from", shown), ("step", motion.step_A)):
        table |= {f"{label}_{axis}_A": values[:, k].double().numpy() for k, axis in enumerate("xyz")}
    table |= {"rms_A": motion.rms_A.double().numpy(), "b_factor_A2": motion.b_factor_A2().double().numpy()}
    table |= {"fade": motion.fade.double().numpy(), "amplitude": motion.mean.amplitude.double().numpy()}
    write_csv(folder / "displacement.csv", pd.DataFrame(table))


def chosen_rows(job: Job) -> torch.Tensor | None:
    """Rows of --select."""
    from cryorbit.analysis.latent_paths import choose

    if job.settings.select is None:
        return None
    numbers = job.table.drop(columns=["particle"])
    columns = {str(name): torch.tensor(numbers[name].to_numpy(float)) for name in numbers}
    rows = torch.nonzero(choose(job.settings.select, columns))[:, 0]
    if len(rows) == 0:
        raise BadInput(
            f"selection {job.settings.select!r}: no particle fulfils it. See the ranges in particles.csv."
        )
    return rows
