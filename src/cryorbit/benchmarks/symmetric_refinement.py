"""Is symmetry worth its order in images? A symmetric phantom refined with its group from 1/|G| of the images.

    python -m cryorbit.benchmarks.symmetric_refinement [--group D7 O] [--images 2800] [--json OUT.json]

Every image of a particle with |G| equal parts is |G| views of one part, so N / |G| images refined with the group should give
the map and the poses that N images give without it. Both start from the same wrong poses (a few degrees, a pixel or two).
The oracle row is the map of the N / |G| images at their true poses, symmetrised; the chance row has random poses.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cryorbit.analysis.align import refine_alignment
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.masks import automatic_mask
from cryorbit.analysis.pose_error import PoseErrors, pose_errors
from cryorbit.data import Atoms, Pose, Volume
from cryorbit.geometry.rotations import random_rotations, rotvec_to_matrix
from cryorbit.geometry.symmetry import point_group
from cryorbit.inference.reconstruct import ReconstructSettings, reconstruct
from cryorbit.inference.refinement import run_refinement
from cryorbit.inference.refinement_settings import RefinementSettings
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.scatter import atoms_to_density
from cryorbit.physics.simulate import SimulationSettings, simulate

BOX, PIXEL_A, SNR = 64, 4.0, 0.1
TURN_DEG, SHIFT_PX = 4.0, 1.0
SHELLS = 1.0
"""The group's map may end this many shells before that of all images."""


def phantom(group: str, *, seed: int) -> Atoms:
    """A compact part off every axis, and its copies."""
    whole = synthetic_complex(generator=torch.Generator().manual_seed(seed))
    centre = whole.position_A.mean(0)
    elements = point_group(group)
    nearest = (whole.position_A - centre).norm(dim=1).argsort()[: 24_000 // len(elements)]
    part = whole.position_A[nearest] - centre
    size = float(part.norm(dim=1).quantile(0.9))
    away = torch.nn.functional.normalize(torch.tensor([0.83, 0.25, 0.5], dtype=part.dtype), dim=0)
    position = part + away * max(1.1 * size, 100.0 - 1.6 * size)
    copies = torch.cat([position @ g.to(position).T for g in elements])
    n = len(elements)
    return Atoms(
        copies,
        whole.atomic_number[nearest].repeat(n),
        whole.b_factor_A2[nearest].repeat(n),
        whole.occupancy[nearest].repeat(n),
    )


def rows_of(group: str, images: int, *, seed: int, threads: int) -> list[dict[str, Any]]:
    """Both refinements, the oracle and chance."""
    atoms, elements = phantom(group, seed=seed), point_group(group)
    settings = SimulationSettings(
        n_particles=images, box=BOX, pixel_size_A=PIXEL_A, snr=SNR, shift_sd_A=8.0, seed=seed
    )
    simulated = simulate(atoms, settings)
    truth = atoms_to_density(atoms, box=BOX, pixel_size_A=PIXEL_A, b_factor_A2=settings.b_factor_A2)
    few = images // len(elements)
    rows = []
    for name, count, symmetry in ((f"all {images}, C1", images, "C1"), (f"{few}, {group}", few, group)):
        stack, pose = simulated.stack.select(torch.arange(count)), simulated.truth[torch.arange(count)]
        start = replace(stack, pose=_wrong(pose, seed=seed), half_set=None)
        *_, last = run_refinement(
            start, RefinementSettings(symmetry=symmetry, threads=threads, contrast="light")
        )
        errors = pose_errors(last.result.pose, pose, group=elements)
        first, second = last.result.half_maps
        found = Volume(0.5 * (first.values + second.values), PIXEL_A)
        rows.append(
            {
                "images": name,
                "medse": errors.medse_refined,
                "fsc05_truth_A": _against(found, truth, errors),
                "fsc0143_half_A": last.result.curve.resolution_A(0.143),
            }
        )
    pose = simulated.truth[torch.arange(few)]
    posed = replace(simulated.stack.select(torch.arange(few)), pose=pose)
    *_, last = reconstruct(posed, ReconstructSettings(symmetry=group, contrast="light"))
    curve = fourier_shell_correlation(last.result.map, truth, mask=automatic_mask(truth))
    oracle = {"medse": 0.0, "fsc05_truth_A": curve.resolution_A(0.5)}
    rows.append({"images": f"{few}, {group}, true poses (oracle)", **oracle})
    random = random_rotations(few, generator=torch.Generator().manual_seed(7919 + seed))
    chance = pose_errors(Pose(random, torch.zeros(few, 2)), pose, group=elements)
    rows.append({"images": "random poses (chance)", "medse": chance.medse, "fsc05_truth_A": None})
    return [{"group": group, "seed": seed, **row} for row in rows]


def _wrong(pose: Pose, *, seed: int) -> Pose:
    g = torch.Generator().manual_seed(100 + seed)
    turn = rotvec_to_matrix(torch.randn(len(pose), 3, generator=g) * (TURN_DEG * torch.pi / 180 / 3**0.5))
    shift = SHIFT_PX * PIXEL_A * torch.randn(len(pose), 2, generator=g)
    return Pose(turn.to(pose.rotation) @ pose.rotation, pose.shift_A + shift.to(pose.shift_A))


def _against(found: Volume, truth: Volume, errors: PoseErrors) -> float:
    """Resolution at FSC 0.5 with the true map, aligned, inside its mask."""
    aligned = refine_alignment(
        found, truth, rotation=errors.gauge, shift_A=errors.map_shift_A, hand=errors.hand
    ).aligned
    return fourier_shell_correlation(aligned, truth, mask=automatic_mask(truth)).resolution_A(0.5)


def main() -> int:
    """Print the table; exit code 1 if a group does not reach the result of all images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--group", nargs="+", default=["D7", "O"])
    parser.add_argument("--images", type=int, default=2800)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    every: list[dict[str, Any]] = []
    missed = 0
    print(
        f"{'group':6s} {'seed':>4s}  {'images':34s} {'MedSE':>10s} {'FSC 0.5 truth, A':>17s} {'half maps, A':>13s}"
    )
    for group in given.group:
        for seed in range(given.seeds):
            rows = rows_of(group, given.images, seed=seed, threads=given.threads)
            every += rows
            for row in rows:
                print(
                    f"{group:6s} {seed:4d}  {row['images']:34s} {row['medse']:10.3g} "
                    f"{_cell(row['fsc05_truth_A']):>17s} {_cell(row.get('fsc0143_half_A')):>13s}",
                    flush=True,
                )
            whole, part = rows[0]["fsc05_truth_A"], rows[1]["fsc05_truth_A"]
            shells = (1 / whole - 1 / part) * BOX * PIXEL_A
            missed += shells > SHELLS
            said = "met" if shells <= SHELLS else "MISSED"
            print(f"{group} ends {shells:+.1f} shells before C1 of all images, wanted {SHELLS:g}: {said}")
    if given.json:
        given.json.write_text(json.dumps(every, indent=1) + "\n")
    return 1 if missed else 0


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
