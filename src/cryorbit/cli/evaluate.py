"""`cryorbit evaluate DIR --truth truth.star --truth-map truth.mrc`: a run against its simulation's truth."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cryorbit.cli.config import Flat
from cryorbit.cli.fsc import finite
from cryorbit.cli.options import ComputeOptions, ConfigOptions, prepare

if TYPE_CHECKING:
    import torch

    from cryorbit.analysis.fsc import ShellCorrelation
    from cryorbit.analysis.pose_error import PoseErrors
    from cryorbit.data import ParticleStack, Volume

EVALUATION = "evaluation.json"
MAP_STARTS_FROM_POSES_BELOW = 1.0
"""Mean squared Frobenius error below which the poses' own gauge places the map; above, it is searched."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Poses and map of a run against the truth; writes DIR/evaluation.json."""

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Folder of an abinitio run."""
    truth: Annotated[Path, tyro.conf.arg(metavar="truth.star")]
    """Particles with their true poses."""
    truth_map: Annotated[Path | None, tyro.conf.arg(metavar="truth.mrc")] = None
    """The true map; without it only poses are judged."""
    symmetry: str | None = None
    """The particle's point group in the true map's frame; that of the run unless given."""
    oracle: bool = True
    """Also reconstruct with the true poses, for the best map that these images allow."""
    json: bool = False
    """Print JSON instead of a table."""
    compute: Annotated[ComputeOptions, Flat] = field(default_factory=ComputeOptions)
    configuration: Annotated[ConfigOptions, Flat] = field(default_factory=ConfigOptions)


def run(settings: Settings) -> int:
    """Evaluate and print."""
    from cryorbit.cli.run_folder import write_json

    device = prepare(settings.compute)
    numbers = finite(evaluate(settings, device=device))
    write_json(settings.run_dir / EVALUATION, numbers)
    if settings.json:
        print(json_format.dumps(numbers))
    else:
        assert isinstance(numbers, dict)
        for name, value in numbers.items():
            print(f"{name:28s} {value:.4g}" if isinstance(value, float) else f"{name:28s} {value}")
    return 0


def evaluate(settings: Settings, *, device: torch.device) -> dict[str, Any]:
    """All numbers of the evaluation.

    Raises
    ------
    BadFile, BadInput
        If a file is missing or lacks poses, or truth and run list different particles.
    """
    from cryorbit.analysis.pose_error import pose_errors
    from cryorbit.cli.diagnostics import evaluate_poses
    from cryorbit.cli.outputs import FSC, PARTICLES, read_fsc
    from cryorbit.cli.run_folder import RUN, read_json
    from cryorbit.io.particles import match_ids, read_particles, require_pose

    folder = settings.run_dir
    solved = read_particles(folder / PARTICLES)
    truth = read_particles(settings.truth, images="absent")
    found = require_pose(solved)
    true_pose = require_pose(truth)[match_ids(solved.ids, truth.ids)]
    symmetry = run_symmetry(folder) if settings.symmetry is None else settings.symmetry
    errors = pose_errors(found, true_pose, group=None if symmetry == "C1" else symmetry)
    facts = read_json(folder / RUN)
    half = read_fsc(folder / FSC).get("unmasked") if (folder / FSC).exists() else None
    numbers: dict[str, Any] = {
        **errors.summary(),
        **evaluate_poses(folder, solved, true_pose, errors, symmetry=symmetry),
        "converged": errors.mse < 0.1,
        "fsc0143_half_A": None if half is None else half.resolution_A(0.143),
        "seconds": facts.get("seconds"),
        "image_visits": facts.get("image_visits"),
        "particles": len(solved),
        "symmetry": symmetry,
        "verdict": facts.get("verdict"),
    }
    if settings.truth_map is not None:
        solved_truth = replace(solved, pose=true_pose)
        numbers |= map_numbers(settings, errors, solved_truth, symmetry, device=device)
    return numbers


def run_symmetry(folder: Path) -> str:
    """The point group that a run was given, C1 if it does not say."""
    import yaml

    try:
        values = yaml.safe_load((folder / "settings.yaml").read_text()) or {}
    except OSError:
        return "C1"
    return str(values.get("symmetry", "C1"))


def map_numbers(
    settings: Settings, errors: PoseErrors, true_stack: ParticleStack, symmetry: str, *, device: torch.device
) -> dict[str, Any]:
    """Fourier shell correlation of the run's map, and of the oracle's, with the true map."""
    from cryorbit.cli.diagnostics import mirror_of
    from cryorbit.cli.outputs import MAP, TRUTH_CURVE, write_fsc
    from cryorbit.io.mrc import read_map

    assert settings.truth_map is not None
    truth, found = read_map(settings.truth_map), read_map(settings.run_dir / MAP)
    aligned = place(found, truth, errors)
    curves = truth_curves(aligned, truth)
    write_fsc(settings.run_dir / TRUTH_CURVE, {"unmasked": curves[0], "masked": curves[1]})
    numbers = of_curve("truth", curves)
    mirror = mirror_of(found)
    if mirror is not None:
        numbers |= {"mirror_correlation": mirror.correlation, "mirror_agrees_to_A": mirror.agrees_to_A()}
    if settings.oracle:
        oracle = oracle_map(true_stack, symmetry, device=device)
        numbers |= of_curve("oracle", truth_curves(oracle, truth))
    return numbers


def place(moving: Volume, truth: Volume, errors: PoseErrors) -> Volume:
    """The run's map in the true frame and hand: by its poses' gauge if they are right, else by search."""
    from cryorbit.analysis.align import align_map, refine_alignment

    if errors.mse < MAP_STARTS_FROM_POSES_BELOW:
        alignment = refine_alignment(
            moving, truth, rotation=errors.gauge, shift_A=errors.map_shift_A, hand=errors.hand
        )
    else:
        alignment = align_map(moving, truth)
    return alignment.aligned


def truth_curves(volume: Volume, truth: Volume) -> tuple[ShellCorrelation, ShellCorrelation]:
    """FSC with the truth, without and with a soft mask made from the truth."""
    from cryorbit.analysis.fsc import fourier_shell_correlation
    from cryorbit.analysis.masks import automatic_mask

    return (
        fourier_shell_correlation(volume, truth),
        fourier_shell_correlation(volume, truth, mask=automatic_mask(truth)),
    )


def of_curve(name: str, curves: tuple[ShellCorrelation, ShellCorrelation]) -> dict[str, Any]:
    """The keys of one map: `fsc05_truth_A`, or `oracle_fsc05_truth_A`."""
    prefix = "" if name == "truth" else f"{name}_"
    plain, masked = curves
    return {
        f"{prefix}fsc05_truth_A": plain.resolution_A(0.5),
        f"{prefix}fsc05_truth_masked_A": masked.resolution_A(0.5),
        f"{prefix}fsc05_truth_nyquist_limited": plain.nyquist_limited(0.5),
    }


def oracle_map(stack: ParticleStack, symmetry: str, *, device: torch.device) -> Volume:
    """The map that the same images give with the poses they carry."""
    from cryorbit.inference.reconstruct import ReconstructSettings, reconstruct

    for progress in reconstruct(stack, ReconstructSettings(symmetry=symmetry), device=device):
        if progress.result is not None:
            return progress.result.map
    raise RuntimeError("the reconstruction ended without a result")
