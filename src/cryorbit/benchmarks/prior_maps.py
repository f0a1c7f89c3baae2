"""The prior benchmark's main task: maps from few views of proteins that no prior was trained on."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.fsc_area import fsc_area
from cryorbit.analysis.map_scores import interval_coverage, pearson, spread_error_correlation
from cryorbit.benchmarks.prior_methods import (
    CHANCE,
    MORE,
    NO_PRIOR,
    ORACLE,
    OURS,
    SAMPLERS,
    WITH_ROOM,
    Outcome,
    SamplerPlan,
    Unguided,
    chance_map,
    sampled,
    with_room,
)
from cryorbit.benchmarks.prior_proteins import MapGrid, Protein
from cryorbit.benchmarks.prior_views import CLEAN_SNR, draw_views
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.inference.posterior import PosteriorSettings
from cryorbit.models.point_prior import PointPrior
from cryorbit.models.volume_prior import VolumePrior

Row = dict[str, Any]

TASK = "maps"
KEY = ("task", "protein", "views", "snr", "method", "seed", "prior")
"""What makes a row the same row, in every task; rows that no prior enters have "" for it."""
MASK_LEVEL = 0.05
"""Of a map's maximum: the mask that scores within the protein are taken in."""


@dataclass(frozen=True, kw_only=True)
class MapTask:
    """What is reconstructed from what."""

    views: tuple[int, ...] = (3, 10, 30)
    """Numbers of images, in random directions with known poses."""
    snr: tuple[float, ...] = (CLEAN_SNR, 0.1)
    """Variance of the signal over that of the noise; images below 100 have a CTF."""
    seeds: int = 3
    """Runs of each condition, each with views and noise of its own."""
    more_on: int = 3
    """Proteins, the first ones, that split-gibbs, pigdm and dps run on as well."""

    def __post_init__(self) -> None:
        if min((*self.views, 2)) < 2 or min((*self.snr, 1.0)) <= 0 or self.seeds < 1 or self.more_on < 0:
            raise BadInput(
                f"--views {self.views} --snr {self.snr} --seeds {self.seeds}: wanted two views or more, positive "
                "SNRs, and a seed."
            )


@dataclass(frozen=True, eq=False)
class MapCell:
    """One protein seen in one way."""

    protein: Protein
    others: Sequence[Protein]
    grid: MapGrid
    views: int
    snr: float
    seed: int
    _drawn: dict[tuple[str, int, PosteriorSettings], Outcome] = field(default_factory=dict)

    @cached_property
    def truth(self) -> Float[Tensor, "n n n"]:
        """The map that images are slices of."""
        return self.grid.map_of(self.protein.atoms)

    @cached_property
    def unguided(self) -> Unguided:
        """The images, and what is known of maps without a learned prior."""
        drawn = draw_views(
            self.truth,
            pixel_size_A=self.grid.voxel_size_A,
            views=self.views,
            snr=self.snr,
            # Each protein's own, or the spread over proteins would hold none of the views'.
            seed=zlib.crc32(f"{self.protein.name} {self.seed}".encode()),
        )
        return Unguided(drawn, self.truth)

    def key(self, method: str, prior: str) -> Row:
        """The fields that tell its rows apart."""
        return {
            "task": TASK,
            "protein": self.protein.name,
            "views": self.views,
            "snr": self.snr,
            "method": method,
            "seed": self.seed,
            "prior": prior if method in SAMPLERS else "",
        }

    def run(self, method: str, prior: VolumePrior | None, plan: SamplerPlan) -> Outcome:
        """One method's map.

        Raises
        ------
        BadInput
            If there is no such method.
        """
        if method in CHANCE:
            return chance_map(method, self.protein, self.others, self.grid)
        if method in NO_PRIOR:
            return self.unguided.outcome(method)
        if method not in SAMPLERS or prior is None:
            raise BadInput(f"--method {method}: no such method, or no prior for it. Choose from {METHODS}.")
        data, name = self.unguided.views.whole, method.removesuffix(WITH_ROOM)
        settings = plan.settings(name, self.seed)
        # With room and without, the chains are the same; of all samplers they would fill the memory.
        key = (name, id(prior), settings)
        if key not in self._drawn:
            self._drawn.clear()
            self._drawn[key] = sampled(prior, data, self.grid, name, settings)
        drawn = self._drawn[key]
        return drawn if name == method else with_room(prior, drawn, data, size=plan.room, seed=self.seed)

    def row(self, method: str, outcome: Outcome, prior: str) -> Row:
        """The scores of a map, rounded to what they mean."""
        return {
            **self.key(method, prior),
            **map_scores(outcome, self.truth),
            "seconds": round(outcome.seconds, 1),
            "network_passes": outcome.network_passes,
            "residues": self.protein.residues,
            **outcome.about,
        }


METHODS = (*CHANCE, *NO_PRIOR, *SAMPLERS)


@dataclass(frozen=True, eq=False)
class Compared:
    """What there is to see of a cell: maps by name, the true one first, a note on each, and a posterior's spread."""

    title: str
    maps: dict[str, Volume]
    notes: dict[str, str]
    spread: Volume


def compared(cell: MapCell, prior: VolumePrior, plan: SamplerPlan) -> Compared:
    """The true map beside two without a learned prior and the posterior of PiGDM, whose samples are draws; all made anew."""
    runs = {
        "NNLS": cell.run("nnls", prior, plan),
        "TV, oracle-tuned": cell.run(f"tv{ORACLE}", prior, plan),
        "Posterior mean": cell.run(OURS[0], prior, plan),
    }
    posterior = runs["Posterior mean"].samples
    if posterior is None or len(posterior) < 2:
        raise BadInput(f"--samples {plan.samples}: a figure shows their spread. Give two or more.")
    found = {
        "True map": cell.truth,
        **{name: run.map for name, run in runs.items()},
        "One sample": posterior[0],
    }
    size = cell.grid.voxel_size_A
    notes = {name: f"Pearson {pearson(found[name], cell.truth):.3f}" for name in [*runs, "One sample"]}
    images = "clean" if cell.snr >= CLEAN_SNR else f"SNR {cell.snr:g} with CTF"
    return Compared(
        f"{cell.protein.name}, {cell.views} images, {images}",
        {name: Volume(values, size) for name, values in found.items()},
        {"True map": f"{cell.grid.resolution_A:g} Å"} | notes,
        Volume(posterior.std(0), size),
    )


def map_scores(outcome: Outcome, truth: Float[Tensor, "n n n"]) -> Row:
    """Pearson correlation and FSC area of the map; coverage of the samples' 90 % intervals. What diverged scores nothing.

    `coverage90` counts where the map that is judged has density: a posterior's intervals hold their share of any voxels that
    are chosen by what the posterior knows. Chosen by the truth (`coverage90_truth`) they cannot: where the truth is known to
    be high, a posterior that is right is too low more often than not.
    """
    if not bool(outcome.map.isfinite().all()):
        nothing = {"pearson": 0.0, "pearson_masked": 0.0, "fsc_area": 0.0}
        return {**nothing, "coverage90": None, "diverged": True}
    mask = density_mask(truth)
    scores: Row = {
        "pearson": pearson(outcome.map, truth),
        "pearson_masked": pearson(outcome.map, truth, mask=mask),
        "fsc_area": float(fsc_area(outcome.map[None], truth[None])),
        "coverage90": None,
    }
    samples = outcome.samples
    if samples is not None and len(samples) > 2:
        scores["coverage90"] = interval_coverage(samples, truth, mask=density_mask(outcome.map))
        scores["coverage90_truth"] = interval_coverage(samples, truth, mask=mask)
        scores["coverage90_box"] = interval_coverage(samples, truth)
        scores["spread_error"] = spread_error_correlation(samples, truth, mask=mask)
    return {name: None if v is None else round(v, 5) for name, v in scores.items()}


def density_mask(values: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """Where a map exceeds `MASK_LEVEL` of its maximum."""
    return (values > MASK_LEVEL * values.max()).float()


def map_cells(proteins: Sequence[Protein], task: MapTask, grid: MapGrid) -> Iterator[MapCell]:
    """Seed by seed, so that a benchmark cut short has every condition in it."""
    for seed in range(task.seeds):
        for protein in proteins:
            for snr in task.snr:
                for views in task.views:
                    yield MapCell(protein, proteins, grid, views, snr, seed)


def methods_for(cell: MapCell, task: MapTask, wanted: Sequence[str], *, prior: bool) -> list[str]:
    """The wanted methods that run on this cell; the costly samplers only on some proteins, of the first seed."""
    names = [m for m in METHODS if not wanted or m in wanted]
    unknown = set(wanted) - set(METHODS)
    if unknown:
        raise BadInput(f"--method {sorted(unknown)}: no such method. Choose from {', '.join(METHODS)}.")
    first = [p.name for p in cell.others[: task.more_on]]
    if cell.protein.name not in first or cell.seed > 0:
        names = [m for m in names if m not in MORE]
    return [m for m in names if prior or m not in (*OURS, *MORE)]


def fingerprint(prior: VolumePrior | PointPrior | None) -> str:
    """Eight hexadecimal digits that weights and card decide, "" for none: what rows are told apart by."""
    if prior is None:
        return ""
    digest = hashlib.sha256(repr(sorted(prior.card().items())).encode())
    for name, tensor in sorted(prior.tensors().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
