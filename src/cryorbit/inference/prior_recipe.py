"""From structures to a prior: which are drawn, on what grid, of what network, and how well it does on some held back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cryorbit.data import Atoms, ProteinChain
from cryorbit.errors import BadInput
from cryorbit.inference.engine import Progress
from cryorbit.inference.prior import PointTask, PriorSettings, PriorTask, VolumeTask, train_prior
from cryorbit.inference.prior_data import (
    ChainSource,
    DensityRange,
    DensitySource,
    PointBatch,
    VolumeBatch,
    map_spectrum,
    room_for,
    root_mean_square,
)
from cryorbit.inference.triplane_training import HeldBack, train_triplanes, upright
from cryorbit.io.structure_folder import protein_chains
from cryorbit.models.point_prior import PointPrior, PointPriorShape
from cryorbit.models.score import denoising_loss
from cryorbit.models.triplane_prior import TriplanePrior, TriplanePriorShape
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from cryorbit.physics.procedural_protein import procedural_protein

HELD_BACK = 500_000
"""First seed of procedural proteins that are not trained on; benchmarks count theirs from a million."""
LEVELS = (0.1, 0.3, 1.0, 3.0)
"""Of noise, in spreads of the data, that validation looks at."""
_LONGEST_PROCEDURAL = 400


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """What a prior is made of. Defaults are those of the prior of maps that comes with the program."""

    kind: Literal["volumes", "points", "triplanes"] = "volumes"
    """Density maps, chains of C-alphas, or maps by way of three planes of features."""
    proteins: int = 400
    """Procedural proteins to train on, number i from seed i; 0 with --structures trains on those alone."""
    lengths: tuple[int, int] = (50, 240)
    """Their shortest and longest chain, residues; drawn evenly in the logarithm."""
    held_back: int = 16
    """Further proteins that the loss is validated on."""
    batch: int = 4
    """Structures per step."""
    measured_batches: int = 32
    """Batches that the scale and the spectrum of maps are measured on."""
    box: int = 32
    """Edge of the maps, voxels."""
    voxel_size_A: tuple[float, float] = (2.5, 4.0)
    """Least and largest voxel."""
    map_resolution_A: tuple[float, float] = (6.0, 12.0)
    """Finest and coarsest low-pass of the maps, angstrom."""
    shift_A: float = 4.0
    """Largest distance of a molecule from the middle of its map."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Of the network of maps or planes, per level."""
    patch: int = 1
    """2: the network of maps sees cubes of two voxels as channels, and all its levels have half the box."""
    blocks: int = 1
    """Blocks per level of the network of maps, on the way down and again on the way up."""
    attention: bool = False
    """Voxels of the coarsest level of the network of maps look at one another."""
    hidden: int = 32
    """Features per residue of the network of chains; of a pixel between maps and planes."""
    layers: int = 3
    """Rounds of messages of the network of chains."""
    plane_features: int = 4
    """Channels of each of three planes."""
    codec_steps: int = 400
    """Batches that the way from maps to planes and back is trained on, before the planes' own network."""
    principal_axes: bool = False
    """Maps stand along the structures' principal axes, as planes want them; turned at random otherwise, as images do."""

    def __post_init__(self) -> None:
        low, high = self.lengths
        if not 20 <= low <= high <= _LONGEST_PROCEDURAL:
            raise BadInput(
                f"--lengths {low} {high}: wanted 20 <= shortest <= longest <= {_LONGEST_PROCEDURAL} residues."
            )
        for name, least in (("proteins", 0), ("held_back", 0), ("measured_batches", 1)):
            value = getattr(self, name)
            if value < least:
                raise BadInput(f"--{name.replace('_', '-')} {value}: give a whole number of {least} or more.")

    def drawn(self) -> DensityRange:
        """What maps are drawn at."""
        return DensityRange(
            box=self.box,
            voxel_size_A=self.voxel_size_A,
            resolution_A=self.map_resolution_A,
            shift_A=self.shift_A,
            turned=not self.principal_axes,
        )


@dataclass(frozen=True, eq=False)
class Structures:
    """What is trained on and what is held back, beside procedural proteins."""

    train: Sequence[ProteinChain] = ()
    validation: Sequence[ProteinChain] = ()


def with_room(recipe: PriorRecipe, given: Structures) -> tuple[Structures, list[str]]:
    """The structures that the box has room for, and the names of the others, sorted; a prior of chains has room for all."""
    if recipe.kind == "points":
        return given, []
    parts: dict[str, list[ProteinChain]] = {"train": [], "validation": []}
    too_large: list[str] = []
    for part, kept in parts.items():
        chains: Sequence[ProteinChain] = getattr(given, part)
        for chain, fits in zip(chains, room_for([c.atoms for c in chains], recipe.drawn()), strict=True):
            if fits:
                kept.append(chain)
            else:
                too_large.append(chain.name)
    return Structures(**parts), sorted(too_large)


def procedural_lengths(count: int, lengths: tuple[int, int]) -> list[int]:
    """Residues of each procedural protein, low (high / low)^u with u uniform from seed 0.

    >>> procedural_lengths(3, (50, 240))
    [108, 166, 57]
    """
    low, high = lengths
    share = torch.rand(count, generator=torch.Generator().manual_seed(0)).tolist()
    return [int(low * (high / low) ** u) for u in share]


def make_prior(
    recipe: PriorRecipe,
    settings: PriorSettings,
    given: Structures,
    *,
    state: dict[str, Any] | None = None,
    too_large: list[int] | None = None,
) -> Iterator[Progress]:
    """Folds procedural proteins, then trains; records of the training carry "validation_dB" where something is held back.

    It is how far the error of the held-back structures lies below that of the Wiener filter (maps, planes) or of a Gaussian
    of the right size (chains), in decibels, averaged over `LEVELS`; of the averaged weights.

    Parameters
    ----------
    state
        Of an earlier record: goes on from there, to the same result.
    too_large
        Gets the seeds of procedural proteins that the box has no room for, which are not used.

    Raises
    ------
    BadInput
        If there is nothing to train on.
    """
    lengths = procedural_lengths(recipe.proteins, recipe.lengths)
    held = procedural_lengths(recipe.held_back, recipe.lengths) if recipe.proteins else []
    wanted = [
        *((n, seed) for seed, n in enumerate(lengths)),
        *((n, HELD_BACK + i) for i, n in enumerate(held)),
    ]
    made: list[Atoms] = []
    for n, seed in wanted:
        made.append(procedural_protein(n, seed))
        if len(made) % 10 == 0:
            yield Progress(
                "folding proteins", len(made), len(wanted), 0.05 * len(made) / len(wanted), {}, state or {}
            )
    if too_large is not None and recipe.kind != "points":
        fits = room_for(made, recipe.drawn())
        too_large[:] = [seed for (_, seed), has_room in zip(wanted, fits, strict=True) if not has_room]
    train, validation = made[: len(lengths)], made[len(lengths) :]
    if recipe.kind == "triplanes":
        yield from _later(_triplanes(recipe, settings, train, validation, given, state))
        return
    task, held_back = _task(recipe, train, validation, given)
    for record in train_prior(task, settings, state=state or None):
        metrics = dict(record.metrics)
        if held_back is not None and record.result is None:
            average = {
                name.removeprefix("average.weight."): value
                for name, value in record.state.items()
                if name.startswith("average.weight.")
            }
            metrics["validation_dB"] = held_back.decibel(average)
        yield from _later([replace(record, metrics=metrics)])


def _later(records: Iterable[Progress]) -> Iterator[Progress]:
    """Records of a training as those of a run that has folded proteins before."""
    for record in records:
        done = record.fraction if record.result is not None else 0.05 + 0.95 * record.fraction
        yield replace(record, fraction=done)


def _triplanes(
    recipe: PriorRecipe,
    settings: PriorSettings,
    train: list[Atoms],
    validation: list[Atoms],
    given: Structures,
    state: dict[str, Any] | None,
) -> Iterator[Progress]:
    if len({*recipe.voxel_size_A}) > 1 or len({*recipe.map_resolution_A}) > 1:
        raise BadInput(
            "planes have one voxel size and one resolution, "
            f"not {recipe.voxel_size_A} and {recipe.map_resolution_A} A. Give --voxel-size-A 3 3 --map-resolution-A 6 6."
        )
    drawn = recipe.drawn()
    atoms, held = _fitting(recipe, train, validation, given)
    source = DensitySource(atoms, drawn, batch=recipe.batch)
    shape = TriplanePriorShape(
        box=recipe.box,
        voxel_size_A=recipe.voxel_size_A[0],
        resolution_A=recipe.map_resolution_A[0],
        density_scale=root_mean_square(source, batches=recipe.measured_batches),
        features=recipe.plane_features,
        hidden=recipe.hidden,
        channels=recipe.channels,
    )
    batch = DensitySource(held, drawn, batch=8, seed=1)(0).density[:, 0] if held else None
    yield from train_triplanes(
        TriplanePrior(shape, generator=torch.Generator().manual_seed(0)),
        source,
        settings,
        codec_steps=recipe.codec_steps,
        measured_batches=recipe.measured_batches,
        held=None if batch is None else HeldBack(batch, LEVELS),
        state=state or None,
    )


def _fitting(
    recipe: PriorRecipe, train: list[Atoms], validation: list[Atoms], given: Structures
) -> tuple[list[Atoms], list[Atoms]]:
    """Structures to train on and to hold back that the box has room for, in the orientation that is asked for."""
    atoms, held = (
        [
            upright(a) if recipe.principal_axes else a
            for a, fits in zip(all_of, room_for(all_of, recipe.drawn()), strict=True)
            if fits
        ]
        for all_of in (
            [*train, *(c.atoms for c in given.train)],
            [*validation, *(c.atoms for c in given.validation)],
        )
    )
    if not atoms:
        raise BadInput(
            f"no structure fits a box of {recipe.box} voxels of {recipe.voxel_size_A[1]:g} A. Give smaller structures, a "
            "larger --box or larger voxels."
        )
    return atoms, held


def _task(
    recipe: PriorRecipe, train: list[Atoms], validation: list[Atoms], given: Structures
) -> tuple[PriorTask, Validation | None]:
    generator = torch.Generator().manual_seed(0)
    if recipe.kind == "points":
        chains = [*_chains(train), *given.train]
        shape = PointPriorShape(hidden=recipe.hidden, layers=recipe.layers)
        prior = PointPrior(shape, generator=generator)
        held = [*_chains(validation), *given.validation]
        batch = ChainSource(held, batch=8, seed=1)(0) if held else None
        return PointTask(
            prior, ChainSource(chains, batch=recipe.batch)
        ), None if batch is None else Validation(prior, batch)
    drawn = recipe.drawn()
    atoms, held = _fitting(recipe, train, validation, given)
    source = DensitySource(atoms, drawn, batch=recipe.batch)
    scale = root_mean_square(source, batches=recipe.measured_batches)
    spectrum = map_spectrum(source, density_scale=scale, batches=recipe.measured_batches)
    shape = VolumePriorShape(
        channels=recipe.channels,
        patch=recipe.patch,
        blocks=recipe.blocks,
        attention=recipe.attention,
        box=recipe.box,
        density_scale=scale,
        voxel_size_A=recipe.voxel_size_A,
        resolution_A=recipe.map_resolution_A,
        spectrum=spectrum.power,
    )
    prior = VolumePrior(shape, generator=generator)
    batch = DensitySource(held, drawn, batch=8, seed=1)(0) if held else None
    return VolumeTask(prior, source), None if batch is None else Validation(prior, batch)


def _chains(atoms: Sequence[Atoms]) -> list[ProteinChain]:
    return [chain for i, a in enumerate(atoms) for chain in protein_chains(a, f"procedural{i}")]


@dataclass(frozen=True, eq=False)
class Validation:
    """Structures held back, with noise that is always the same."""

    prior: PointPrior | VolumePrior
    batch: PointBatch | VolumeBatch

    @torch.no_grad()
    def decibel(self, tensors: dict[str, Tensor]) -> float:
        """Of a prior with these weights, averaged over `LEVELS`."""
        found = []
        for level in LEVELS:
            generator = torch.Generator().manual_seed(0)
            if isinstance(self.prior, VolumePrior) and isinstance(self.batch, VolumeBatch):
                prior = VolumePrior.from_state(tensors, self.prior.card())
                clean = prior.to_latent(self.batch.density)
                sigma = torch.full((len(clean),), level * prior.shape.sigma_data)
                noisy = clean + sigma.view(-1, 1, 1, 1, 1) * torch.randn(clean.shape, generator=generator)
                got = prior.denoise(noisy, sigma, self.batch.voxel_size_A, self.batch.resolution_A)
                start = prior.spectrum.filter(
                    noisy, sigma, self.batch.voxel_size_A, self.batch.resolution_A[:, None]
                )
                loss = (got.clean - clean).square().mean() / (start.estimate - clean).square().mean()
            elif isinstance(self.prior, PointPrior) and isinstance(self.batch, PointBatch):
                prior, batch = PointPrior.from_state(tensors, self.prior.card()), self.batch
                denoiser = prior.denoiser(batch.mask, batch.chain, batch.residue)
                clean = prior.to_latent(batch.position_A, batch.mask)
                spread = denoiser.spread.to(clean)
                noise = denoiser.project(torch.randn(clean.shape, generator=generator))
                loss = denoising_loss(
                    denoiser, clean, noise, level * spread, sigma_data=spread, mask=batch.mask
                ).mean()
            else:
                raise BadInput("Validation: structures and prior are of different kinds. Give those of one.")
            found.append(-10 * math.log10(max(float(loss), 1e-12)))
        return sum(found) / len(found)
