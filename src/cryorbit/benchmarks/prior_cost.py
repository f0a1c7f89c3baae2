"""The prior benchmark, cost: seconds of adding up images and of a sampler's steps, for few and many images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cryorbit.benchmarks.prior_methods import sampled
from cryorbit.benchmarks.prior_proteins import MapGrid, Protein
from cryorbit.benchmarks.prior_table import bar
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.inference.collapse import collapse
from cryorbit.inference.posterior import PosteriorSettings
from cryorbit.models.volume_prior import VolumePrior
from cryorbit.physics.simulate import simulate
from cryorbit.physics.stack_plan import SimulationSettings

Row = dict[str, Any]

TASK = "cost"
METHOD = "diffpir-spectrum"
RATIO_BAR = 1.5
"""Seconds per step with the most images over those with the fewest: solves differ in length, machines in load."""


@dataclass(frozen=True, kw_only=True)
class CostTask:
    """What is timed."""

    particles: tuple[int, ...] = (200, 20_000)
    """Numbers of images, SNR 0.1 with CTF."""

    def __post_init__(self) -> None:
        if min((*self.particles, 2)) < 2:
            raise BadInput(f"--particles {self.particles}: wanted two or more.")


@dataclass(frozen=True, eq=False)
class CostCell:
    """One number of images."""

    protein: Protein
    grid: MapGrid
    particles: int

    def key(self, prior: str) -> Row:
        """The fields that tell its row apart."""
        about = {"task": TASK, "protein": self.protein.name, "views": self.particles, "snr": 0.1, "seed": 0}
        return {**about, "method": METHOD, "prior": prior}

    def row(self, prior: VolumePrior, name: str, *, steps: int) -> Row:
        """Seconds once for all images, and per step of four chains."""
        grid = self.grid
        made = simulate(
            Volume(grid.map_of(self.protein.atoms), grid.voxel_size_A),
            SimulationSettings(
                n_particles=self.particles,
                box=grid.box,
                pixel_size_A=grid.voxel_size_A,
                snr=0.1,
                shift_sd_A=0.0,
            ),
        )
        spent = {"reading": 0.0}

        def read(rows: torch.Tensor) -> torch.Tensor:
            start = time.monotonic()
            images = made.stack.images[rows]
            spent["reading"] += time.monotonic() - start
            return images

        start = time.monotonic()
        power = torch.full((grid.box // 2 + 1,), grid.box**2 * made.sigma**2)
        data = collapse(made.with_truth(), power, read=read)
        adding = time.monotonic() - start - spent["reading"]
        found = sampled(prior, data, grid, METHOD, PosteriorSettings(samples=4, steps=steps))
        return {
            **self.key(name),
            "pearson": None,
            "fsc_area": None,
            "coverage90": None,
            "steps": steps,
            "seconds": round(found.seconds, 2),
            "seconds_per_step": round(found.seconds / steps, 4),
            "seconds_adding_up": round(adding, 2),
            "network_passes": found.network_passes,
        }


def cost_table(rows: Sequence[Row]) -> str:
    """Every number of images."""
    rows = sorted((r for r in rows if r["task"] == TASK), key=lambda r: (r["prior"], r["views"]))
    if not rows:
        return ""
    lines = [
        f"{'cost':18s} {'images':>7s} {'adding up':>10s} {'steps':>6s} {'passes':>7s} {'seconds':>8s} {'per step':>9s}"
    ]
    lines += [
        f"{r['method']:18s} {r['views']:7d} {r['seconds_adding_up']:8.1f} s {r['steps']:6d} {r['network_passes']:7d} "
        f"{r['seconds']:8.1f} {r['seconds_per_step']:7.3f} s"
        for r in rows
    ]
    return "\n".join(lines)


def cost_verdict(rows: Sequence[Row], prior: str) -> list[str]:
    """The sampler's steps cost the same with all images."""
    rows = sorted((r for r in rows if r["task"] == TASK and r["prior"] == prior), key=lambda r: r["views"])
    if len(rows) < 2:
        return []
    few, many = rows[0], rows[-1]
    ratio = many["seconds_per_step"] / few["seconds_per_step"]
    same = many["network_passes"] == few["network_passes"]
    text = f"cost: seconds per step with {many['views']} images over those with {few['views']} <= {RATIO_BAR:g}, same passes"
    return [
        bar(
            text,
            f"{ratio:.2f}, {few['network_passes']} and {many['network_passes']}",
            met=same and ratio <= RATIO_BAR,
        )
    ]
