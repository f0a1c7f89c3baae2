"""Methods of the prior benchmark: chance, maps without a learned prior, and samplers of the posterior."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.benchmarks.prior_proteins import FIRST_SEED, MapGrid, Protein
from cryorbit.benchmarks.prior_views import Views
from cryorbit.data import Atoms
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.inference import posterior_spectrum
from cryorbit.inference.posterior import PosteriorSamples, PosteriorSettings, sample_posterior
from cryorbit.inference.posterior_baselines import BASELINES, Tuned, by_held_out, oracle_tuned
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.posterior_methods import Method
from cryorbit.inference.prior_error import ErrorModel
from cryorbit.models.volume_prior import VolumePrior
from cryorbit.physics.procedural_protein import procedural_protein

OTHER, RADIAL = "chance, another protein", "chance, mean radial map"
CHANCE = (OTHER, RADIAL)
ORACLE = ", oracle-tuned"
NO_PRIOR = (*BASELINES, *(name + ORACLE for name in BASELINES))
SPECTRAL = ("diffpir-spectrum", "diffpir-spectrum-draw")
"""DiffPIR whose weight of the prior follows its mean spectrum (`inference.posterior_spectrum`)."""
WITH_ROOM = ", room for error"
ROOMY = ("pigdm" + WITH_ROOM,)
"""The same chains, then a draw of what the network's maps may be wrong by, given the images (`inference.prior_error`)."""
OURS = ("pigdm", *ROOMY, *SPECTRAL, "diffpir", "diffpir-draw")
MORE = ("split-gibbs", "dps", "dps-fixed-step")
SAMPLERS = (*OURS, *MORE)
STRENGTHS = tuple(10.0**i for i in range(-4, 1))
"""Tried of each map without a learned prior, then half a decade to either side of the best."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method gave: its map in volts, its samples if it has any, and what it cost."""

    map: Float[Tensor, "n n n"]
    samples: Float[Tensor, "s n n n"] | None
    seconds: float
    network_passes: int
    about: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SamplerPlan:
    """How many maps samplers draw and in how many steps. The defaults were chosen on procedural proteins, see the page."""

    samples: int = 16
    """Maps each sampler draws; their mean is scored, their spread is the interval."""
    steps: int = 24
    """Levels of noise. DPS takes ten times as many: its paper takes a thousand."""
    room: float = 0.6
    """Size of what the network's maps may be wrong by, where room is made for it, in standard deviations of its maps. At 0.6
    errors are as large as the spread on 30 clean views of a procedural protein that the prior has not seen."""

    def __post_init__(self) -> None:
        if not self.room >= 0:
            raise BadInput(f"--room {self.room:g}: wanted 0, for none, or more.")

    def settings(self, method: str, seed: int) -> PosteriorSettings:
        """Of one sampler."""
        slow = method.startswith("dps")
        return PosteriorSettings(
            samples=2 if slow else self.samples, steps=self.steps * (10 if slow else 1), seed=seed
        )


@dataclass(frozen=True, eq=False)
class Unguided:
    """Maps without a learned prior from one set of views; a strength solved once is kept for all rules."""

    views: Views
    truth: Float[Tensor, "n n n"]
    _known: dict[tuple[str, int, float], Tensor] = field(default_factory=dict)

    def tuned(self, name: str) -> Tuned:
        """A baseline by held-out images, or by the truth where the name says so."""
        solver = self._solver(name.removesuffix(ORACLE))
        if name.endswith(ORACLE):
            return oracle_tuned(solver, self.views.whole, self.truth, strengths=STRENGTHS)
        return by_held_out(solver, self.views.folds, self.views.whole, strengths=STRENGTHS)

    def _solver(self, name: str) -> Callable[[TwoVolumes, float], Tensor]:
        def solve(data: TwoVolumes, strength: float) -> Tensor:
            # Only the whole is solved by more than one rule.
            if data is not self.views.whole:
                return BASELINES[name](data, strength)
            key = (name, id(data), float(f"{strength:.4g}"))
            if key not in self._known:
                self._known[key] = BASELINES[name](data, strength)
            return self._known[key]

        return solve

    def outcome(self, name: str) -> Outcome:
        """The map, timed."""
        start = time.monotonic()
        tuned = self.tuned(name)
        return Outcome(
            tuned.map, None, time.monotonic() - start, 0, {"strength": tuned.strength, "rule": tuned.rule}
        )


def sampled(
    prior: VolumePrior, data: TwoVolumes, grid: MapGrid, method: str, settings: PosteriorSettings
) -> Outcome:
    """Maps of the posterior in volts, and their mean.

    Raises
    ------
    BadInput
        If there is no such method.
    """
    start = time.monotonic()
    scale = prior.shape.density_scale
    denoiser = prior.denoiser(voxel_size=grid.voxel_size_A, resolution=grid.resolution_A)
    run = sample_posterior(denoiser, data.scaled(scale), method_of(method, prior, grid), settings)
    result = deque(run, maxlen=1)[0].result
    if not isinstance(result, PosteriorSamples):
        raise BadInput(f"{method}: the run ended without maps.")
    maps = result.samples * scale
    about: dict[str, float | str] = {"steps": settings.steps, "samples": settings.samples}
    return Outcome(maps.mean(0), maps, time.monotonic() - start, result.network_passes, about)


def with_room(prior: VolumePrior, drawn: Outcome, data: TwoVolumes, *, size: float, seed: int) -> Outcome:
    """The mean and the samples of chains, corrected by the images as far as the network may be wrong (`ErrorModel`).

    Raises
    ------
    BadInput
        If there are no samples.
    """
    if drawn.samples is None:
        raise BadInput("with_room: nothing was drawn. Give the outcome of a sampler.")
    start = time.monotonic()
    scale, own = prior.shape.density_scale, data.scaled(prior.shape.density_scale)
    mean, chance = drawn.map / scale, torch.Generator().manual_seed(seed)
    model = ErrorModel.of(mean, size * prior.shape.sigma_data)
    samples = model.drawn(drawn.samples / scale, own, generator=chance)
    return replace(
        drawn,
        map=model.corrected(mean, own) * scale,
        samples=samples * scale,
        seconds=drawn.seconds + time.monotonic() - start,
        about=drawn.about | {"room": size},
    )


def method_of(name: str, prior: VolumePrior, grid: MapGrid) -> Method:
    """A sampler by its name, told the prior's spectrum on this grid.

    Raises
    ------
    BadInput
        If there is none.
    """
    size, limit = torch.tensor([grid.voxel_size_A]), torch.tensor([[grid.resolution_A]])
    return posterior_spectrum.method_of(name, prior.spectrum.variance(grid.box, size, limit)[0])


def chance_map(method: str, protein: Protein, others: Sequence[Protein], grid: MapGrid) -> Outcome:
    """What knows nothing of the images: the protein nearest in size, or the radial mean of proteins of this size."""
    start = time.monotonic()
    if method == OTHER:
        other = min(
            (o for o in others if o.name != protein.name),
            key=lambda o: abs(o.residues - protein.residues),
            default=None,
        )
        if other is None:
            other = replace(protein, name="procedural", atoms=_stand_in(protein.residues, 0))
        return Outcome(grid.map_of(other.atoms), None, time.monotonic() - start, 0, {"what": other.name})
    return Outcome(radial_map(protein.residues, grid), None, time.monotonic() - start, 0)


def radial_map(residues: int, grid: MapGrid, *, count: int = 6) -> Float[Tensor, "n n n"]:
    """Mean over directions of the maps of some procedural proteins of this length."""
    turns = random_rotations(count, generator=torch.Generator().manual_seed(0))
    maps = [grid.map_of(_stand_in(residues, i), turn) for i, turn in enumerate(turns)]
    return radial_mean(torch.stack(maps).mean(0))


def radial_mean(values: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """Each voxel replaced by the mean over the voxels of its distance from the middle, to half a voxel."""
    n = values.shape[0]
    axis = torch.arange(n) - n // 2
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt().round().long().flatten()
    total = torch.zeros(int(radius.max()) + 1).index_add_(0, radius, values.flatten())
    return (total / torch.bincount(radius))[radius].view_as(values)


def _stand_in(residues: int, number: int) -> Atoms:
    return procedural_protein(min(max(residues, 20), 400), FIRST_SEED + 1000 + number)
