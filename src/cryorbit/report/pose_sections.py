"""Sections of a report about the state the poses are in: one hand or two, and, in simulations, against the truth."""

from __future__ import annotations

import math

from cryorbit.report import pose_figures
from cryorbit.report.data import ReportData
from cryorbit.report.page import Picture, Row, Section

MIRRORED_ABOVE = 0.95
"""Correlation with the best reflection above which a map is said to mix its hands.

Measured: right maps 0.58 to 0.82, maps made from poses of both hands 0.99 and more; maps of five shells or fewer reach 0.93
in any case, so the shell curve must hold as well."""

_SIMULATION = ("simulation only", "not")


def looks_mirrored(data: ReportData) -> bool:
    """Whether the map equals a reflection of itself as far as it is resolved."""
    mirror = data.mirror
    if mirror is None or mirror.correlation < MIRRORED_ABOVE:
        return False
    curve = data.half_curve
    resolution = 0.0 if curve is None else curve.resolution_A(0.143)
    finest = 1 / float(mirror.curve.frequency_per_A[-1])
    return mirror.agrees_to_A() <= 1.5 * max(resolution if math.isfinite(resolution) else 0.0, finest)


def hand_section(data: ReportData) -> Section | None:
    """The map against its own reflection: a mirror plane means that both hands are in it."""
    mirror = data.mirror
    if mirror is None:
        return None
    x, y, z = mirror.normal.tolist()
    if looks_mirrored(data):
        lead = (
            "The map equals its own mirror image as far as it is resolved: it very likely mixes both hands, and about "
            "half of the poses are mirrored. Run again with another seed or more starts."
        )
    else:
        lead = "The map differs from its mirror images: it shows one hand, though not which."
    agrees = mirror.agrees_to_A()
    reach = f"they agree to {agrees:.0f} Å" if math.isfinite(agrees) else "they agree nowhere"
    return Section(
        "hand",
        "One hand or two",
        lead,
        (
            Row(
                (
                    Picture(
                        title="Map against its best reflection",
                        addresses=(pose_figures.mirror_figure(mirror, data.half_curve),),
                        caption=f"Correlation {mirror.correlation:.2f} with the reflection in the plane with normal "
                        f"({x:.2f}, {y:.2f}, {z:.2f}), where a middling plane has {mirror.typical:.2f}; {reach} "
                        "(0.5). Any compact body resembles its reflections at low resolution. Proteins are handed: the "
                        "curve should fall long before that of the half maps. If it follows it, the particles took "
                        "both hands.",
                    ),
                )
            ),
        ),
    )


def _plane_row(data: ReportData) -> Row | None:
    poses = data.poses_beside_truth
    if poses is None:
        return None
    third = "" if poses.confidence is None else " The third plane shows which of them the program is sure of."
    return Row(
        (
            Picture(
                title="Views on the projective plane",
                tag=_SIMULATION[0],
                tag_kind=_SIMULATION[1],
                plot=False,
                addresses=(
                    pose_figures.plane_figure(poses.rotation, poses.truth, confidence=poses.confidence),
                ),
                caption="Viewing directions with opposite ones as one point, seen along z in the true frame. Every particle "
                "has the colour of its true place: right poses show the pattern of the truth, poses in the other hand show "
                f"it mirrored about a line, on top of it.{third}",
            ),
        )
    )


def _history_row(data: ReportData) -> Row | None:
    history = data.pose_history
    if history is None:
        return None
    at = history.converged_at()
    when = (
        "It does not end below 0.1."
        if at is None
        else f"It stays below 0.1 from {history.time_label.lower()} {at:.4g} on."
    )
    return Row(
        (
            Picture(
                "Pose error through the run",
                "Mean and median of |R − R′|² after the best common frame and hand, 6 by chance. A median that falls long "
                f"before the mean is a run that dwells between two groups of poses. {when}",
                (pose_figures.error_history_figure(history),),
                tag=_SIMULATION[0],
                tag_kind=_SIMULATION[1],
            ),
            Picture(
                "Hands through the run",
                "Share of the particles within 20° of the truth in the hand that the run ended with, in its mirror image, "
                "and in one or the other. Two curves at one half are a map that mixes its hands.",
                (pose_figures.hand_history_figure(history),),
                tag=_SIMULATION[0],
                tag_kind=_SIMULATION[1],
            ),
        ),
        "two",
    )


def _subset_row(data: ReportData) -> Row | None:
    pictures = []
    if data.pose_history is not None:
        pictures.append(
            Picture(
                "Consistent subsets through the run",
                "A ridge per moment, time running down: how many particles agree with a particle in one frame (20°), over "
                "300 particles. Converged, all sit at 100 %; two groups of half the particles are two humps at 50 %, in "
                "two colours if they differ in hand.",
                (pose_figures.joy_figure(data.pose_history),),
                tag=_SIMULATION[0],
                tag_kind=_SIMULATION[1],
            )
        )
    if data.subsets is not None and data.subsets.groups:
        pictures.append(
            Picture(
                "Share right, by hand",
                "Particles in the frame of the largest group of either hand, against the error that still counts as "
                "right. Views close to a mirror plane are right in both hands, so that a few per cent in the other hand "
                "mean nothing.",
                (pose_figures.hand_sweep_figure(data.subsets),),
                tag=_SIMULATION[0],
                tag_kind=_SIMULATION[1],
            )
        )
    return Row(tuple(pictures), "two") if pictures else None


def _calibration_row(data: ReportData) -> Row | None:
    pictures = []
    calibration, reliability = data.calibration, data.reliability
    if calibration is not None:
        pictures += [
            Picture(
                "Coverage of credible sets",
                f"{calibration.verdict()} Score {calibration.nll:.2f} nats per cell, entropy {calibration.entropy:.2f} "
                f"(equal if calibrated), knowing nothing {calibration.uniform_nll:.2f}; mean miscalibration "
                f"{calibration.expected_error:.3f}, of which chance {calibration.noise_error:.3f}.",
                (pose_figures.calibration_figure(calibration),),
                tag=_SIMULATION[0],
                tag_kind=_SIMULATION[1],
            ),
            Picture(
                "Where the truth falls in the posterior",
                "Level of the smallest credible set that takes in the truth: flat if the posterior means what it says, "
                "piled up at 1 if it is too narrow, at 0 if it is too wide.",
                (pose_figures.pit_figure(calibration),),
                tag=_SIMULATION[0],
                tag_kind=_SIMULATION[1],
            ),
        ]
    if reliability is not None and len(reliability.count) >= 3:
        pictures.append(
            Picture(
                "Confidence against being right",
                f"{reliability.verdict()} Right is within 10° of the truth. Dots grow with the number of particles; bars "
                "are what chance allows.",
                (pose_figures.reliability_figure(reliability),),
                tag=_SIMULATION[0],
                tag_kind=_SIMULATION[1],
            )
        )
    return Row(tuple(pictures), "two") if pictures else None


def truth_poses_section(data: ReportData) -> Section | None:
    """Poses against the truth, in pictures; the lead is the verdict in words."""
    rows = [make(data) for make in (_plane_row, _history_row, _subset_row, _calibration_row)]
    shown = tuple(row for row in rows if row is not None)
    words = [str(data.evaluation.get("pose_verdict") or (data.subsets.verdict() if data.subsets else ""))]
    if data.reliability is not None:
        words.append(data.reliability.verdict())
    lead = " ".join(word for word in words if word)
    if not shown and data.subsets is None and data.reliability is None:
        return None
    return Section("truth-poses", "Poses against the truth", lead, shown)
