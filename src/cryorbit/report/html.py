"""One self-contained HTML file from a run's nouns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from cryorbit.analysis.fsc import fourier_shell_correlation, phase_randomised_fsc
from cryorbit.analysis.masks import automatic_mask
from cryorbit.errors import BadInput
from cryorbit.io.atomic import atomic_path
from cryorbit.report.claims import Claim, claims
from cryorbit.report.data import ReportData
from cryorbit.report.page import Section, text_of
from cryorbit.report.pose_sections import looks_mirrored
from cryorbit.report.sections import sections
from cryorbit.report.style import house_style

_VERDICT_WORDS = {
    "good": "Converged",
    "caution": "With reservations",
    "bad": "Not converged",
    "none": "Result",
}


@dataclass(frozen=True)
class Card:
    """A number at the top of the page."""

    label: str
    value: str
    hint: str = ""


def with_curves(data: ReportData) -> ReportData:
    """The same with the half-map curves computed where the half maps are given and the curves are not."""
    if data.half_maps is None:
        return data
    first, second = data.half_maps
    half = data.half_curve or fourier_shell_correlation(first, second)
    masked = data.masked_curve
    if masked is None:
        try:
            mask = automatic_mask(data.map)
        except BadInput:
            return replace(data, half_curve=half)
        masked = phase_randomised_fsc(first, second, mask, torch.Generator().manual_seed(0))
    return replace(data, half_curve=half, masked_curve=masked)


def _duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> _duration(154.0)
    '2 min 34 s'
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _resolution_card(data: ReportData) -> Card | None:
    masked = data.masked_curve
    curve = data.half_curve if masked is None else masked.corrected
    if curve is None:
        return None
    resolution = curve.resolution_A(0.143)
    if not math.isfinite(resolution):
        return Card("Resolution", "none", "half maps agree nowhere above 0.143")
    kind = "FSC 0.143 of half maps, " + ("gold standard" if data.gold_standard else "not gold standard")
    if masked is not None:
        without = masked.unmasked.resolution_A(0.143)
        kind += f"; {without:.1f} Å without a mask" if math.isfinite(without) else ""
    limited = curve.nyquist_limited(0.143)
    return Card("Resolution", f"{'≤ ' if limited else ''}{resolution:.1f} Å", kind)


def cards(data: ReportData) -> list[Card]:
    """The numbers a reader wants first."""
    found = [_resolution_card(data)]
    if data.truth_curve is not None:
        resolution = data.truth_curve.resolution_A(0.5)
        value = f"{resolution:.1f} Å" if math.isfinite(resolution) else "none"
        found.append(Card("Truth", value, "FSC 0.5 with the simulated map"))
    mse = data.evaluation.get("mse")
    if isinstance(mse, int | float):
        angle = data.evaluation.get("rotation_error_deg_median")
        hint = "mean |R − R′|², chance is 6"
        if isinstance(angle, int | float):
            hint = f"median angle {angle:.1f}°"
        found.append(Card("Pose error", f"{mse:.3g}", hint))
    n = data.n_particles or (len(data.pose) if data.pose is not None else None)
    if n is not None:
        sure = "" if data.confidence is None else f"median confidence {float(data.confidence.median()):.2f}"
        found.append(Card("Particles", text_of(n), sure))
    edge = data.map.box * data.map.pixel_size_A
    found.append(
        Card("Box", f"{data.map.box} px", f"{data.map.pixel_size_A:.4g} Å per pixel, {edge:.0f} Å wide")
    )
    found.append(Card("Symmetry", data.symmetry, ""))
    if data.seconds is not None:
        found.append(Card("Time", _duration(data.seconds), "wall time"))
    return [card for card in found if card is not None]


def _notes(data: ReportData) -> list[str]:
    """The run's notes and what the curves themselves warn of."""
    notes = list(data.notes)
    curve = data.half_curve if data.masked_curve is None else data.masked_curve.corrected
    if curve is not None:
        if curve.nyquist_limited(0.143):
            notes.append(
                "The half-map FSC stays above 0.143 up to the last shell: the pixel size sets the limit."
            )
        elif curve.recrosses(0.143):
            notes.append(
                "The half-map FSC rises above 0.143 again after its first crossing; the first one counts."
            )
    if looks_mirrored(data):
        notes.append("The map equals its own mirror image: the poses very likely mix both hands.")
    if data.masked_curve is not None and data.masked_curve.mask_too_tight():
        notes.append(
            "The mask alone correlates the half maps at the final resolution: take a softer, wider mask."
        )
    return notes


def page_html(
    *,
    title: str,
    verdict: str,
    verdict_level: str,
    verdict_word: str,
    cards: Sequence[Card],
    notes: Sequence[str],
    sections: Sequence[Section],
    claims: Sequence[Claim],
    command: str,
    versions: Mapping[str, object],
    settings: Mapping[str, object],
    date: str,
) -> str:
    """A page of the house's form as text: verdict, cards, sections, claims, how it was made."""
    environment = Environment(
        loader=PackageLoader("cryorbit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        subtitle=date,
        verdict=verdict,
        verdict_level=verdict_level,
        verdict_word="" if verdict.lower().startswith(verdict_word.lower()) else verdict_word,
        cards=cards,
        notes=notes,
        sections=sections,
        claims=claims,
        command=command,
        versions=[(str(k), text_of(v)) for k, v in versions.items()],
        settings=[(str(k), text_of(v)) for k, v in settings.items()],
        date=date,
    )


def render_html(data: ReportData) -> str:
    """The whole page as text."""
    data = with_curves(data)
    with house_style():
        shown = sections(data)
    return page_html(
        title=data.title,
        verdict=data.verdict,
        verdict_level=data.verdict_level,
        verdict_word=_VERDICT_WORDS[data.verdict_level],
        cards=cards(data),
        notes=_notes(data),
        sections=shown,
        claims=claims(data),
        command=data.command,
        versions=data.versions,
        settings=data.settings,
        date=data.date,
    )


def write_report(path: str | os.PathLike[str], data: ReportData) -> None:
    """Write the report of a run as one HTML file that needs nothing else, all at once or not at all.

    Raises
    ------
    BadFile
        If the file cannot be written.
    """
    page = render_html(data)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
