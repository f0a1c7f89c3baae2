"""`cryorbit report DIR`: report.html from the files of a run, at its end or any time later."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cryorbit import __version__
from cryorbit.cli.config import Flat
from cryorbit.cli.options import ConfigOptions
from cryorbit.cli.progress import say
from cryorbit.cli.reading import spread_rows
from cryorbit.errors import BadFile, CryorbitError

if TYPE_CHECKING:
    import torch

    from cryorbit.data import ParticleStack, Volume
    from cryorbit.report.data import ReportData

EXAMPLES = 8
"""Images shown beside their reprojections."""

STATISTICS_FROM = 300
"""Images that the noise spectrum is measured on."""

PREDICTED_AT_A_TIME = 50
"""Reprojections made together: a few tens of MB at usual boxes."""

POSES_SHOWN = 2000
"""This many poses, evenly chosen, fix a density of views that is smoothed over six degrees."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Write DIR/report.html anew from the files in DIR."""

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Folder of an abinitio or reconstruct run, or of a demo."""
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Write the report."""
    rebuild_report(settings.run_dir)
    say(f"{settings.run_dir / 'report.html'}: written")
    return 0


def rebuild_report(folder: Path, *, stack: ParticleStack | None = None) -> None:
    """Write `report.html` from what a run left in its folder; `stack` saves reading its particles again.

    Raises
    ------
    BadFile
        If there is no map, or the report cannot be written.
    """
    from cryorbit.cli.outputs import REPORT
    from cryorbit.report.html import write_report

    write_report(folder / REPORT, gather(folder, stack=stack))


def gather(folder: Path, *, stack: ParticleStack | None = None) -> ReportData:
    """All that the files of a run tell; what is missing is left out, but for the map.

    Raises
    ------
    BadFile
        If there is no map.
    """
    import yaml

    from cryorbit.cli.diagnostics import mirror_of, of_diagnostics
    from cryorbit.cli.flex_files import LATENTS
    from cryorbit.cli.network_panel import of_network
    from cryorbit.cli.outputs import HALF1, HALF2, MAP, REPORT, TRUTH_CURVE, read_fsc
    from cryorbit.cli.postprocess_files import SHARPENED, of_postprocess
    from cryorbit.cli.progress import read_metrics
    from cryorbit.cli.run_folder import METRICS, RUN, SETTINGS, read_json
    from cryorbit.io.mrc import read_map
    from cryorbit.report.data import ReportData

    shown = next((folder / name for name in (MAP, SHARPENED) if (folder / name).exists()), None)
    if shown is None and (folder / LATENTS).exists():
        raise BadFile(f"{folder}: a flex run. `cryorbit flex analyze {folder}` writes its report.")
    facts = read_json(folder / RUN)
    if shown is None and facts.get("verb") == "prior reconstruct":
        raise BadFile(
            f"{folder}: `prior reconstruct` writes its report itself, at its end. Open {folder / REPORT}."
        )
    if shown is None:
        raise BadFile(f"{folder}: no {MAP} in it. Give the folder of a finished run.")
    volume = read_map(shown)
    halves = [folder / HALF1, folder / HALF2]
    settings = yaml.safe_load((folder / SETTINGS).read_text()) if (folder / SETTINGS).exists() else {}
    truth = folder / TRUTH_CURVE
    stack = _particles(folder, settings) if stack is None else stack
    return ReportData(
        map=volume,
        settings=settings,
        title=_title(facts, settings) if shown.name == MAP else "Postprocessed half maps",
        command=facts.get("command", ""),
        versions=versions(),
        date=facts.get("started", ""),
        seconds=facts.get("seconds"),
        verdict=facts.get("verdict") or "",
        verdict_level=_level(facts),
        notes=facts.get("notes") or (),
        half_maps=(read_map(halves[0]), read_map(halves[1])) if all(h.exists() for h in halves) else None,
        truth_curve=read_fsc(truth).get("unmasked") if truth.exists() else None,
        gold_standard=bool(facts.get("gold_standard", False)),
        shared_to_A=facts.get("shared_to_A"),
        n_particles=facts.get("particles"),
        symmetry=str(settings.get("symmetry", "C1")),
        metrics=read_metrics(folder / METRICS),
        evaluation=read_json(folder / "evaluation.json"),
        mirror=mirror_of(volume),
        **of_diagnostics(folder),
        network=of_network(folder),
        **of_postprocess(folder),
        **({} if stack is None else of_particles(stack, volume, facts)),
    )


def _title(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    words = {"abinitio": "Ab initio map", "refine": "Refinement", "reconstruct": "Reconstruction"}
    what = words.get(facts.get("verb", ""), "Map")
    name = settings.get("particles")
    return f"{what} of {Path(name).name}" if name else what


def _level(facts: Mapping[str, Any]) -> Literal["good", "caution", "bad", "none"]:
    level = facts.get("verdict_level", "none")
    return level if level in ("good", "caution", "bad") else "none"


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "scipy")}
    return {
        "cryorbit": __version__,
        "python": platform.python_version(),
        **packages,
        "system": platform.system(),
    }


def _particles(folder: Path, settings: Mapping[str, Any]) -> ParticleStack | None:
    """The run's particles with their poses, None (and a remark) where they are not to be had."""
    from cryorbit.cli.outputs import PARTICLES
    from cryorbit.io.particles import read_particles

    own = folder / PARTICLES
    source = own if own.exists() else settings.get("particles")
    if source is None:
        return None
    try:
        return read_particles(source)
    except CryorbitError as error:
        say(f"warning: report without particles: {' '.join(str(error).split())}")
        return None


def of_particles(stack: ParticleStack, volume: Volume, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The report's entries about the particles."""
    import torch

    table = stack.tables.get("particles")

    def column(name: str) -> torch.Tensor | None:
        if table is None or name not in table:
            return None
        return torch.tensor(table[name].to_numpy(float))

    examples, statistics = None, None
    if stack.pose is not None and stack.box == volume.box:
        examples = example_images(stack, volume)
        statistics = image_statistics(stack, volume)
    return {
        "pose": None if stack.pose is None else stack.pose[spread_rows(len(stack), POSES_SHOWN)],
        "ctf": stack.ctf,
        "confidence": column("rlnMaxValueProbDistribution"),
        "entropy": column("cryorbitEntropyNats"),
        "examples": examples,
        "statistics": statistics,
        "particles": summary(stack, facts),
    }


def summary(stack: ParticleStack, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Counts for the report's table."""
    rows: dict[str, Any] = {
        "file": stack.source,
        "particles": len(stack),
        "box": f"{stack.box} px",
        "pixel size": f"{stack.pixel_size_A:g} A",
    }
    if stack.optics_group is not None:
        rows["optics groups"] = len(stack.optics_group.unique())
    if stack.micrograph is not None:
        rows["micrographs"] = len(set(stack.micrograph.tolist()))
    if stack.half_set is not None:
        rows["half sets"] = f"{int((stack.half_set == 1).sum())} and {int((stack.half_set == 2).sum())}"
    if facts.get("image_visits"):
        rows["image visits"] = facts["image_visits"]
    return rows


def example_images(stack: ParticleStack, volume: Volume) -> Any:
    """Some images and what the map predicts for them."""
    from cryorbit.report.data import ExampleImages

    rows = spread_rows(len(stack), EXAMPLES)
    return ExampleImages(
        images=stack.images[rows],
        reprojections=predicted(stack, volume, rows),
        labels=stack.ids[rows].tolist(),
    )


def predicted(stack: ParticleStack, volume: Volume, rows: torch.Tensor) -> torch.Tensor:
    """The map projected at the poses of `rows`, with CTF and shift."""
    import torch

    from cryorbit.physics.formation import form_images
    from cryorbit.physics.project import prepare

    assert stack.pose is not None
    prepared = prepare(volume)
    images = []
    for some in rows.split(PREDICTED_AT_A_TIME):
        ctf = None if stack.ctf is None else stack.ctf[some]
        images.append(form_images(prepared, stack.pose[some], ctf, mode="fast"))
    return torch.cat(images)


def image_statistics(stack: ParticleStack, volume: Volume) -> Any:
    """Noise power outside the particle and predicted signal power, per shell, on an even sample of images."""
    import torch

    from cryorbit.analysis.masks import automatic_mask, particle_radius_A
    from cryorbit.errors import BadInput
    from cryorbit.physics import noise as noises
    from cryorbit.report.data import ImageStatistics

    try:
        radius_px = particle_radius_A(automatic_mask(volume)) / volume.pixel_size_A
        rows = spread_rows(len(stack), STATISTICS_FROM)
        noise = noises.noise_spectrum(stack.images[rows], radius_px=min(radius_px, 0.45 * stack.box))
    except BadInput:
        return None
    signal = predicted(stack, volume, rows)
    box = stack.box
    power = noises.shell_means(torch.fft.rfft2(signal).abs().square().mean(0), box)
    every = noises.spread_shells(noise.power, box) * noises.half_plane_multiplicity(box, noise.power)
    snr = signal.var(dim=(-2, -1), correction=0).mean() / (every.sum() / box**4)
    frequency = torch.arange(box // 2 + 1) / (box * stack.pixel_size_A)
    return ImageStatistics(frequency, noise.power / box**2, power / box**2, snr=float(snr))
