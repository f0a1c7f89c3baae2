"""The report of a reconstruction with a learned prior."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cryorbit.data import Volume
from cryorbit.inference.half_posteriors import PriorReconstruction
from cryorbit.io.atomic import atomic_path
from cryorbit.report import prior_figures as figures
from cryorbit.report.claims import Claim
from cryorbit.report.figures_curves import correlations_figure
from cryorbit.report.html import Card, page_html
from cryorbit.report.page import Picture, Row, Section, text_of
from cryorbit.report.style import house_style

STRONG = 3.0
"""Standard deviations from which on a disagreement is counted."""
_MANY = 0.05
"""Share of the particle's voxels with one from which on the verdict has reservations; chance gives 0.003."""
_WORSE = 3.0
"""Standard errors of the difference from which on one map's misfit is counted as above another's."""
_NAMES = {"data": "Data only", "posterior": "Posterior", "prior": "Prior only"}
_TOO_SMALL = ("diffpir", "diffpir-spectrum", "dps", "dps-fixed-step")
"""Samplers whose samples scatter less than the posterior does."""
_NOISE_OFF = 0.02
"""Misfit of held-out images away from 1 from which on it is told."""
_LITTLE = 0.2
"""Error of the prior, standard deviations, below which its draws do not make up for that."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PriorReading:
    """What the report tells."""

    result: PriorReconstruction
    source: str
    prior: str
    method: str
    beyond_data: bool = False
    seconds: float | None = None
    command: str = ""
    date: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def maps(self) -> dict[str, Volume]:
        """The three maps by the names they have on the page."""
        r = self.result
        return {
            _NAMES["data"]: r.volume(r.data_only),
            _NAMES["posterior"]: r.volume(r.mean),
            _NAMES["prior"]: r.volume(r.prior_only),
        }


def strong_share(result: PriorReconstruction) -> float:
    """Share of the particle's voxels where posterior and data-only map disagree strongly."""
    level = figures.density_level(result.mean)
    inside = result.mean > level
    return float((result.disagreement[inside].abs() > STRONG).double().mean()) if bool(inside.any()) else 0.0


def verdict(result: PriorReconstruction) -> tuple[Literal["good", "caution", "bad"], str]:
    """How far the posterior can be trusted, in words."""
    if not result.data_curve.resolution_A(0.143) < 0.5 * result.grid.box * result.grid.voxel_size_A:
        return "bad", (
            "The halves of the data agree on next to nothing by themselves: what is shown comes from the prior. Give more "
            "images, or look at the poses."
        )
    words = _gain_words(result.gain_in_errors)
    if result.gain_in_errors < -_WORSE:
        return "caution", words + " The prior does not suit this molecule: believe the data-only map."
    if strong_share(result) > _MANY:
        return "caution", words + (
            f" In {100 * strong_share(result):.0f} % of the particle it differs by more than noise explains: see where."
        )
    return "good", words


def _gain_words(gain: float) -> str:
    """What held-out images say of the posterior, `gain` standard errors better than the map without a prior."""
    size = f"{abs(gain):.1f} standard errors {'better' if gain > 0 else 'worse'}"
    if abs(gain) > _WORSE:
        return f"Images that were not used are explained {size} by the posterior than by the map without a prior."
    return (
        f"Images that were not used are explained no {'worse' if gain > 0 else 'better'} by the posterior than by the map "
        f"without a prior: {size}, which may be chance."
    )


def write_prior_report(path: str | os.PathLike[str], reading: PriorReading) -> None:
    """One HTML file that needs nothing else, all at once or not at all.

    Raises
    ------
    BadFile
        If the file cannot be written.
    """
    level, words = verdict(reading.result)
    with house_style():
        sections = [_maps(reading), _disagreement(reading), _halves(reading), _held_out(reading)]
    page = page_html(
        title=f"Posterior of {reading.source}",
        verdict=words,
        verdict_level=level,
        verdict_word={"good": "Prior and data agree", "caution": "With reservations", "bad": "Prior alone"}[
            level
        ],
        cards=_cards(reading),
        notes=_notes(reading),
        sections=sections,
        claims=_claims(),
        command=reading.command,
        versions=reading.versions,
        settings=reading.settings,
        date=reading.date,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _notes(reading: PriorReading) -> list[str]:
    result = reading.result
    notes = []
    if reading.method in _TOO_SMALL and result.prior_error < _LITTLE:
        notes.append(
            f"Chains of {reading.method} scatter less than the posterior does: the spread is about 0.7 of the right one "
            "where the prior decides. For error bars use --method pigdm or diffpir-spectrum-draw."
        )
    misfit = result.chi_square["posterior"]
    if abs(misfit - 1) > _NOISE_OFF:
        side, trust = ("too large", "little") if misfit < 1 else ("too small, or the poses are off", "much")
        notes.append(
            f"Images that were not used have χ² {misfit:.3f} per number, not 1: the noise measured outside the particle is "
            f"{side}, and the data are trusted about {100 * abs(misfit - 1):.0f} % too {trust}."
        )
    if reading.beyond_data:
        notes.append(
            "Detail finer than the data's own resolution was kept (--beyond-data): the prior alone vouches for it."
        )
    if abs(math.log(max(result.gain_of_posterior, 1e-9))) > 0.15:
        notes.append(
            f"The images would have the posterior {result.gain_of_posterior:.2f} times as strong: the grey scale (--gain "
            f"{result.gain:.3g}) or the prior is off."
        )
    return notes


def _cards(reading: PriorReading) -> list[Card]:
    r = reading.result
    curve = r.data_curve
    resolution = curve.resolution_A(0.143)
    limited = curve.nyquist_limited(0.143)
    shown = f"{'≤ ' if limited else ''}{resolution:.1f} Å" if math.isfinite(resolution) else "none"
    cut = "nothing is cut off there" if r.cutoff_A is None else "maps are cut off there"
    found = [
        Card("Data reach", shown, f"FSC 0.143 of halves without a prior; {cut}"),
        Card("Particles", text_of(r.images), "in two halves"),
        Card(
            "Map",
            f"{r.grid.box} × {r.grid.voxel_size_A:.3g} Å",
            f"low pass of the prior {r.grid.resolution_A:.1f} Å",
        ),
        Card(
            "Samples", str(len(r.samples)), f"{reading.method}, {r.network_passes} network passes each in all"
        ),
        Card(
            "Prior's error",
            f"{r.prior_error:.2g} sd",
            "that the data may correct; "
            + ("chosen" if reading.settings.get("prior_error") is None else "given"),
        ),
        Card(
            "Grey scale",
            f"{r.gain:.3g} / V",
            f"{_gain_from(reading)}; posterior against images: {r.gain_of_posterior:.2f}",
        ),
        Card(
            "Strong disagreement", f"{100 * strong_share(r):.1f} %", f"of the particle beyond {STRONG:g} sd"
        ),
    ]
    if reading.seconds is not None:
        found.append(Card("Time", f"{reading.seconds:.0f} s", "wall time"))
    return found


def _gain_from(reading: PriorReading) -> str:
    return (
        "of the file's median image, fitted" if reading.settings.get("gain") is None else "of the file, given"
    )


def _maps(reading: PriorReading) -> Section:
    r = reading.result
    maps = reading.maps()
    captions = {
        _NAMES[
            "data"
        ]: "What the images say by themselves: the Wiener filter with the mean spectrum of proteins.",
        _NAMES["posterior"]: f"Images and prior together: mean of {len(r.samples)} samples.",
        _NAMES[
            "prior"
        ]: "One draw of the prior at the same resolution without any data: what it would invent.",
    }
    drawn = figures.surfaces(maps, _NAMES["posterior"])
    captions = {
        name: words if drawn[name] else f"{words} Nothing of it reaches the density that is drawn."
        for name, words in captions.items()
    }
    row = Row(
        tuple(
            Picture(title=name, caption=captions[name], addresses=drawn[name], plot=False) for name in maps
        ),
        "three",
    )
    slices = Picture(
        title="Central sections, and the spread of the samples",
        caption="One grey scale for the three maps. The spread is the standard deviation over the samples, white to blue up "
        f"to {float(r.spread.max()):.2g} V: where it is large, neither images nor prior decide.",
        addresses=(figures.sections_figure(maps, r.volume(r.spread)),),
        plot=False,
    )
    lead = (
        "All three at the resolution that the data reach by themselves, drawn at one density and one scale, from +z and "
        "from +x. Files: posterior.mrc, data_only.mrc, prior_only.mrc, spread.mrc, samples/."
    )
    if r.cutoff_A is None:
        lead = lead.replace(
            "All three at the resolution that the data reach by themselves",
            "All three as the prior's voxels hold them",
        )
    return Section("maps", "Data, posterior, prior", lead, (row, Row((slices,))))


def _disagreement(reading: PriorReading) -> Section:
    r = reading.result
    picture = Picture(
        title="Posterior less data-only map, over the error of both",
        caption=f"Blue: the prior added density; orange: it took some away. Beyond ±{STRONG:g} noise does not explain it; "
        f"inside the particle that is {100 * strong_share(r):.1f} % of the voxels. File: disagreement.mrc.",
        addresses=(figures.disagreement_figure(r.volume(r.disagreement)),),
        plot=False,
    )
    lead = "Look here before believing a feature: where it is coloured, it stands on the prior and not on the images."
    return Section("disagreement", "Where they disagree", lead, (Row((picture,)),))


def _halves(reading: PriorReading) -> Section:
    r = reading.result
    curves = {"halves, data only": r.data_curve, "halves, posterior": r.posterior_curve}
    picture = Picture(
        title="Correlation of half sets",
        caption="Each half of the images by itself, without and with the prior. Shaded: beyond the data's own resolution.",
        addresses=(correlations_figure(curves, end_A=r.cutoff_A),),
        tag="shared prior",
        tag_kind="not",
    )
    lead = (
        "The halves' images are independent but both posteriors lean on the same prior, so their correlation counts what "
        "the prior adds: it tells how reproducible the posterior is, not its resolution. The resolution is that of the "
        "data-only curve. Files: fsc.star, fsc_posterior.star."
    )
    return Section("halves", "Agreement of halves", lead, (Row((picture,)),))


def _held_out(reading: PriorReading) -> Section:
    r = reading.result
    names = {"empty": "an empty map", "data only": "the data-only map", "posterior": "the posterior"}
    rows = tuple(
        (f"Of {names[key]}", f"{value:.5f}", "" if key == "data only" else f"{r.errors_above(key):+.1f}")
        for key, value in r.chi_square.items()
    )
    lead = (
        "Misfit χ² of each half's images to maps made of the other half, per number compared. Of the true map it is 1 if "
        f"the noise spectra are right, give or take {math.sqrt(2 / max(r.numbers, 1.0)):.1g}; lower is better. The noise of "
        "these images is in all three and cancels in differences: their standard errors are smaller."
    )
    return Section(
        "held_out",
        "Images that were not used",
        lead,
        (),
        rows,
        ("Misfit", "χ² per number", "standard errors above data only"),
    )


def _claims() -> list[Claim]:
    return [
        Claim("Resolution of the data", "independent halves", "No prior enters the data-only curve.", "gold"),
        Claim(
            "Features of the posterior that the data-only map lacks",
            "prior's view",
            "They are what proteins the prior has seen would have there. Confirm them with more images.",
        ),
        Claim(
            "Correlation of posterior halves",
            "not a resolution",
            "Both halves lean on the same prior, which agrees with itself.",
        ),
        Claim("Misfit of held-out images", "independent", "The maps had not seen these images.", "gold"),
    ]
