"""How well, how surely and how fast one map is brought onto another: `python -m cryorbit.benchmarks.alignment`.

Synthetic molecules are chains of 400 beads that are drawn, not interpolated, in any position, so that the truth is
exact. Beside every result stand chance (a random rotation) and the oracle (the same refinement, begun at the truth).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.align import Mode, align_map, refine_alignment
from cryorbit.data import Volume
from cryorbit.geometry.rotations import geodesic_angle, random_rotations

PIXEL_SIZE_A = 3.0
_BEADS, _RADIUS_A, _BEAD_A = 400, 34.0, 5.0
RIGHT_WITHIN_DEG = 8.0
"""A result further off than this is a failure."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of pair of maps."""

    name: str
    box: int = 64
    noise: float = 0.0
    """Deviation of white noise in both maps, in deviations of the map."""
    missing: float = 0.0
    """Share of the moving molecule that is cut off, on one side of a plane."""
    mirror: bool = False
    still: bool = False
    """The moving molecule is where the reference is."""
    unrelated: bool = False
    """The moving molecule is another one."""
    moving_box: int | None = None
    moving_pixel_A: float = PIXEL_SIZE_A
    mode: Mode = "auto"


CASES = (
    Case(name="identity", still=True),
    Case(name="noise-free"),
    Case(name="noise-free, odd box", box=65),
    Case(name="noise-free, mirrored", mirror=True),
    Case(name="other box and voxel", moving_box=90, moving_pixel_A=2.2),
    Case(name="SNR 1", noise=1.0),
    Case(name="SNR 1, mirrored", noise=1.0, mirror=True),
    Case(name="noise of 3 deviations", noise=3.0),
    Case(name="30 % missing", missing=0.3),
    Case(name="30 % missing, SNR 1", missing=0.3, noise=1.0),
    Case(name="50 % missing", missing=0.5),
    Case(name="50 % missing, SNR 1, partial", missing=0.5, noise=1.0, mode="partial"),
    Case(name="70 % missing, full", missing=0.7, mode="full"),
    Case(name="70 % missing, partial", missing=0.7, mode="partial"),
    Case(name="unrelated", unrelated=True),
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One alignment, in the keys of `map align --json`, with its errors."""

    angle_deg: float
    hand: int
    verdict: str
    score: float
    score_other_hand: float | None
    z: float
    mode: str
    seconds: float
    cpu_seconds: float
    error_deg: float
    error_A: float
    hand_right: bool
    oracle_deg: float
    oracle_A: float
    chance_deg: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Pair:
    """Two maps and the motion x_moving = rotation @ x_reference + shift, mirrored afterwards if hand is -1."""

    moving: Volume
    reference: Volume
    rotation: Float[Tensor, "3 3"]
    shift_A: Float[Tensor, "3"]
    hand: int


def beads(generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """A chain of beads wound into a molecule of about 100 A, in angstrom from its middle."""
    at = torch.zeros(3, dtype=torch.float64)
    chain = []
    for step in torch.randn(_BEADS, 3, generator=generator, dtype=torch.float64) * 9.0:
        at = 0.965 * at + step
        chain.append(at)
    points = torch.stack(chain)
    points = points - points.mean(0)
    return points * (_RADIUS_A / points.square().sum(1).mean().sqrt())


def draw(points_A: Float[Tensor, "n 3"], *, box: int, pixel_size_A: float) -> Volume:
    """A Gaussian of 5 A at every bead, sampled exactly."""
    x = (torch.arange(box, dtype=torch.float64) - box // 2) * pixel_size_A
    g = torch.exp(-((x - points_A[..., None]) ** 2) / (2 * _BEAD_A**2))
    return Volume(torch.einsum("bz,by,bx->zyx", g[:, 2], g[:, 1], g[:, 0]).float(), pixel_size_A)


def make_pair(case: Case, seed: int) -> Pair:
    """The maps of a case and the truth."""
    generator = torch.Generator().manual_seed(seed)
    molecule = beads(generator)
    rotation = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    shift = 6.0 * torch.randn(3, generator=generator, dtype=torch.float64)
    if case.still:
        rotation, shift = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    shown = beads(generator) if case.unrelated else molecule
    if case.missing:
        along = shown @ torch.randn(3, generator=generator, dtype=torch.float64)
        shown = shown[along.argsort()[: round(len(shown) * (1 - case.missing))]]
    moved = shown @ rotation.T + shift
    if case.mirror:
        moved = moved * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    moving = draw(moved, box=case.moving_box or case.box, pixel_size_A=case.moving_pixel_A)
    reference = draw(molecule, box=case.box, pixel_size_A=PIXEL_SIZE_A)
    noisy = [_with_noise(v, case.noise, generator) for v in (moving, reference)]
    return Pair(
        moving=noisy[0],
        reference=noisy[1],
        rotation=rotation,
        shift_A=shift,
        hand=-1 if case.mirror else 1,
    )


def _with_noise(volume: Volume, deviations: float, generator: torch.Generator) -> Volume:
    if not deviations:
        return volume
    noise = torch.randn(volume.values.shape, generator=generator)
    return Volume(volume.values + deviations * volume.values.std() * noise, volume.pixel_size_A)


def degrees_between(a: Float[Tensor, "3 3"], b: Float[Tensor, "3 3"]) -> float:
    """Angle of the rotation from one to the other."""
    return math.degrees(float(geodesic_angle(a.double(), b.double())))


def run_trial(pair: Pair, *, mode: Mode, seed: int) -> Trial:
    """Align one pair; the clock runs over the whole of `align_map`."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = align_map(pair.moving, pair.reference, mode=mode)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    oracle = refine_alignment(
        pair.moving, pair.reference, rotation=pair.rotation, shift_A=pair.shift_A, hand=pair.hand
    )
    chance = random_rotations(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[0]
    one = torch.eye(3, dtype=torch.float64)
    return Trial(
        angle_deg=degrees_between(found.rotation, one),
        hand=found.hand,
        verdict=found.hand_verdict,
        score=found.score,
        score_other_hand=found.scores.get(-found.hand),
        z=found.significance,
        mode=found.mode,
        seconds=wall,
        cpu_seconds=cpu,
        error_deg=degrees_between(found.rotation, pair.rotation),
        error_A=float((found.shift_A - pair.shift_A).norm()),
        hand_right=found.hand == pair.hand,
        oracle_deg=degrees_between(oracle.rotation, pair.rotation),
        oracle_A=float((oracle.shift_A - pair.shift_A).norm()),
        chance_deg=degrees_between(chance, pair.rotation),
    )


def summary(name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """One line of the table: medians, extremes, successes."""

    def median(of: Callable[[Trial], float]) -> float:
        return float(torch.tensor([of(t) for t in trials], dtype=torch.float64).median())

    gaps = [t.score - t.score_other_hand for t in trials if t.score_other_hand is not None]
    right = sum(t.error_deg < RIGHT_WITHIN_DEG and t.hand_right for t in trials)
    return {
        "case": name,
        "median_deg": median(lambda t: t.error_deg),
        "max_deg": max(t.error_deg for t in trials),
        "median_A": median(lambda t: t.error_A),
        "right": f"{right}/{len(trials)}",
        "hand": f"{sum(t.hand_right for t in trials)}/{len(trials)}",
        "undetermined": sum(t.verdict == "undetermined" for t in trials),
        "least_gap": min(gaps, default=math.nan),
        "z": f"{min(t.z for t in trials):.1f}..{max(t.z for t in trials):.1f}",
        "oracle_deg": median(lambda t: t.oracle_deg),
        "chance_deg": median(lambda t: t.chance_deg),
        "seconds": median(lambda t: t.seconds),
        "cpu_s": median(lambda t: t.cpu_seconds),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, one line each."""
    names = list(rows[0])
    text = [[f"{row[n]:.3g}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in rows]
    widths = [max(len(n), *(len(line[i]) for line in text)) for i, n in enumerate(names)]
    lines = [names, *text]
    return "\n".join("  ".join(w.ljust(widths[i]) for i, w in enumerate(line)).rstrip() for line in lines)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Score map alignment on synthetic molecules and, where the reference data are, on given maps."""

    cases: tuple[str, ...] = ()
    """Names of cases, or parts of names; all unless given."""
    trials: int = 6
    """Molecules per case."""
    data: Path | None = None
    """Folder with maps/ and structures/ of the reference data."""
    threads: int = 1
    """CPU threads."""
    json: bool = False
    """Print one JSON row per alignment before the table."""


def run(settings: Settings) -> list[dict[str, Any]]:
    """All cases; the table's rows."""
    from cryorbit.benchmarks.alignment_given import given_cases

    torch.set_num_threads(settings.threads)
    warm = make_pair(CASES[0], 99).reference
    align_map(warm, warm, hand="same")  # libraries warm up outside the clock
    rows = []
    wanted = [c for c in CASES if not settings.cases or any(part in c.name for part in settings.cases)]
    for case in wanted:
        count = 2 if case.still else settings.trials
        trials = [run_trial(make_pair(case, seed), mode=case.mode, seed=seed) for seed in range(count)]
        if case.unrelated:
            trials = [replace(t, error_deg=math.nan, error_A=math.nan, oracle_deg=math.nan) for t in trials]
        rows.append(_reported(settings, case.name, trials))
    if settings.data is not None:
        for name, trials in given_cases(settings.data, trials=settings.trials):
            rows.append(_reported(settings, name, trials))
    return rows


def _reported(settings: Settings, name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    if settings.json:
        for trial in trials:
            print(json.dumps({"case": name, **asdict(trial)}), flush=True)
    return summary(name, trials)


def main() -> None:
    """Command line."""
    import tyro

    print(table(run(tyro.cli(Settings))))


if __name__ == "__main__":
    main()
