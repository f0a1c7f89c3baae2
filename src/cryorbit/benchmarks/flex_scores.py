"""Scores of the heterogeneity benchmark: latents against true states, decoded maps against true maps.

Between two fixed points: chance is one consensus map of all images, the oracle a reconstruction that is told the true
state of every image. Maps are compared in the frame of the data set, which the true poses define; a method that
refines poses must keep it. Neither point depends on the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.fsc_area import fsc_area
from cryorbit.analysis.latent_mixture import classify
from cryorbit.analysis.latent_scores import (
    adjusted_rand_index,
    circular_correlation,
    neighbourhood_similarity,
    rank_correlation,
)
from cryorbit.analysis.latent_units import ErrorUnits
from cryorbit.analysis.latents import circular_coordinate, diffusion_map, k_means, path_coordinate
from cryorbit.analysis.masks import automatic_mask
from cryorbit.benchmarks.flex_tasks import FlexData
from cryorbit.data import Volume
from cryorbit.errors import BadInput

Decode = Callable[[Int[Tensor, "m"]], Float[Tensor, "m box box box"]]
"""Rows of the stack -> the map that a method thinks each of them shows."""

_DECODED_AT_A_TIME = 25


@dataclass(frozen=True, eq=False)
class FscAreas:
    """Areas under the FSC of decoded against true maps, one per sampled image; perfect is 0.5.

    Parameters
    ----------
    rows
        The images, shape (m,).
    plain, masked
        Shape (m,): of the whole box, and within the soft mask about all states.
    """

    rows: Int[Tensor, "m"]
    plain: Float[Tensor, "m"]
    masked: Float[Tensor, "m"]

    @property
    def mean(self) -> float:
        """Mean of the plain areas: the benchmark's `fsc_area`."""
        return float(self.plain.mean())


@dataclass(frozen=True)
class LatentScore:
    """What the latents of a method are worth: a name, the value (1 is perfect), and the value of chance."""

    name: str
    value: float
    chance: float = 0.0


def sample_rows(data: FlexData, n: int = 100, *, seed: int = 0) -> Int[Tensor, "m"]:
    """About n images, spread over the states as evenly as their numbers allow; at least one of every state if n allows.

    The same seed gives the same images, whatever the method: use it for all rows of a table.
    """
    if n < 1:
        raise BadInput(f"sample_rows: {n} images asked for. Ask for at least one.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    state = data.state[order]
    # the how-manieth image of its state each one is: all firsts come before all seconds
    turn = torch.empty_like(state)
    for number in torch.unique(state).tolist():
        rows = torch.nonzero(state == number)[:, 0]
        turn[rows] = torch.arange(len(rows))
    return order[turn.argsort(stable=True)][:n].sort().values


def state_mask(data: FlexData) -> Float[Tensor, "box box box"]:
    """A soft mask that holds every state: the automatic mask of the voxel-wise largest density."""
    return automatic_mask(Volume(data.maps.amax(0), data.stack.pixel_size_A)).values


def image_fsc_areas(data: FlexData, decode: Decode, rows: Int[Tensor, "m"]) -> FscAreas:
    """Areas under the FSC of what `decode` makes of each image against the map of its true state.

    Raises
    ------
    BadInput
        If the decoded maps are not on the grid of the images.
    """
    mask = state_mask(data)
    plain, masked = [], []
    for part in rows.split(_DECODED_AT_A_TIME):
        maps = decode(part).detach().to("cpu", torch.float32)
        truth = data.maps[data.state[part]]
        plain.append(fsc_area(maps, truth))
        masked.append(fsc_area(maps, truth, mask=mask))
    return FscAreas(rows, torch.cat(plain), torch.cat(masked))


def latent_score(
    data: FlexData,
    latents: Float[Tensor, "n d"],
    precision: Float[Tensor, "n d d"] | None = None,
    *,
    label: Int[Tensor, "n"] | None = None,
) -> LatentScore:
    """The score of the set's kind.

    With the precisions of their posteriors, latents are measured in mean standard errors, so that a coordinate of which
    the images tell nothing does not hide those that carry the motion, and methods with latents of different scale are
    judged alike. Latents should then have a standard normal prior.

    circle
        Circular correlation of the true angle with that of the latents' first two diffusion coordinates; the origin
        and the direction of counting are free. With several compositions: the mean over them, each alone, weighted by
        its images.
    path
        Spearman's correlation of the true place with the first diffusion coordinate; the direction is free.
    classes
        Adjusted Rand index of the true states with as many classes of the latents, by `latent_mixture.classify` where
        precisions are given, else by k-means; of `label` where the method sorted the images itself.
    cloud
        Neighbourhood similarity over 1 % of the images, with the true distances of the states' atoms; chance is not 0.

    Raises
    ------
    BadInput
        If there is not one latent per image.
    """
    if len(latents) != len(data):
        raise BadInput(
            f"latent_score: {len(latents)} latents of {len(data)} images. Give one per image, in order."
        )
    truth = data.image_coordinate()
    if data.kind == "classes":
        k = len(data.maps)
        if label is None:
            label = k_means(latents, k).label if precision is None else classify(latents, precision, k).label
        return LatentScore("adjusted_rand_index", adjusted_rand_index(label, data.state))
    if precision is not None:
        latents = ErrorUnits.of(precision).coordinates(latents)
    if data.kind == "cloud" or truth is None:
        neighbours = max(1, round(0.01 * len(data)))
        value, chance = neighbourhood_similarity(
            latents, data.state, state_distance(data), neighbours=neighbours
        )
        return LatentScore("neighbourhood_similarity", value, chance)
    if data.kind == "path":
        place = path_coordinate(diffusion_map(latents, components=1)[:, 0])
        return LatentScore("spearman", rank_correlation(place, truth.double()))
    total = 0.0
    for group in torch.unique(data.group[data.state]).tolist():
        rows = torch.nonzero(data.group[data.state] == group)[:, 0]
        angle = circular_coordinate(diffusion_map(latents[rows], components=2))
        total += len(rows) / len(data) * circular_correlation(angle, truth[rows].double())
    return LatentScore("circular_correlation", total)


def state_distance(data: FlexData) -> Float[Tensor, "k k"]:
    """How far the states lie apart: along the circle (radians) or the path, else the RMSD of their atoms in angstrom.

    Infinite between states of different composition. Atoms are not superposed: the states share one frame.
    """
    k = len(data.maps)
    if data.coordinate is not None:
        gap = (data.coordinate[:, None] - data.coordinate).abs().double()
        distance = torch.minimum(gap, 2 * torch.pi - gap) if data.kind == "circle" else gap
    elif data.kind == "classes":
        distance = torch.zeros(k, k, dtype=torch.float64)
    else:
        flat = torch.stack([atoms.position_A.double().flatten() for atoms in data.atoms])
        distance = torch.cdist(flat, flat) / len(data.atoms[0]) ** 0.5
    apart = data.group[:, None] != data.group
    return distance.masked_fill(apart, torch.inf)
