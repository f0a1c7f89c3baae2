"""The report of a heterogeneity run, from its analysis."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.latent_paths import Series
from cryorbit.inference.flex_analysis import DOUBTFUL, SEEN, FlexAnalysis, verdict
from cryorbit.io.atomic import atomic_path
from cryorbit.report import flex_figures as figures
from cryorbit.report.claims import Claim
from cryorbit.report.html import Card, page_html
from cryorbit.report.page import Picture, Row, Section, text_of
from cryorbit.report.style import house_style

_WORDS = {"good": "Heterogeneous", "caution": "With reservations", "bad": "No heterogeneity shown"}
_SHOWN = 5
"""Pictures of a series in the report; its folder has all maps."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FlexPictures:
    """Surfaces drawn for the report, RGBA each, on one scale and at one contour.

    Parameters
    ----------
    groups
        One per group.
    series
        By name ("pc1", "path"): one per latent.
    films
        GIFs by the same names.
    motion
        Address of the surface coloured by motion.
    """

    stage: figures.Stage
    groups: Sequence
    series: Mapping[str, Sequence]
    films: Mapping[str, bytes]
    motion: str


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
    command: str = ""
    date: str = ""
    notes: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def write_flex_report(path: str | os.PathLike[str], reading: FlexReading) -> None:
    """One HTML file that needs nothing else, all at once or not at all.

    Raises
    ------
    BadFile
        If the file cannot be written.
    """
    level, words = verdict(reading.analysis)
    with house_style():
        sections = [s for make in _SECTIONS if (s := make(reading)) is not None]
    page = page_html(
        title=f"Heterogeneity of {reading.source}",
        verdict=words,
        verdict_level=level,
        verdict_word=_WORDS[level],
        cards=_cards(reading),
        notes=list(reading.notes),
        sections=sections,
        claims=_claims(level),
        command=reading.command,
        versions=reading.versions,
        settings=reading.settings,
        date=reading.date,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _cards(reading: FlexReading) -> list[Card]:
    analysis = reading.analysis
    variance, step = analysis.cloud.axes.variance, analysis.motion.step_A.norm(dim=1)
    return [
        Card("Particles", text_of(len(analysis.cloud.points)), f"{reading.pixel_size_A:.4g} Å per pixel"),
        Card("Axes beyond doubt", str(int((variance > SEEN).sum())), f"of {len(variance)} latent numbers"),
        Card(
            "Largest motion",
            f"{float(step.max()):.0f} Å",
            f"end to end of PC1; half of the Gaussians move {float(step.median()):.1f} Å or more",
        ),
        Card(
            "Groups",
            str(len(analysis.groups.particle)),
            f"{int(analysis.groups.size.min())} particles or more",
        ),
        Card("Gaussians", text_of(reading.gaussians), ""),
        Card("Misfit", f"{float(reading.chi_square.mean()):.3f}", "χ² per number; 1: noise alone is left"),
    ]


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
            title="Particles along the principal components",
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
            edge_A=reading.pictures.stage.edge_A,
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
        rows.append(Row((_strip(pictures, f"pc{k + 1}", series, f"Along component {k + 1}"),)))
    if analysis.path is not None:
        rows.append(Row((_strip(pictures, "path", analysis.path, "Along a path through the particles"),)))
    lead = (
        "Series of maps, vol_01.mrc to the last, with their latents in latents.csv, in one folder each. In ChimeraX: "
        "open pc1/vol_*.mrc vseries true."
    )
    names = {"pc1": "Component 1", "path": "Path through the particles"}
    films = tuple(
        Picture(
            title=names.get(name, name),
            plot=True,
            addresses=(figures.film_address(gif),),
            caption=f"{name}/film.gif, there and back.",
        )
        for name, gif in pictures.films.items()
    )
    return Section("series", "Motions and changes", lead, (Row(films, "two"), *rows))


def _strip(pictures: FlexPictures, name: str, series: Series, title: str) -> Picture:
    shown = torch.linspace(0, len(series.score) - 1, min(_SHOWN, len(series.score))).round().long().tolist()
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
                [pictures.series[name][k] for k in shown],
                [words.format(float(series.score[k])) for k in shown],
                edge_A=pictures.stage.edge_A,
                columns=_SHOWN,
            ),
        ),
        caption=about + _off(series),
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
        "component 1: as in the pictures above, from above, and from the right. Where parts come and go the Gaussians may "
        "move to where nothing is: read motion only where the series shows it.",
    )
    return Section("motion", "Displacement", lead, (Row((picture,)),))


def _fit_section(reading: FlexReading) -> Section:
    picture = Picture(
        title="Misfit of each particle",
        addresses=(figures.misfit_figure(reading.chi_square),),
        caption="Sum of squares over the noise, per whitened number. A tail to the right holds images that the model does "
        "not explain: junk, wrong poses, or states it has not learned. particles.csv has the numbers (chi_square).",
    )
    return Section("fit", "How well the images are explained", rows=(Row((picture,), ""),))


_SECTIONS = (_cloud_section, _groups_section, _series_section, _motion_section, _fit_section)


def _claims(level: Literal["good", "caution", "bad"]) -> list[Claim]:
    """What the figures stand on."""
    return [
        Claim(
            "That particles differ",
            {"good": "strong", "caution": "open", "bad": "not shown"}[level],
            "Latents were read from the images that the model was trained on, so noise spreads them too; only a spread far "
            "beyond the error counts. The limits stand on simulated images of one rigid molecule.",
            "gold" if level == "good" else "not",
        ),
        Claim(
            "Maps of groups and series",
            "model's view",
            "They are drawn by the model at a latent, not reconstructed from images: they show no more detail than its "
            "Gaussians and may show less than is there. Reconstruct a group's particles to confirm a state.",
        ),
        Claim(
            "Displacements",
            "model's view",
            "Images fix the density, not which Gaussian is where: along a smooth surface Gaussians may slide. Trust motions "
            "of whole parts.",
        ),
    ]
