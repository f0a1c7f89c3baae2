"""The report's section on postprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryorbit.report import postprocess_figures as figures
from cryorbit.report.data import PostprocessReading, ReportData
from cryorbit.report.page import Picture, Row, Section, text_of

_VIEWS = {"front": "from +z", "side": "from +x", "top": "from +y"}


def postprocess_section(data: ReportData) -> Section | None:
    """Sharpened map, Guinier plot, local resolution, correlation by direction, numbers."""
    reading = data.postprocessed
    if reading is None:
        return None
    rows = [*_surface_rows(reading)]
    if reading.local is not None:
        rows.append(Row((_sections(reading),)))
    rows.append(Row((_guinier(reading), *_cones(reading)), "three"))
    lead = (
        "The mean of the half maps, weighted by what they agree on, sharpened and low-passed at the resolution "
        "where they cease to. Files: postprocess.mrc, mask.mrc, local_resolution.mrc, fsc.star, fsc.xml (for EMDB)."
    )
    return Section(
        "postprocess",
        "Sharpened map",
        lead,
        tuple(rows),
        _table(reading.facts),
        ("Quantity", "Value"),
    )


def _surface_rows(reading: PostprocessReading) -> list[Row]:
    drawn = None if reading.local is None else figures.local_surface(reading)
    if drawn is None:
        return []
    views, level, edge_A = drawn
    assert reading.local is not None
    low, high = figures.resolution_range(reading.local)
    caption = (
        f"The sharpened map within its mask at density {level:.3g}; each picture is {edge_A:.0f} Å wide. Blue is "
        f"resolved to {low:.1f} Å or better, red to {high:.1f} Å or worse. A well refined map is blue at its core; "
        "red arms are flexible, badly occupied or not well aligned."
    )
    views = tuple((_VIEWS[name], address) for name, address in views.items())
    return [Row((Picture("Surface, coloured by local resolution", caption, views=views),))]


def _sections(reading: PostprocessReading) -> Picture:
    local: Any = reading.facts.get("local_resolution") or {}
    threshold = local.get("threshold", 0.5)
    return Picture(
        title="Local resolution",
        plot=False,
        addresses=(figures.local_sections_figure(reading),),
        caption=f"Where the half maps' correlation within a moving window falls below {threshold:g}, in the three "
        "central sections and over the mask; the dashed line is the resolution of the whole map (at 0.143, so it "
        "need not lie in the middle).",
    )


def _guinier(reading: PostprocessReading) -> Picture:
    fit: Any = reading.facts.get("guinier_fit")
    if fit:
        words = (
            f"The line through {fit['from_A']:.1f} to {fit['to_A']:.1f} Å gives a B-factor of "
            f"{fit['b_factor_A2']:.0f} Å² (correlation {fit['correlation']:.2f})."
        )
    else:
        words = "No line was fitted: too few shells beyond 10 Å."
    return Picture(
        title="Guinier plot",
        addresses=(figures.guinier_figure(reading),),
        caption=f"Amplitude by shell, before and after weighting. {words} After sharpening, the signal should run "
        "level.",
    )


def _cones(reading: PostprocessReading) -> tuple[Picture, Picture]:
    facts: Any = reading.facts["cone_fsc"]
    best, middle, worst = (f"{v:.2f} Å" if v is not None else "nothing" for v in facts["resolution_A"])
    return (
        Picture(
            title="Correlation by direction",
            addresses=(figures.cone_curves_figure(reading),),
            caption=f"The half maps' FSC in cones of {facts['half_angle_deg']:.0f}° about 96 axes: {best} along the "
            f"best, {middle} in the middle, {worst} along the worst. Sphericity {facts['sphericity']:.2f} (1: all "
            "directions alike).",
        ),
        Picture(
            title="Resolution on the sphere",
            addresses=(figures.cone_sphere_figure(reading),),
            caption="The same by axis, half a sphere seen along z. A red patch is a direction in which detail is poorly "
            "known: few particles were seen from across it.",
        ),
    )


def _table(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    def angstrom(value: object) -> str:
        return "none" if value is None else f"{float(str(value)):.2f} Å"

    mask = "automatic" if facts["mask"] == "automatic" else str(facts["mask"])
    rows = [
        ("Resolution, FSC 0.143, corrected for the mask", angstrom(facts["resolution_0143_A"])),
        ("The same at 0.5", angstrom(facts["resolution_05_A"])),
        ("With the mask, uncorrected, at 0.143", angstrom(facts["resolution_0143_masked_A"])),
        ("Without a mask, at 0.143", angstrom(facts["resolution_0143_unmasked_A"])),
        ("B-factor applied", f"{facts['b_factor_A2']:.0f} Å²"),
        ("Low-pass", angstrom(facts["low_pass_A"])),
        ("Mask", f"{mask}, {100 * facts['mask_share_of_box']:.1f} % of the box"),
        ("Least over largest area of the cones' curves", text_of(float(facts["cone_fsc"]["area_ratio"]))),
    ]
    rows += [("Beware", str(warning)) for warning in facts["warnings"]]
    return tuple(rows)
