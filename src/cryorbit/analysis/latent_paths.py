"""Series of latents to look at: along a principal component, between two particles; and particles chosen by coordinates."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from cryorbit.analysis.latent_units import ErrorUnits
from cryorbit.analysis.latents import LatentAxes, graph_path, latent_axes, nearest_particles
from cryorbit.errors import BadInput

_COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True, eq=False)
class LatentCloud:
    """The latents of all particles in posterior standard errors, with their principal axes.

    Parameters
    ----------
    units
        From latents to standard errors and back.
    points
        Latents in standard errors, (n, d).
    axes
        Principal axes of `points`.
    """

    units: ErrorUnits
    points: Float[Tensor, "n d"]
    axes: LatentAxes

    @classmethod
    def of(cls, latents: Float[Tensor, "n d"], precision: Float[Tensor, "n d d"]) -> LatentCloud:
        """From posterior means and precisions."""
        units = ErrorUnits.of(precision)
        points = units.coordinates(latents)
        return cls(units, points, latent_axes(points))

    def scores(self) -> Float[Tensor, "n c"]:
        """Principal coordinates of the particles, standard errors."""
        return self.axes.scores(self.points)

    def off_data(self, points: Float[Tensor, "m d"]) -> Float[Tensor, "m"]:
        """Distance of each point from the nearest particle, standard errors."""
        return (points - self.points[nearest_particles(self.points, points)]).norm(dim=1)


@dataclass(frozen=True, eq=False)
class Series:
    """Latents in an order worth looking at.

    Parameters
    ----------
    latent
        What is decoded, (m, d).
    score
        Place along the series: the principal coordinate, or the way gone, in standard errors; (m,).
    off_data
        Distance from the nearest particle, standard errors; (m,).
    particle
        The particles that the latents are those of, (m,); None where they lie between particles.
    """

    latent: Float[Tensor, "m d"]
    score: Float[Tensor, "m"]
    off_data: Float[Tensor, "m"]
    particle: Int[Tensor, "m"] | None = None


def component_series(
    cloud: LatentCloud, component: int, *, count: int = 10, snap: bool = False, ends: float = 0.05
) -> Series:
    """Latents along a principal component, evenly from the quantile `ends` to 1 - `ends` of the particles' scores.

    They lie on the straight axis through the mean, all other components at 0; where the cloud is curved that line leaves
    it, as `off_data` tells.

    Parameters
    ----------
    component
        From 0, largest variance first.
    snap
        Replace each by the latent of the nearest particle.

    Raises
    ------
    BadInput
        If there is no such component, or fewer than two latents are asked for.
    """
    if not 0 <= component < len(cloud.axes.axes) or count < 2:
        raise BadInput(
            f"component_series: component {component + 1} of {len(cloud.axes.axes)}, {count} latents. Ask for at least two "
            "latents of a component that there is."
        )
    scores = cloud.scores()[:, component]
    low, high = torch.quantile(scores, torch.tensor([ends, 1 - ends], dtype=scores.dtype)).tolist()
    wanted = torch.zeros(count, len(cloud.axes.axes), dtype=scores.dtype)
    wanted[:, component] = torch.linspace(low, high, count, dtype=scores.dtype)
    points = cloud.axes.latents(wanted)
    rows = nearest_particles(cloud.points, points) if snap else None
    if rows is not None:
        points = cloud.points[rows]
    score = cloud.axes.scores(points)[:, component]
    return Series(cloud.units.latents(points), score, cloud.off_data(points), rows)


def component_ends(cloud: LatentCloud, component: int, *, ends: float = 0.05) -> tuple[int, int]:
    """The particles nearest the middle of the cloud's tails along a component: where a path from end to end begins."""
    scores = cloud.scores()[:, component]
    low, high = torch.quantile(scores, torch.tensor([ends, 1 - ends], dtype=scores.dtype))
    tails = (cloud.points[scores <= low].mean(0), cloud.points[scores >= high].mean(0))
    first, last = nearest_particles(cloud.points, torch.stack(tails)).tolist()
    return first, last


def graph_series(cloud: LatentCloud, graph: csr_array, start: int, end: int, *, count: int = 10) -> Series:
    """Particles on the way from one to another through the graph; of a longer way `count` of them, evenly by distance.

    Parameters
    ----------
    graph
        `neighbour_graph` of the cloud's points.

    Raises
    ------
    BadInput
        If an end is no particle of the graph, or both are one.
    """
    if start == end:
        raise BadInput("graph_series: the path begins and ends at one particle. Name two.")
    rows = graph_path(graph, start, end)
    steps = (cloud.points[rows[1:]] - cloud.points[rows[:-1]]).norm(dim=1)
    way = torch.cat((steps.new_zeros(1), steps.cumsum(0)))
    wanted = torch.linspace(0, float(way[-1]), min(count, len(rows)), dtype=way.dtype)
    kept = torch.unique((way[None] - wanted[:, None]).abs().argmin(1))
    rows, way = rows[kept], way[kept]
    return Series(cloud.units.latents(cloud.points[rows]), way, torch.zeros_like(way), rows)


def choose(
    expression: str, columns: Mapping[str, Float[Tensor, "n"] | Int[Tensor, "n"]]
) -> Bool[Tensor, "n"]:
    """Where comparisons joined by "and" hold: "pc1 < 0 and cluster == 3".

    Parameters
    ----------
    columns
        What may be compared with a number, by name.

    Raises
    ------
    BadInput
        If a part is no comparison of a known column with a number.

    >>> choose("pc1<0", {"pc1": torch.tensor([-1.0, 2.0])}).tolist()
    [True, False]
    """
    found = None
    for part in re.split(r"\s+and\s+|\s*&\s*", expression.strip()):
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*", part)
        if match is None or match[1] not in columns:
            raise BadInput(
                f"selection {part!r} is not a comparison of {', '.join(columns)} with a number. Write 'pc1 < 0', or several "
                "joined by 'and'."
            )
        try:
            number = float(match[3])
        except ValueError as error:
            raise BadInput(f"selection {part!r}: {match[3]} is not a number.") from error
        holds = _COMPARE[match[2]](columns[match[1]], number)
        found = holds if found is None else found & holds
    assert found is not None  # a split has at least one part
    return found
