"""Is the gold standard real? Refinement of images that hold nothing but noise, against a map that they never saw.

    python -m cryorbit.benchmarks.gold_standard [--seeds 5] [--images 1000] [--box 64] [--json OUT.json]

Both halves start from the same low-passed map, so poses follow it and the half maps agree as far as it reaches. Beyond,
two halves that never meet are independent: their correlation in a shell of n coefficients has standard deviation
1 / sqrt(n), and |FSC| < 3 / sqrt(n) is looked for in every shell. Of 110 shells one exceeds that by chance in one try
out of four, on either side, while a leak makes halves agree: what passes or is caught is the highest, not the largest.
That n counts coefficients as if all were equally noisy; where views are uneven they are not, and fewer count. The chance
row says by how much: other noise, which nothing was ever fitted to, at the poses that the refinement found. The last
row of each seed refines both halves against one map of all images, as the mistake would be, and must be caught.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.data import ParticleStack, Volume
from cryorbit.data.particles import MemoryImages
from cryorbit.fourier.shells import shell_count
from cryorbit.inference.engine import workers
from cryorbit.inference.half_maps import HalfMaps
from cryorbit.inference.reconstruct import ReconstructSettings, reconstruct
from cryorbit.inference.refinement import RefinementResult, result_of
from cryorbit.inference.refinement_rounds import RefinementRounds
from cryorbit.inference.refinement_settings import RefinementSettings
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.scatter import atoms_to_density

PIXEL_A, START_A = 4.0, 40.0
EDGE_SHELLS = 3
"""Shells beyond the low-pass that its soft edge and the mask of the reference still reach."""
LIMIT = 3.0
DRAWS = 6
"""Sets of other noise that tell chance."""


@dataclass(frozen=True)
class Independence:
    """Correlation of two half maps beyond the start, in standard deviations of chance."""

    shells: int
    largest: float
    """Of the absolute values."""
    highest: float
    root_mean_square: float


def independence(first: Volume, second: Volume, *, start_A: float) -> Independence:
    """FSC times sqrt(n) beyond `start_A`, up to the last shell before Nyquist's."""
    curve = fourier_shell_correlation(first, second).correlation
    deviations = curve * shell_count(first.box, ndim=3)[: len(curve)].sqrt()
    begin = round(first.box * first.pixel_size_A / start_A) + EDGE_SHELLS
    beyond = deviations[begin : (first.box - 1) // 2]
    return Independence(
        len(beyond), float(beyond.abs().max()), float(beyond.max()), float(beyond.square().mean().sqrt())
    )


class Leaking(RefinementRounds):
    """The mistake: images of both halves are refined against one map of all, to where it agrees with itself."""

    def _solve(self, raw0: Tensor, raw1: Tensor, reach: int) -> HalfMaps:
        both = 0.5 * (raw0 + raw1)
        return super()._solve(both, both, reach)

    def last_maps(self, state: dict[str, Any]) -> HalfMaps:
        """The half maps as ever: what went before shows in them."""
        return super()._solve(state["raw0"], state["raw1"], self.plan.last_shell)


def refined(
    rounds: type[RefinementRounds], stack: ParticleStack, reference: Volume, settings: RefinementSettings
) -> RefinementResult:
    """What a refinement of this kind ends with."""
    state: dict[str, Any] = {}
    with workers(settings.threads or torch.get_num_threads()) as team:
        run = rounds(stack, settings, reference, team)
        for _ in run.go(state):
            pass
        return result_of(run, state)


def chance(found: RefinementResult, *, seed: int) -> float:
    """Root mean square of FSC times sqrt(n) beyond the start, of other noise at the poses that were found."""
    squares = []
    for draw in range(DRAWS):
        other = noise_stack(len(found.stack), found.stack.box, seed=100_000 * (seed + 1) + draw)
        posed = replace(other, pose=found.pose, half_set=found.half_set)
        *_, last = reconstruct(posed, ReconstructSettings(contrast="light"))
        squares.append(independence(*last.result.half_maps, start_A=START_A).root_mean_square ** 2)
    return float(torch.tensor(squares).mean().sqrt())


def noise_stack(images: int, box: int, *, seed: int) -> ParticleStack:
    """White noise, no CTF."""
    g = torch.Generator().manual_seed(seed)
    return ParticleStack(
        images=MemoryImages(torch.randn(images, box, box, generator=g)),
        pixel_size_A=PIXEL_A,
        ids=np.array([str(i) for i in range(images)]),
        source=f"noise, seed {seed}",
    )


def main() -> int:
    """Print the table; exit code 1 if a right refinement fails the test or a wrong one passes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    columns = ("max |FSC| sqrt n", "max FSC sqrt n", "rms", "max / rms of chance")
    print(f"{'seed':>4s} {'halves':24s} {'shells':>6s}" + "".join(f" {name:>19s}" for name in columns))
    rows, right = [], 0
    for seed in range(given.seeds):
        reference = start_map(given.box, seed=seed)
        stack = noise_stack(given.images, given.box, seed=1000 + seed)
        settings = RefinementSettings(
            rounds=given.rounds,
            start_resolution_A=START_A,
            particle_diameter_A=0.7 * given.box * PIXEL_A,
            threads=given.threads,
            contrast="light",
            search=True,
            start_snr=0.1,
        )
        unit = 1.0
        for name, kind in (("never meet", RefinementRounds), ("share a reference", Leaking)):
            result = refined(kind, stack, reference, settings)
            if kind is RefinementRounds:
                unit = chance(result, seed=seed)
                print(f"{seed:4d} {'other noise (chance)':24s} {'':46s} {unit:19.2f}")
            found = independence(*result.half_maps, start_A=START_A)
            independent = found.highest / unit < LIMIT
            right += independent == (kind is RefinementRounds)
            numbers = (found.largest, found.highest, found.root_mean_square, found.highest / unit)
            print(
                f"{seed:4d} {name:24s} {found.shells:6d}"
                + "".join(f" {value:19.2f}" for value in numbers)
                + ("  independent" if independent else "  CAUGHT"),
                flush=True,
            )
            row = {"seed": seed, "halves": name, **vars(found), "chance": unit, "independent": independent}
            rows.append(row)
    print(f"{right} of {2 * given.seeds} as they must be")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if right == 2 * given.seeds else 1


def start_map(box: int, *, seed: int) -> Volume:
    """A molecule for the noise to be taken for."""
    atoms = synthetic_complex(generator=torch.Generator().manual_seed(seed))
    return atoms_to_density(atoms, box=box, pixel_size_A=PIXEL_A)


if __name__ == "__main__":
    raise SystemExit(main())
