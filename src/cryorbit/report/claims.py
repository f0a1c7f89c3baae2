"""Which figures of a report stand on independent data, and which are the program's own view."""

from __future__ import annotations

from dataclasses import dataclass

from cryorbit.report.data import ReportData


@dataclass(frozen=True)
class Claim:
    """What one figure can be used for."""

    figure: str
    standing: str
    why: str
    kind: str = "not"


def apart(data: ReportData) -> str:
    """Since when the halves of a gold standard have been apart."""
    if data.shared_to_A is None:
        return (
            "The halves were kept apart in this refinement. Their first poses came with the particles: what those had "
            "shared before (after `abinitio`, its first map of all images) they share still; beyond it they are independent."
        )
    start = f"low-passed at {data.shared_to_A:.0f} Å"
    return f"What the halves share is the reference that both started from, {start}, and nothing afterwards."


def claims(data: ReportData) -> list[Claim]:
    """What each kind of figure stands on."""
    found = []
    if data.half_curve is not None or data.masked_curve is not None:
        found.append(
            Claim(
                "Half-map FSC",
                "gold standard" if data.gold_standard else "not gold standard",
                f"{apart(data)} A resolution at 0.143 beyond that may be quoted."
                if data.gold_standard
                else "The two half maps hold different particles, but their poses come from common maps. Do "
                "not quote "
                "the resolution as gold standard; refine the halves apart first.",
                "gold" if data.gold_standard else "not",
            )
        )
    if data.masked_curve is not None:
        found.append(
            Claim(
                "Correction for the mask",
                "standard method",
                "Phases are randomised beyond the shell where the unmasked curve falls below 0.8, and what "
                "the mask "
                "alone correlates is subtracted.",
            )
        )
    if data.truth_curve is not None or data.evaluation:
        found.append(
            Claim(
                "Comparison with the truth",
                "simulation only",
                "Independent of the program, but says how well it does on simulated images, which lack much "
                "that real "
                "ones have.",
            )
        )
    if data.confidence is not None or data.entropy is not None:
        found.append(
            Claim(
                "Confidence and entropy",
                "internal",
                "Exact under the noise model for the final map; if the map is wrong they can be high all "
                "the same.",
            )
        )
    if data.examples is not None:
        found.append(
            Claim(
                "Reprojections",
                "internal",
                "The map was made from these images; agreement is necessary, not sufficient.",
            )
        )
    found.append(
        Claim(
            "Hand of the map",
            "not determined",
            "Projections do not tell a map from its mirror image. Compare helices or a known structure.",
        )
    )
    return found
