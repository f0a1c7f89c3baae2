"""What a heterogeneity run found, made ready to be looked at: axes, groups, series of latents, motion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.latent_mixture import LatentMixture, classify
from cryorbit.analysis.latent_paths import (
    LatentCloud,
    Series,
    component_ends,
    component_series,
    graph_series,
)
from cryorbit.analysis.latents import diffusion_map, k_means, nearest_particles, neighbour_graph, umap_plane
from cryorbit.errors import BadInput
from cryorbit.inference.flex import FlexResult
from cryorbit.inference.flex_decode import Motion, best_view, decode_gaussians, motion_of

Grouping = Literal["kmeans", "mixture", "linear"]
Level = Literal["good", "caution", "bad"]

SEEN, DOUBTFUL = 3.0, 2.0
"""Variance of the latents along an axis, in posterior error variances, from which images differ along it beyond doubt, and
below which noise alone may be all: images of one rigid molecule gave at most 1.8 along the first of 4 and of 10 axes; an
antibody whose Fab goes around 29 and 25 along two; a complex of which two lobes come and go 3.6 and 3.2 along two and 1.2
along the next."""


_NOTHING = 1e-6
"""Variance, in error variances, at which all latents are one."""


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """What is made of the latents of a run."""

    groups: int = 8
    """Into how many groups the particles are sorted."""
    grouping: Grouping = "kmeans"
    """"kmeans": by distance, also where particles lie all along a path; "mixture": states apart from each other, with the
    probability that an image is in its group; "linear": such states by the linear model that the run began with, which tells
    parts that come and go apart more sharply where there are thousands of images."""
    components: int = 3
    """Principal components along which series of maps are made."""
    count: int = 10
    """Maps in each series."""
    snap: bool = False
    """Take the nearest particle's latent for each map of a series along a component, not the point on the straight axis."""
    umap: bool = False
    """Draw the particles by UMAP (needs the package umap-learn), not by a diffusion map."""
    neighbours: int = 15
    """Of each particle in the graph that paths go through."""
    seed: int = 0
    """Of k-means and of the drawing."""

    def __post_init__(self) -> None:
        for name, least in (("groups", 1), ("components", 1), ("count", 2), ("neighbours", 1)):
            if getattr(self, name) < least:
                raise BadInput(f"flex analyze: {name} must be at least {least}, got {getattr(self, name)}.")


@dataclass(frozen=True, eq=False)
class Groups:
    """Particles in groups, largest first.

    Parameters
    ----------
    label
        Group of each particle, from 0, (n,).
    probability
        Of that group, (n,); 1 where groups have borders and not probabilities.
    particle
        The particle nearest to each group's centre, (k,): its latent is the one that is decoded.
    latent
        Latents of those particles, (k, d).
    """

    label: Int[Tensor, "n"]
    probability: Float[Tensor, "n"]
    particle: Int[Tensor, "k"]
    latent: Float[Tensor, "k d"]

    @property
    def size(self) -> Int[Tensor, "k"]:
        """Particles in each."""
        return torch.bincount(self.label, minlength=len(self.particle))


@dataclass(frozen=True, eq=False)
class FlexAnalysis:
    """All that is told of a run.

    Parameters
    ----------
    cloud
        Latents in standard errors, with axes.
    groups
        Of the particles.
    series
        Along each component.
    path
        Particles from one to another; None where there is no way to go.
    plane
        A drawing of the particles in two dimensions, (n, 2), and how it was made; None where all latents are one.
    motion
        Of the Gaussians along the first series.
    view
        Rotation after which the motion is seen best along +z, (3, 3).
    """

    cloud: LatentCloud
    groups: Groups
    series: tuple[Series, ...]
    path: Series | None
    plane: Float[Tensor, "n 2"] | None
    plane_name: str
    motion: Motion
    view: Float[Tensor, "3 3"]


def analyse(
    result: FlexResult, settings: AnalysisSettings, *, ends: tuple[int, int] | None = None
) -> FlexAnalysis:
    """Axes, groups, series and motion of a run.

    Parameters
    ----------
    ends
        Particles, by row, that the path goes from and to; None: the tails of the first component.

    Raises
    ------
    BadInput
        If there are fewer particles than groups, or UMAP is asked for and not installed.
    """
    cloud = LatentCloud.of(result.z, result.precision)
    groups = _groups(result, cloud, settings)
    number = min(settings.components, len(cloud.axes.axes))
    series = tuple(
        component_series(cloud, c, count=settings.count, snap=settings.snap) for c in range(number)
    )
    motion = motion_of(decode_gaussians(result.model, series[0].latent))
    plane, name = _plane(cloud, settings)
    return FlexAnalysis(
        cloud=cloud,
        groups=groups,
        series=series,
        path=_path(cloud, settings, ends),
        plane=plane,
        plane_name=name,
        motion=motion,
        view=best_view(motion),
    )


def _groups(result: FlexResult, cloud: LatentCloud, settings: AnalysisSettings) -> Groups:
    if settings.grouping != "kmeans":
        mixture = states_of(result, settings.groups, linear=settings.grouping == "linear", seed=settings.seed)
        label, probability = mixture.label, mixture.probability.max(1).values
        members = torch.nn.functional.one_hot(label, len(mixture.centre)).to(cloud.points)
        # The particles' own mean: the centre of a class lies further out than posterior means do.
        centre = (members.T @ cloud.points) / members.sum(0)[:, None].clamp_min(1)
    else:
        clusters = k_means(cloud.points, settings.groups, seed=settings.seed)
        label, centre = clusters.label, clusters.centre
        probability = torch.ones(len(label), dtype=torch.float64)
    size = torch.bincount(label, minlength=len(centre))
    order = size.argsort(descending=True, stable=True)
    order = order[size[order] > 0]
    rank = torch.full_like(size, -1)
    rank[order] = torch.arange(len(order))
    label = rank[label]
    particle = torch.stack([_nearest_of(cloud.points, label == g, centre[c]) for g, c in enumerate(order)])
    return Groups(label, probability, particle, result.z[particle])


def states_of(result: FlexResult, k: int, *, linear: bool = False, seed: int = 0) -> LatentMixture:
    """Particles sorted into k states, by the latents of the run or by those of the linear model that it began with.

    What comes and goes adds to a map, so the linear model is the true one of it and its posteriors are exact, but it fits
    noise where images are few. Those of Gaussians hold near an image's own latent only, since Gaussians answer in a bent way
    to z; one precision for all, their mean, sorts better then: a complex of four compositions at an adjusted Rand index of
    0.96, with each image's own 0.40. Sixteen compositions of a ribosome (10,000 images at SNR 0.1): by the linear model
    0.89, by Gaussians 0.72; two of a small complex (240 images): by the linear model 80 % right, by Gaussians 97 %.

    Raises
    ------
    BadInput
        If the run did not begin with the linear model, and its latents are asked for.
    """
    if not linear:
        return classify(result.z, result.precision.mean(0).expand_as(result.precision), k, seed=seed)
    if result.linear is None:
        raise BadInput(
            "flex analyze: the run did not begin with the linear model. Sort by --grouping mixture, or train anew with "
            "--start linear."
        )
    return classify(result.linear.z, result.linear.precision, k, seed=seed)


def _nearest_of(points: Tensor, mask: Tensor, centre: Tensor) -> Tensor:
    """The row, of those in a mask, nearest to a centre."""
    rows = torch.nonzero(mask)[:, 0]
    return rows[nearest_particles(points[rows], centre[None])[0]]


def _path(cloud: LatentCloud, settings: AnalysisSettings, ends: tuple[int, int] | None) -> Series | None:
    start, end = component_ends(cloud, 0) if ends is None else ends
    if start == end and ends is None:
        return None
    graph = neighbour_graph(cloud.points, k=settings.neighbours)
    return graph_series(cloud, graph, start, end, count=settings.count)


def _plane(cloud: LatentCloud, settings: AnalysisSettings) -> tuple[Tensor | None, str]:
    if float(cloud.axes.variance.sum()) < _NOTHING:
        return None, ""
    if settings.umap:
        return umap_plane(cloud.points, seed=settings.seed), "UMAP"
    try:
        return diffusion_map(cloud.points, k=settings.neighbours, seed=settings.seed), "Diffusion map"
    except BadInput:  # too few particles, or most of them in one place: the principal components say so
        return None, ""


def verdict(analysis: FlexAnalysis) -> tuple[Level, str]:
    """Whether the particles differ, and along how many axes, in plain words."""
    variance = analysis.cloud.axes.variance
    seen, doubtful = int((variance > SEEN).sum()), int((variance > DOUBTFUL).sum())
    step = analysis.motion.step_of_those_that_stay_A()
    change = f"half of the Gaussians move by more than {float(step.median()):.1f} Å, one by {float(step.max()):.0f} Å"
    fading = float((analysis.motion.fade > 0.5).double().mean())
    if fading > 0.01:
        change += f", and {100 * fading:.0f} % of them come or go"
    first = float(variance[0])
    if seen:
        axes = "one axis" if seen == 1 else f"{seen} axes"
        return "good", (
            f"The particles differ along {axes} by more than noise explains: their latents spread by {first:.1f} error "
            f"variances along the first. Along it, {change}."
        )
    if doubtful:
        return "caution", (
            f"The particles may differ: their latents spread by {first:.1f} error variances along the first axis, which "
            f"noise alone may do in a small data set. Along it, {change}. Compare the maps of the groups with "
            "reconstructions of their particles."
        )
    return "bad", (
        f"No difference between the particles is shown: their latents spread by {first:.1f} error variances at most, as "
        f"noise alone does. What the pictures show is not to be trusted: along the first axis, {change}."
    )
