"""Tri-planes: a map fitted, projected along rays and by slices; samples of priors beside training maps and chance.

    python -m cryorbit.benchmarks.triplanes [--proteins 3] [--box 32] [--json OUT.json]
    python -m cryorbit.benchmarks.triplanes --prior A/prior.safetensors B/prior.safetensors [--training 200] [--samples 12]

The first form is bench P7: per protein, box and resolution the Pearson correlation of the fitted map and how far rays are
from slices. The second one draws maps of priors, voxels of 3 A at 6 A, and sets them beside maps held back, by their scores
and by how near the nearest training map is. All maps stand along the principal axes of their atoms: `prior train --kind
triplanes --proteins 200`, or `--kind volumes --principal-axes --voxel-size-A 3 3 --map-resolution-A 6 6 --shift-A 0`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.density_scores import score_density
from cryorbit.data import Pose, Volume
from cryorbit.fourier.resample import fourier_resample
from cryorbit.fourier.shells import shell_mean
from cryorbit.geometry.rotations import random_rotations
from cryorbit.inference.prior_recipe import HELD_BACK, PriorRecipe, procedural_lengths
from cryorbit.inference.prior_samples import MAPS, sample_maps, sample_triplanes
from cryorbit.inference.triplane_fit import FittedTriplanes, fit_triplanes
from cryorbit.inference.triplane_training import upright
from cryorbit.io.weights import load_weights
from cryorbit.models.triplane import resample_planes
from cryorbit.models.triplane_prior import TriplanePrior
from cryorbit.models.triplane_render import line_integrals, project_triplanes
from cryorbit.models.volume_prior import VolumePrior
from cryorbit.physics.atom_density import density_of_atoms
from cryorbit.physics.procedural_protein import procedural_protein

VOXEL_A, RESOLUTION_A = 3.0, 6.0
RESOLUTIONS_A = (6.0, 9.0)
"""Of fitted maps: two voxels, the finest there can be, and three."""
VIEWS = 8
Row = dict[str, Any]


def main() -> int:
    """Print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proteins", type=int, default=3)
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--prior", type=Path, nargs="+")
    parser.add_argument("--training", type=int, default=200)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.prior:
        rows = list(sample_rows(given.prior, given.training, given.samples, given.steps))
    else:
        rows = list(fit_rows(given.proteins, given.box))
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def held_back_maps(count: int, *, box: int, resolution_A: float) -> list[Volume]:
    """Upright maps of procedural proteins that nothing is trained on."""
    lengths = procedural_lengths(count, PriorRecipe().lengths)
    return [_map(n, HELD_BACK + i, box, resolution_A) for i, n in enumerate(lengths)]


def _map(residues: int, seed: int, box: int, resolution_A: float) -> Volume:
    atoms = upright(procedural_protein(residues, seed))
    found = density_of_atoms(atoms, box=box, pixel_size_A=VOXEL_A, resolution_A=resolution_A)
    return Volume(found.values.float(), VOXEL_A)


def fit_rows(proteins: int, box: int) -> Iterator[Row]:
    """Bench P7, odd and even boxes."""
    turn = random_rotations(VIEWS, generator=torch.Generator().manual_seed(1)).float()
    pose = Pose(turn, torch.zeros(VIEWS, 2))
    for n in (box, box - 1):
        for resolution in RESOLUTIONS_A:
            for i, volume in enumerate(held_back_maps(proteins, box=n, resolution_A=resolution)):
                start = time.perf_counter()
                fitted = fit_triplanes(volume, generator=torch.Generator().manual_seed(0))
                seconds = time.perf_counter() - start
                with torch.no_grad():
                    start = time.perf_counter()
                    rays = line_integrals(fitted.decoder, fitted.planes, turn)
                    middle = time.perf_counter()
                    slices = project_triplanes(fitted.decoder, fitted.planes, pose, pixel_size_A=VOXEL_A)
                    end = time.perf_counter()
                    finer = _finely(fitted, pose)
                yield {
                    "protein": i,
                    "box": n,
                    "resolution_A": resolution,
                    "fit_s": seconds,
                    "pearson": _pearson(fitted.volume().values[None], volume.values[None]).item(),
                    "ray_vs_slice": _relative(rays, slices),
                    "on_finer_grid": finer,
                    "below_3/4_nyquist": _relative(
                        *(fourier_resample(x, 3 * n // 4, ndim=2) for x in (rays, slices))
                    ),
                    "ray_s": middle - start,
                    "slice_s": end - middle,
                }


def _finely(fitted: FittedTriplanes, pose: Pose) -> float:
    """How far rays are from slices where both have pixels of half the size, and neither aliases nor cuts; of two views."""
    box, decoder = 2 * fitted.planes.shape[-1], fitted.decoder
    planes, few = resample_planes(fitted.planes, box), Pose(pose.rotation[:2], pose.shift_A[:2])
    rays = line_integrals(decoder, planes, few.rotation)
    return _relative(rays, project_triplanes(decoder, planes, few, pixel_size_A=VOXEL_A / 2))


def sample_rows(priors: list[Path], training: int, samples: int, steps: int) -> Iterator[Row]:
    """Maps held back, a Gaussian of the training maps' mean and spectrum (chance), and samples of each prior."""
    lengths = procedural_lengths(training, PriorRecipe().lengths)
    seen = torch.stack([_map(n, i, 32, RESOLUTION_A).values for i, n in enumerate(lengths)])
    held = torch.stack([v.values for v in held_back_maps(16, box=32, resolution_A=RESOLUTION_A)])
    yield _row("held back", held, seen)
    yield _row("chance", _gaussian(seen, samples), seen)
    for path in priors:
        tensors, card = load_weights(path)
        how, start = replace(MAPS, steps=steps), time.perf_counter()
        if card["kind"] == "triplanes":
            prior = TriplanePrior.from_state(tensors, card)
            found = sample_triplanes(prior, count=samples, settings=how)
            with torch.no_grad():
                through = torch.cat([prior.to_density(prior.to_latent(m[None])) for m in held])
            yield _row("held back through planes", through, seen)
        else:
            found = sample_maps(
                VolumePrior.from_state(tensors, card),
                count=samples,
                voxel_size_A=VOXEL_A,
                resolution_A=RESOLUTION_A,
                settings=how,
            )
        drawn = torch.stack([v.values for v in found])
        yield _row(str(path), drawn, seen) | {"seconds": time.perf_counter() - start}


def _row(name: str, maps: Float[Tensor, "s n n n"], seen: Float[Tensor, "t n n n"]) -> Row:
    """Medians and means over the maps; "nearest": correlation with the nearest training map, "alike": with one another."""
    scores = pd.DataFrame([asdict(score_density(Volume(m, VOXEL_A))) for m in maps])
    nearest = torch.stack([_pearson(m[None], seen).max() for m in maps])
    among = torch.stack([_pearson(m[None], maps) for m in maps])
    apart = among[~torch.eye(len(maps), dtype=torch.bool)]
    decibel = 10 * (_power(maps) / _power(seen)).log10()[1:]
    return {
        "maps": name,
        "residues": scores.residues.median(),
        "rg_ratio": scores.rg_ratio.median(),
        "largest_piece": scores.largest_piece.mean(),
        "negative": scores.negative.mean(),
        "nearest": nearest.mean().item(),
        "nearest_max": nearest.max().item(),
        "alike": apart.mean().item(),
        "power_dB_rms": decibel.square().mean().sqrt().item(),
        "power_dB_fine": decibel[len(decibel) // 2 :].mean().item(),
    }


def _gaussian(seen: Float[Tensor, "t n n n"], count: int) -> Float[Tensor, "s n n n"]:
    """Random maps with the mean of the training maps, and the power of their deviations from it, term by term."""
    dims, box = (1, 2, 3), seen.shape[-1]
    mean = seen.mean(0)
    size = torch.fft.rfftn(seen - mean, dim=dims, norm="ortho").abs().square().mean(0).sqrt()
    white = torch.randn(count, box, box, box, generator=torch.Generator().manual_seed(0))
    return mean + torch.fft.irfftn(torch.fft.rfftn(white, dim=dims) * size, s=(box,) * 3, dim=dims)


def _power(maps: Float[Tensor, "s n n n"]) -> Float[Tensor, "shells"]:
    power = torch.fft.rfftn(maps, dim=(1, 2, 3)).abs().square().mean(0)
    return shell_mean(power, n=maps.shape[-1], ndim=3)


def _pearson(a: Float[Tensor, "s n n n"], b: Float[Tensor, "t n n n"]) -> Float[Tensor, "t"]:
    """Of one map, or of each, with each of the others."""
    one, other = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


if __name__ == "__main__":
    raise SystemExit(main())
