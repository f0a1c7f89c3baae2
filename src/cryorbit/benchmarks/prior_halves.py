"""The prior benchmark, half maps: what the posterior of two noisy half maps gains over their mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.benchmarks.prior_maps import map_scores
from cryorbit.benchmarks.prior_methods import ORACLE, Outcome, SamplerPlan, sampled
from cryorbit.benchmarks.prior_proteins import MapGrid, Protein
from cryorbit.benchmarks.prior_table import average, bar
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid
from cryorbit.fourier.shells import shell_mean, spread_shells
from cryorbit.inference.collapse import collapse
from cryorbit.inference.posterior_baselines import oracle_tuned, total_variation, wiener
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.models.volume_prior import VolumePrior
from cryorbit.physics.simulate import simulate
from cryorbit.physics.stack_plan import SimulationSettings

Row = dict[str, Any]

TASK = "halves"
MEAN, TV, OURS = "mean of the half maps", "tv" + ORACLE, "diffpir-spectrum"
GOOD_AREA = 0.45
"""FSC area of the mean of the half maps from which on data are good: perfect is 0.5."""
LOSS = 0.002
"""What counts as no loss there."""


@dataclass(frozen=True, kw_only=True)
class HalvesTask:
    """Pairs of half maps."""

    pairs: int = 5
    """Proteins, the first ones."""
    images_of_pair: tuple[int, ...] = (50, 200, 800, 3200)
    """Images that both halves are made of, with CTF."""
    pair_snr: float = 0.1
    """Their SNR; 10 makes of 3,200 images what 320,000 make at 0.1."""

    def __post_init__(self) -> None:
        if self.pairs < 1 or min((*self.images_of_pair, 2)) < 2 or not self.pair_snr > 0:
            raise BadInput(
                f"--pairs {self.pairs} --images-of-pair {self.images_of_pair} --pair-snr {self.pair_snr:g}: wanted 1 and 2 "
                "or more, and an SNR above 0."
            )


@dataclass(frozen=True, eq=False)
class HalvesCell:
    """One pair."""

    protein: Protein
    grid: MapGrid
    images: int
    snr: float = 0.1

    def key(self, method: str, prior: str) -> Row:
        """The fields that tell its rows apart."""
        about = {"task": TASK, "protein": self.protein.name, "views": self.images, "snr": self.snr, "seed": 0}
        return {**about, "method": method, "prior": prior if method == OURS else ""}

    def rows(self, prior: VolumePrior, name: str, plan: SamplerPlan) -> Iterator[Row]:
        """The mean of the half maps, total variation at its best, and the posterior's mean."""
        truth = self.grid.map_of(self.protein.atoms)
        first, second = half_maps(truth, self.grid.voxel_size_A, images=self.images, snr=self.snr)
        data = of_half_maps(first, second, self.grid.voxel_size_A)
        tuned = oracle_tuned(total_variation, data, truth, strengths=(1e-3, 1e-2, 1e-1, 1.0))
        for method, outcome in (
            (MEAN, Outcome((first + second) / 2, None, 0.0, 0)),
            (TV, Outcome(tuned.map, None, 0.0, 0, {"strength": tuned.strength})),
            (OURS, sampled(prior, data, self.grid, OURS, plan.settings(OURS, 0))),
        ):
            yield {
                **self.key(method, name),
                **map_scores(outcome, truth),
                "seconds": round(outcome.seconds, 1),
                "network_passes": outcome.network_passes,
                **outcome.about,
            }


def half_maps(
    truth: Float[Tensor, "n n n"], voxel_size_A: float, *, images: int, snr: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Least squares maps of two halves of simulated images with CTF and known poses."""
    n = truth.shape[0]
    made = simulate(
        Volume(truth, voxel_size_A),
        SimulationSettings(
            n_particles=images, box=n, pixel_size_A=voxel_size_A, snr=snr, shift_sd_A=0.0, seed=seed
        ),
    )
    power = torch.full((n // 2 + 1,), n**2 * made.sigma**2)
    parts = [collapse(made.with_truth(), power, rows=torch.arange(h, images, 2)) for h in (0, 1)]
    first, second = (wiener(part, 1e-3) for part in parts)
    return first, second


def of_half_maps(
    first: Float[Tensor, "n n n"], second: Float[Tensor, "n n n"], voxel_size_A: float
) -> TwoVolumes:
    """The likelihood of two half maps: their mean, with the noise that their difference shows shell by shell.

    Nothing is known beyond Nyquist's sphere, where reconstructions are empty.
    """
    n, dims = first.shape[-1], (-3, -2, -1)
    mean, difference = (
        (torch.fft.rfftn(v, dim=dims, norm="ortho")) / 2 for v in (first + second, first - second)
    )
    noise = shell_mean(difference.abs().square().double(), n=n, ndim=3)
    noise[:2] = noise[2]
    weight = spread_shells(1 / noise.clamp_min(1e-12 * float(noise.max())), n=n, ndim=3)
    weight = torch.where(radius_grid(n, ndim=3) < n / 2, weight, 0.0).to(first)
    back = torch.fft.irfftn(weight * mean, s=(n,) * 3, dim=dims, norm="ortho")
    energy = float((back.double() * ((first + second) / 2).double()).sum())
    inside = radius_grid(n, ndim=3, layout="centred") < n / 2
    return TwoVolumes(back, weight, None, energy, float(inside.sum()), voxel_size_A)


def halves_cells(proteins: Sequence[Protein], task: HalvesTask, grid: MapGrid) -> list[HalvesCell]:
    """All pairs."""
    return [
        HalvesCell(p, grid, n, task.pair_snr) for p in proteins[: task.pairs] for n in task.images_of_pair
    ]


def halves_table(rows: Sequence[Row]) -> str:
    """Mean FSC areas by number of images and SNR, and what is gained over the mean of the half maps."""
    rows = [r for r in rows if r["task"] == TASK]
    if not rows:
        return ""
    lines = [
        f"{'half maps of':23s} {'method':26s} {'pairs':>5s} {'fsc area':>9s} {'gain':>7s} {'pearson':>8s} {'seconds':>8s}"
    ]
    for n, snr in sorted({(r["views"], r["snr"]) for r in rows}, key=lambda made: made[0] * made[1]):
        here = [r for r in rows if (r["views"], r["snr"]) == (n, snr)]
        for method in (MEAN, TV, OURS):
            for prior in dict.fromkeys(r["prior"] for r in here if r["method"] == method):
                mine = [r for r in here if (r["method"], r["prior"]) == (method, prior)]
                area, start = average(mine, "fsc_area"), average(_of(here, MEAN), "fsc_area")
                lines.append(
                    f"{n:6d} images, SNR {snr:<4g} {method:26s} {len(mine):5d} {area:9.4f} "
                    f"{(area or 0) - (start or 0):+7.4f} {average(mine, 'pearson'):8.3f} {average(mine, 'seconds'):8.1f}"
                )
    return "\n".join(lines)


def halves_verdict(rows: Sequence[Row], prior: str) -> list[str]:
    """A gain where data are poor, no loss where they are good; pair by pair."""
    rows = [r for r in rows if r["task"] == TASK and r["prior"] in ("", prior)]
    pairs = []
    for row in _of(rows, OURS):
        start = next(
            (r for r in _of(rows, MEAN) if all(r[k] == row[k] for k in ("protein", "views", "snr"))), None
        )
        if start is not None:
            pairs.append((start["fsc_area"], row["fsc_area"] - start["fsc_area"]))
    poor, good = [g for a, g in pairs if a < GOOD_AREA], [g for a, g in pairs if a >= GOOD_AREA]
    lines = []
    if poor:
        mean, least = sum(poor) / len(poor), min(poor)
        text = f"half maps of area below {GOOD_AREA:g}: fsc area gained, every one of {len(poor)} > 0"
        lines.append(bar(text, f"mean {mean:+.4f}, least {least:+.4f}", met=least > 0))
    if good:
        text = f"half maps of area {GOOD_AREA:g} or more: nothing lost, every one of {len(good)} >= -{LOSS:g}"
        lines.append(
            bar(text, f"mean {sum(good) / len(good):+.4f}, least {min(good):+.4f}", met=min(good) >= -LOSS)
        )
    return lines


def _of(rows: Sequence[Row], method: str) -> list[Row]:
    return [r for r in rows if r["method"] == method]
