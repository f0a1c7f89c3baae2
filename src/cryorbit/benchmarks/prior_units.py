"""The prior benchmark, units: EquiCryo's table of guidance strengths in angstrom, with what chance gives beside.

A prior of C-alphas is sampled under images of lysozyme's C-alphas as sums of Gaussians, the step along the gradient of
the misfit divided by its own norm, as that work does; its strengths are 0.01, 0.1 and 1. There atoms had no order and
structures no common size; here the chain is known and a coordinate is in angstrom.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.chain_comparison import compare_chains
from cryorbit.analysis.chain_scores import radius_of_gyration
from cryorbit.benchmarks.prior_proteins import Protein
from cryorbit.benchmarks.prior_table import bar
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.inference.prior import PointTask, PriorSettings, train_prior
from cryorbit.inference.prior_data import ChainSource
from cryorbit.inference.prior_sampling import noise_levels
from cryorbit.io.structure_folder import protein_chains
from cryorbit.models.point_prior import PointDenoiser, PointPrior, PointPriorShape
from cryorbit.physics.procedural_protein import procedural_protein

Row = dict[str, Any]

TASK = "units"
PIXEL_A, BOX_PX, WIDTH_A, NOISE = 1.5, 64, 2.5, 0.1
"""Of the images; the noise in units of one atom's peak."""

UNIT_A = 22.63
"""What that work divides lysozyme by: the distance of its outermost C-alpha."""

PUBLISHED = (
    'published: EquiCryo, strengths 0.01 / 0.1 / 1: Rg 0.35 / 0.59 / 0.58 "A", RMSD 22.8 / 14.5 / 0.78 "A". The last is '
    "in units of the structure's radius, 22.63 A: 17.6 A, what lysozyme's own C-alphas in random order score."
)


@dataclass(frozen=True, kw_only=True)
class UnitsTask:
    """Chains under images."""

    strengths: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0)
    """Length of each step along the gradient, over all coordinates, in that work's unit; 0: the prior alone."""
    unit_views: tuple[int, ...] = (1, 10)
    """Images with known poses."""
    chain_steps: int = 100
    """Levels of noise."""
    chains_drawn: int = 4
    """Chains per row."""
    training_steps: int = 1500
    """Of the prior of chains, where none is given."""

    def __post_init__(self) -> None:
        if min(self.chain_steps, self.chains_drawn, self.training_steps, *self.unit_views) < 1:
            raise BadInput(
                "--chain-steps, --chains-drawn, --training-steps and --unit-views of 1 or more are wanted."
            )


def small_point_prior(steps: int, *, chains: int = 64, residues: int = 64) -> PointPrior:
    """A prior of chains made on the spot from procedural proteins of 64 residues: minutes on one core.

    Their seeds are those of training: a benchmark's own would give the first secondary structure of its own proteins.
    """
    made = [procedural_protein(residues, seed) for seed in range(chains)]
    known = [chain for i, atoms in enumerate(made) for chain in protein_chains(atoms, f"procedural{i}")]
    prior = PointPrior(PointPriorShape(), generator=torch.Generator().manual_seed(0))
    task = PointTask(prior, ChainSource(known, batch=8, longest=residues, seed=1))
    result = None
    for record in train_prior(task, PriorSettings(steps=steps)):
        result = record.result
    if not isinstance(result, PointPrior):
        raise BadInput("small_point_prior: the training ended without a prior.")
    return result


def images_of_points(
    position_A: Float[Tensor, "b n 3"], rotation: Float[Tensor, "v 3 3"]
) -> Float[Tensor, "b v h w"]:
    """Sums of Gaussians of peak 1 at the projected positions."""
    at = torch.einsum("vij,bnj->bvni", rotation[:, :2], position_A)
    axis = (torch.arange(BOX_PX) - BOX_PX // 2).to(position_A) * PIXEL_A
    wave = torch.exp(-0.5 * ((axis - at[..., None]) / WIDTH_A) ** 2)
    return torch.einsum("bvny,bvnx->bvyx", wave[..., 1, :], wave[..., 0, :])


@dataclass(frozen=True, eq=False)
class UnitsCell:
    """A number of views."""

    protein: Protein
    views: int
    task: UnitsTask
    seed: int = 0

    def key(self, strength: float, prior: str) -> Row:
        """The fields that tell its rows apart."""
        about = {
            "task": TASK,
            "protein": self.protein.name,
            "views": self.views,
            "snr": NOISE,
            "seed": self.seed,
        }
        return {**about, "method": f"strength {strength:g}", "prior": prior}

    def rows(self, prior: PointPrior, name: str) -> Iterator[Row]:
        """One row per strength."""
        g = torch.Generator().manual_seed(self.seed)
        true = (self.protein.ca_A - self.protein.ca_A.mean(0)).to(torch.float32)
        rotation = random_rotations(self.views, generator=g)
        seen = images_of_points(true[None], rotation)
        seen = seen + NOISE * torch.randn(seen.shape, generator=g)
        for strength in self.task.strengths:
            start = time.monotonic()
            chains = self._sample(prior, seen, rotation, strength)
            yield {
                **self.key(strength, name),
                **_scores(chains, true),
                "pearson": None,
                "fsc_area": None,
                "coverage90": None,
                "seconds": round(time.monotonic() - start, 1),
                "network_passes": self.task.chain_steps * (2 if strength else 1),
            }

    def _sample(self, prior: PointPrior, seen: Tensor, rotation: Tensor, strength: float) -> Tensor:
        """Ancestral steps, each with a step of fixed length down the gradient of the misfit."""
        n, s = self.protein.residues, self.task.chains_drawn
        g = torch.Generator().manual_seed(self.seed + 1)
        place = torch.arange(n).expand(s, -1)
        denoiser = prior.denoiser(torch.ones(s, n, dtype=torch.bool), torch.zeros_like(place), place)
        d = denoiser.sigma_data
        levels = noise_levels(self.task.chain_steps, 0.005 * d, 10 * d).tolist()
        x = levels[0] * denoiser.project(torch.randn(s, n, 3, generator=g))
        for now, then in pairwise(levels):
            clean, downhill = _guided(prior, denoiser, x, now, (seen, rotation) if strength else None)
            share = (then / now) ** 2
            fresh = then * math.sqrt(max(1 - share, 0.0)) * torch.randn(x.shape, generator=g)
            step = strength * UNIT_A / prior.shape.length_scale_A * math.hypot(now, d) / d
            x = denoiser.project(clean + share * (x - clean) + fresh - step * downhill)
        return prior.to_angstrom(x)


def _guided(
    prior: PointPrior, denoiser: PointDenoiser, x: Tensor, level: float, images: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """The clean chains, and the unit gradient of each one's misfit to the images, through the denoiser."""
    sigma = x.new_full((len(x),), level)
    if images is None:
        with torch.no_grad():
            return denoiser(x, sigma), torch.zeros_like(x)
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        clean = denoiser(leaf, sigma)
        misfit = (images_of_points(prior.to_angstrom(clean), images[1]) - images[0]).square().sum()
    (gradient,) = torch.autograd.grad(misfit, leaf)
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return clean.detach(), gradient / length[:, None, None]


def _scores(chains: Float[Tensor, "s n 3"], true: Float[Tensor, "n 3"]) -> Row:
    """Means over the chains, chance beside."""
    g = torch.Generator().manual_seed(0)
    found = [compare_chains(c, true, generator=g) for c in chains]

    def mean(name: str) -> float:
        return round(sum(getattr(f, name) for f in found) / len(found), 3)

    return {
        "rg_A": round(float(radius_of_gyration(chains).mean()), 3),
        "true_rg_A": round(float(radius_of_gyration(true)), 3),
        **{
            name: mean(name) for name in ("rmsd_A", "rmsd_chance_A", "tm", "tm_chance", "lddt", "lddt_chance")
        },
    }


def units_verdict(rows: Sequence[Row], prior: str) -> list[str]:
    """The best strength against a chain in random order, for as many views as there are."""
    rows = [r for r in rows if r["task"] == TASK and r["prior"] == prior]
    lines = []
    for views in sorted({r["views"] for r in rows}):
        best = min((r for r in rows if r["views"] == views), key=lambda r: r["rmsd_A"])
        text = (
            f"chains, {views} views: RMSD of the best guidance ({best['method']}) below the permuted chain's"
        )
        value = f"{best['rmsd_A']:.2f} against {best['rmsd_chance_A']:.2f} A"
        lines.append(bar(text, value, met=best["rmsd_A"] < best["rmsd_chance_A"]))
    return lines


def units_table(rows: Sequence[Row]) -> str:
    """Every strength, and what was published."""
    rows = [r for r in rows if r["task"] == TASK]
    if not rows:
        return ""
    head = f"{'chains':8s} {'views':>5s} {'guidance':14s} {'Rg':>8s} {'true':>8s} {'RMSD':>8s} {'permuted':>9s} {'TM':>6s}"
    lines = [f"{head} {'permuted':>9s} {'lDDT':>6s}"]
    lines += [
        f"{r['protein']:8s} {r['views']:5d} {r['method']:14s} {r['rg_A']:6.2f} A {r['true_rg_A']:6.2f} A "
        f"{r['rmsd_A']:6.2f} A {r['rmsd_chance_A']:7.2f} A {r['tm']:6.3f} {r['tm_chance']:9.3f} {r['lddt']:6.3f}"
        for r in rows
    ]
    return "\n".join([*lines, PUBLISHED])
