"""Sections of the report of a heterogeneity run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.latent_paths import Series
from cryorbit.inference.flex_analysis import DOUBTFUL, SEEN, FlexAnalysis
from cryorbit.report import flex_figures as figures
from cryorbit.report.film import film_address
from cryorbit.report.page import Picture, Row, Section, text_of

_BENT = 1.6
"""A path through noise alone is about 1.35 times as long as the straight line."""
SHOWN = 5
"""Pictures of a series in the report; its folder has all maps."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FlexPictures:
    """Surfaces drawn for the report, RGBA each, on one scale and at one contour.

    Parameters
    ----------
    pixel_A
        Pixel of the pictures, angstrom.
    groups
        One per group.
    series
        By name ("pc1", "path"): some of the latents, with their places in the series.
    films
        GIFs by the same names.
    motion, fade
        Addresses of the surface coloured by motion, and by how much comes and goes.
    """

    pixel_A: float
    groups: Sequence[np.ndarray]
    series: Mapping[str, Sequence[tuple[int, np.ndarray]]]
    films: Mapping[str, bytes]
    motion: str
    fade: str


@dataclass(frozen=True, eq=False, kw_only=True)
class FlexReading:
    """What the report tells beside the analysis."""

    analysis: FlexAnalysis
    pictures: FlexPictures | None
    chi_square: Float[Tensor, "n"]
    source: str
    pixel_size_A: float
    gaussians: int
    groups_folder: str = "kmeans"
    ends_given: bool = False
    """Whether the path goes between particles that were asked for."""
    command: str = ""
    date: str = ""
    notes: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def _cloud_section(reading: FlexReading) -> Section:
    analysis = reading.analysis
    scores, groups = analysis.cloud.scores(), analysis.groups
    flat = scores[:, :2] if scores.shape[1] > 1 else torch.cat((scores, torch.zeros_like(scores)), 1)
    found = []
    lines = []
    if analysis.path is not None:
        way = analysis.cloud.axes.scores(analysis.cloud.units.coordinates(analysis.path.latent))
        lines = [way[:, :2]] if way.shape[1] > 1 else []
    found.append(
        Picture(
            title="Principal components",
            addresses=(
                figures.cloud_figure(flat, groups.label, groups.particle, names=("PC1", "PC2"), lines=lines),
            ),
            caption="Each dot is a particle, in units of the standard error of its position, coloured by group; a number "
            "marks the particle whose map is shown for the group. Clusters are states apart, a band or a ring is a motion "
            "without steps, a round cloud a few units wide is noise. "
            + ("The line is the path through particles shown below." if lines else ""),
        )
    )
    if analysis.plane is not None:
        found.append(
            Picture(
                title=analysis.plane_name,
                addresses=(
                    figures.cloud_figure(
                        analysis.plane, groups.label, groups.particle, names=("first", "second")
                    ),
                ),
                caption="The same particles laid out by who is near to whom: a curved motion is drawn straight or round. "
                "Distances far apart mean little.",
            )
        )
    variance = analysis.cloud.axes.variance
    found.append(
        Picture(
            title="Variance",
            addresses=(figures.variance_figure(variance, doubtful=DOUBTFUL, seen=SEEN),),
            caption="How far the particles spread along each component, over the error of one. In the shaded range noise "
            "alone explains it; above the dashed line the particles differ.",
        )
    )
    return Section("cloud", "The particles", rows=(Row(tuple(found), "three"),))


def _groups_section(reading: FlexReading) -> Section:
    size = reading.analysis.groups.size
    share = 100 * size / size.sum()
    rows = ()
    if reading.pictures is not None:
        titles = [
            f"{k + 1}: {text_of(int(n))} ({s:.0f} %)"
            for k, (n, s) in enumerate(zip(size, share, strict=True))
        ]
        address = figures.strip_figure(
            reading.pictures.groups,
            titles,
            pixel_A=reading.pictures.pixel_A,
            columns=min(4, max(len(titles), 3)),
            colours=figures.group_colours(len(titles)),
        )
        rows = (
            Row(
                (
                    Picture(
                        title="Map of each group",
                        plot=False,
                        addresses=(address,),
                        caption="What the model shows at the particle nearest to each group's middle; all from one side, "
                        "at one contour and scale. Parts that differ from map to map move or come and go; maps that are "
                        "all alike say that the groups are arbitrary.",
                    ),
                )
            ),
        )
    folder = reading.groups_folder
    lead = (
        f"Files: {folder}/vol_001.mrc, ... and the particles of each group, {folder}/particles_001.star, ..., to be "
        "reconstructed or refined by themselves; groups.csv lists them."
    )
    return Section("groups", "Groups of particles", lead, rows)


def _off(series: Series) -> str:
    far = float(series.off_data.max())
    if series.particle is not None:
        return "Each map is decoded at the latent of a particle."
    return (
        "The maps are decoded at points on the straight axis, not at particles; the point furthest from any particle is "
        f"{far:.1f} standard errors away" + (": there the model guesses." if far > 3 else ".")
    )


def _series_section(reading: FlexReading) -> Section | None:
    pictures = reading.pictures
    if pictures is None:
        return None
    analysis, rows = reading.analysis, []
    for k, series in enumerate(analysis.series):
        rows.append(Row((_strip(reading, f"pc{k + 1}", series, f"Along component {k + 1}"),)))
    if analysis.path is not None:
        rows.append(Row((_strip(reading, "path", analysis.path, "Along a path through the particles"),)))
    lead = (
        "Series of maps, vol_01.mrc to the last, with their latents in latents.csv, in one folder each. In ChimeraX: "
        "open pc1/vol_*.mrc vseries true."
    )
    names = {"pc1": "Component 1", "path": "Path through the particles"}
    films = tuple(
        Picture(
            title=names.get(name, name),
            plot=True,
            addresses=(film_address(gif),),
            caption=f"{name}/film.gif, there and back.",
        )
        for name, gif in pictures.films.items()
    )
    return Section("series", "Motions and changes", lead, (Row(films, "two"), *rows))


def _bent(reading: FlexReading) -> str:
    """A word of caution where the way from end to end of the first component is no straight line."""
    path = reading.analysis.path
    if path is None or reading.ends_given:
        return ""
    points = reading.analysis.cloud.units.coordinates(path.latent)
    ratio = float(path.score[-1] / (points[-1] - points[0]).norm().clamp_min(1e-9))
    if ratio < _BENT:
        return ""
    return (
        f" The way through the particles from end to end is {ratio:.1f} times as long: the motion is curved, maps in the "
        "middle of the straight axis mix what lies on either side of it, and the path below is the better guide."
    )


def _strip(reading: FlexReading, name: str, series: Series, title: str) -> Picture:
    pictures = reading.pictures
    assert pictures is not None  # the section is left out without them
    shown = pictures.series[name]
    words = "{:+.1f}" if name != "path" else "{:.1f}"
    low, high = float(series.score[0]), float(series.score[-1])
    about = (
        f"From the 5 % to the 95 % quantile of the particles, {low:+.1f} to {high:+.1f} standard errors from the mean. "
        if name != "path"
        else f"Particles on the shortest way through the graph of neighbours, {high:.1f} standard errors long in all. "
    )
    return Picture(
        title=title,
        plot=False,
        addresses=(
            figures.strip_figure(
                [picture for _, picture in shown],
                [words.format(float(series.score[k])) for k, _ in shown],
                pixel_A=pictures.pixel_A,
                columns=SHOWN,
            ),
        ),
        caption=about + _off(series) + (_bent(reading) if name == "pc1" else ""),
    )


def _motion_section(reading: FlexReading) -> Section | None:
    if reading.pictures is None:
        return None
    lead = (
        "Along component 1. Files: motion/arrows.bild (open it in ChimeraX over mean.mrc), the same as numbers in "
        "displacement.csv, and displacement.pdb or .cif, a pseudo-atom per Gaussian whose B-factor is 8π²/3 times its mean "
        "squared displacement."
    )
    picture = Picture(
        title="How far each part moves",
        plot=False,
        addresses=(reading.pictures.motion,),
        caption="The map in the middle of the motion, coloured by the root mean square displacement of its Gaussians along "
        "component 1: as in the pictures above, from above, and from the right. What comes and goes is left grey: where "
        "nothing is, a Gaussian's place means nothing.",
    )
    fade = Picture(
        title="What comes and goes",
        plot=False,
        addresses=(reading.pictures.fade,),
        caption="The same, coloured by the share of itself that each part loses along component 1: red parts are absent at "
        "one end.",
    )
    return Section("motion", "Displacement", lead, (Row((picture,)), Row((fade,))))


def _fit_section(reading: FlexReading) -> Section:
    picture = Picture(
        title="Misfit of each particle",
        addresses=(figures.misfit_figure(reading.chi_square),),
        caption="Sum of squares over the noise, per whitened number. A tail to the right holds images that the model does "
        "not explain: junk, wrong poses, or states it has not learned. particles.csv has the numbers (chi_square).",
    )
    return Section("fit", "How well the images are explained", rows=(Row((picture,), ""),))


SECTIONS = (_cloud_section, _groups_section, _series_section, _motion_section, _fit_section)
