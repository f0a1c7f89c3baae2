"""The files of `cryorbit prior reconstruct`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from cryorbit.cli.outputs import FSC, REPORT, resolution_or_none, write_fsc
from cryorbit.cli.run_folder import command_line

if TYPE_CHECKING:
    from cryorbit.cli.prior_reconstruct import Settings
    from cryorbit.cli.run_folder import RunFolder
    from cryorbit.inference.half_posteriors import PriorReconstruction

SAMPLES = "samples"
FSC_POSTERIOR = "fsc_posterior.star"
MAPS = (
    "posterior.mrc",
    "spread.mrc",
    "data_only.mrc",
    "prior_only.mrc",
    "disagreement.mrc",
    "posterior_half1.mrc",
    "posterior_half2.mrc",
    "data_half1.mrc",
    "data_half2.mrc",
)
OUTPUTS = (*MAPS, SAMPLES, FSC, FSC_POSTERIOR, REPORT)


def write_reconstruction(folder: RunFolder, result: PriorReconstruction, settings: Settings) -> None:
    """Maps, samples, curves, numbers and report of a finished run."""
    from cryorbit.cli.config import flatten
    from cryorbit.cli.progress import say
    from cryorbit.cli.report import versions
    from cryorbit.io.atomic import atomic_folder
    from cryorbit.io.mrc import write_map
    from cryorbit.report.prior_report import PriorReading, strong_share, verdict, write_prior_report

    path = folder.path
    values = (
        result.mean,
        result.spread,
        result.data_only,
        result.prior_only,
        result.disagreement,
        *result.halves,
        *result.data_halves,
    )
    for name, map_values in zip(MAPS, values, strict=True):
        write_map(path / name, result.volume(map_values))
    with atomic_folder(path / SAMPLES) as samples:
        for number, sample in enumerate(result.samples, start=1):
            write_map(samples / f"sample_{number:03d}.mrc", result.volume(sample))
    write_fsc(path / FSC, {"unmasked": result.data_curve})
    write_fsc(path / FSC_POSTERIOR, {"unmasked": result.posterior_curve})
    level, words = verdict(result)
    folder.record(
        verdict=words,
        verdict_level=level,
        particles=result.images,
        resolution_0143_A=resolution_or_none(result.data_curve, 0.143),
        cutoff_A=result.cutoff_A,
        box=result.grid.box,
        voxel_size_A=result.grid.voxel_size_A,
        prior_resolution_A=result.grid.resolution_A,
        gain=result.gain,
        gain_of_posterior=result.gain_of_posterior,
        prior_error=result.prior_error,
        chi_square=result.chi_square,
        misfit_error=result.misfit_error,
        strong_disagreement=strong_share(result),
        network_passes=result.network_passes,
    )
    assert settings.particles is not None  # refused before the run
    reading = PriorReading(
        result=result,
        source=Path(settings.particles).name,
        prior="shipped" if settings.prior is None else str(settings.prior),
        method=settings.inference.method,
        beyond_data=settings.sampling.beyond_data,
        seconds=folder.seconds,
        command=command_line(),
        date=time.strftime("%Y-%m-%d %H:%M:%S"),
        settings=flatten(settings),
        versions=versions(),
    )
    write_prior_report(path / REPORT, reading)
    cut = (
        "not cut off"
        if result.cutoff_A is None
        else f"cut off at {result.cutoff_A:.1f} A, where the data end"
    )
    say(f"{path}: posterior.mrc, {result.grid.box} voxels of {result.grid.voxel_size_A:.3g} A, {cut}")
    say(words)
