"""The report of a heterogeneity run, from its analysis."""

from __future__ import annotations

import os
from typing import Literal

from cryorbit.inference.flex_analysis import SEEN, verdict
from cryorbit.io.atomic import atomic_path
from cryorbit.report.claims import Claim
from cryorbit.report.flex_sections import SECTIONS, FlexPictures, FlexReading
from cryorbit.report.html import Card, page_html
from cryorbit.report.page import text_of
from cryorbit.report.style import house_style

__all__ = ["FlexPictures", "FlexReading", "write_flex_report"]

_WORDS = {"good": "Heterogeneous", "caution": "With reservations", "bad": "No heterogeneity shown"}


def write_flex_report(path: str | os.PathLike[str], reading: FlexReading) -> None:
    """One HTML file that needs nothing else, all at once or not at all.

    Raises
    ------
    BadFile
        If the file cannot be written.
    """
    level, words = verdict(reading.analysis)
    with house_style():
        sections = [s for make in SECTIONS if (s := make(reading)) is not None]
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
    variance, step = analysis.cloud.axes.variance, analysis.motion.step_of_those_that_stay_A()
    return [
        Card("Particles", text_of(len(analysis.cloud.points)), f"{reading.pixel_size_A:.4g} Å per pixel"),
        Card("Axes beyond doubt", str(int((variance > SEEN).sum())), f"of {len(variance)} latent numbers"),
        Card(
            "Largest motion",
            f"{float(step.max()):.0f} Å",
            f"end to end of PC1; half of the Gaussians move {float(step.median()):.1f} Å or more",
        ),
        Card(
            "Come and go",
            f"{100 * float((analysis.motion.fade > 0.5).double().mean()):.0f} %",
            "of the Gaussians lose more than half of themselves along PC1",
        ),
        Card(
            "Groups",
            str(len(analysis.groups.particle)),
            f"{int(analysis.groups.size.min())} particles or more",
        ),
        Card("Gaussians", text_of(reading.gaussians), ""),
        Card("Misfit", f"{float(reading.chi_square.mean()):.3f}", "χ² per number; 1: noise alone is left"),
    ]


def _claims(level: Literal["good", "caution", "bad"]) -> list[Claim]:
    """What the figures stand on."""
    return [
        Claim(
            "That particles differ",
            {"good": "strong", "caution": "open", "bad": "not shown"}[level],
            "Latents were read from the images that the model was trained on, so noise spreads them too; only a spread "
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
