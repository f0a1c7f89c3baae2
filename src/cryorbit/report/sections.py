"""What a report says: its sections, captions and claims, in the order of the page."""

from __future__ import annotations

import torch

from cryorbit.data import CTF
from cryorbit.geometry.symmetry import point_group
from cryorbit.report import figures_curves, figures_map, figures_particles
from cryorbit.report.claims import apart
from cryorbit.report.data import ReportData
from cryorbit.report.network_section import network_section
from cryorbit.report.page import Picture, Row, Section, text_of
from cryorbit.report.pose_sections import hand_section, truth_poses_section
from cryorbit.report.postprocess_section import postprocess_section


def map_section(data: ReportData) -> Section:
    """Surface and sections."""
    rows = []
    surface = figures_map.surface_pictures(data.map)
    if surface is not None:
        pictures, level, edge_A = surface
        names = {"front": "from +z", "side": "from +x", "top": "from +y"}
        rows.append(
            Row(
                (
                    Picture(
                        title="Surface",
                        views=tuple((names[name], address) for name, address in pictures.items()),
                        caption=f"Isosurface at density {level:.3g}, seen from three sides; each picture is "
                        f"{edge_A:.0f} Å wide, dark parts lie near the centre. Look for solid, connected "
                        "features. A smooth ball, a hollow shell or spikes that point away from the centre "
                        "mean that the poses are wrong.",
                    ),
                )
            )
        )
    rows.append(
        Row(
            (
                Picture(
                    title="Central sections",
                    plot=False,
                    addresses=(figures_map.slices_figure(data.map),),
                    caption="Density in the three planes through the centre, bright is dense. The particle "
                    "should stand out from an even background and be centred; rings around it, or streaks "
                    "through it, point to wrong CTF values or missing views.",
                ),
            )
        )
    )
    return Section("map", "The map", rows=tuple(rows))


def resolution_section(data: ReportData) -> Section | None:
    """Half-map and truth correlations."""
    figures = []
    if data.half_curve is not None or data.masked_curve is not None:
        tag = ("gold standard", "gold") if data.gold_standard else ("not gold standard", "not")
        why = (
            apart(data)
            if data.gold_standard
            else "Both halves took their poses from maps they shared, so part of what agrees may be noise: "
            "read "
            "it as consistency, an upper bound."
        )
        figures.append(
            Picture(
                title="Half maps against each other",
                tag=tag[0],
                tag_kind=tag[1],
                addresses=(figures_curves.half_map_figure(data.half_curve, data.masked_curve),),
                caption=f"Fourier shell correlation of the two half maps; the resolution is the first "
                "crossing "
                f"of 0.143. {why} The curve should stay near 1, fall once and stay near 0.",
            )
        )
    if data.truth_curve is not None:
        figures.append(
            Picture(
                title="Map against the truth",
                tag="simulation only",
                tag_kind="not",
                addresses=(figures_curves.truth_figure(data.truth_curve),),
                caption="Fourier shell correlation with the map that made the images, after alignment; the "
                "resolution is the first crossing of 0.5. This needs no trust in the half maps, but exists "
                "only "
                "where the truth is known.",
            )
        )
    return Section("resolution", "Resolution", rows=(Row(tuple(figures), "two"),)) if figures else None


def pose_section(data: ReportData) -> Section | None:
    """Viewing directions, confidence, entropy."""
    first: list[Picture] = []
    if data.pose is not None and len(data.pose):
        density = figures_particles.view_density(data.pose.rotation, group=point_group(data.symmetry))
        share = 100.0 * density.thin_share
        symmetry = "" if data.symmetry.upper() == "C1" else f", repeated by the symmetry {data.symmetry}"
        first.append(
            Picture(
                title="Viewing directions",
                addresses=(figures_particles.views_figure(density),),
                caption=f"Where the particles were seen from, on an equal-area map of the sphere{symmetry}; "
                "a "
                f"uniform data set is 1 everywhere. The densest direction has {density.highest:.1f} times "
                "the "
                f"uniform share, and {share:.0f} % of all directions have less than a third of it. Empty "
                "regions "
                "smear the map along them.",
            )
        )
    histograms, words = [], []
    if data.confidence is not None:
        histograms.append(figures_particles.confidence_figure(data.confidence))
        words.append(
            "Confidence is the probability that the true pose lies in the neighbourhood of the best one: "
            "near 1 "
            "the images decide, near 0 it is noise, junk or a map that does not match."
        )
    if data.entropy is not None:
        histograms.append(figures_particles.entropy_figure(data.entropy))
        words.append(
            "Entropy says how widely a particle's posterior is spread over all rotations, lower is sharper; "
            "two "
            "humps mean two kinds of particles."
        )
    if histograms:
        first.append(Picture("Certainty", " ".join(words), tuple(histograms)))
    return (
        Section("poses", "Poses", rows=(Row(tuple(first), "wideleft" if len(first) > 1 else ""),))
        if first
        else None
    )


def convergence_section(data: ReportData) -> Section | None:
    """Curves of the run."""
    drawn = figures_curves.convergence_figures(data.metrics)
    if not drawn:
        return None
    captions = {
        "Log-likelihood per image": "Should rise and level off within a stage; it may jump where a stage "
        "adds detail.",
        "Log-evidence of the best start": "Compared at equal detail, it decides between the random starts.",
        "Frequency radius used (shells)": "Detail is let in as the map can support it.",
        "Spread of the shifts (Å)": "Should settle at how far the particles are off centre.",
        "Starts still in the race": "Starts that fall behind are dropped.",
        "Mean confidence": "Should end well above where it began.",
        "Mean pose entropy (nats)": "Should fall as the map gains detail.",
        "Pose change (degrees)": "Should fall towards zero in the last stage.",
    }
    pictures = tuple(Picture(name, captions.get(name, ""), (address,)) for name, address in drawn)
    lead = "A run that has settled shows flat ends; one that was still moving would gain from more steps."
    stages = [f"{i + 1} {name}" for i, (name, _, _) in enumerate(figures_curves.stages_of(data.metrics))]
    if stages:
        lead += " Stages, shaded in turn: " + ", ".join(stages) + "."
    return Section("convergence", "Convergence", lead, (Row(pictures, "three"),))


def _ctf_caption(ctf: CTF) -> str:
    astigmatism = (ctf.defocus_u_A - ctf.defocus_v_A).abs()
    mean_um = 0.5e-4 * (ctf.defocus_u_A + ctf.defocus_v_A)
    voltage = ", ".join(f"{v:g}" for v in torch.unique(ctf.voltage_kV).tolist()[:4])
    return (
        f"Underfocus from {float(mean_um.min()):.2f} to {float(mean_um.max()):.2f} µm at {voltage} kV; "
        "median "
        f"astigmatism {float(astigmatism.median()):.0f} Å. A broad range is good: the zeros of one "
        "particle's CTF "
        "are filled by another's."
    )


def image_section(data: ReportData) -> Section | None:
    """Examples, defocus, spectra."""
    rows = []
    if data.examples is not None and len(data.examples.images):
        rows.append(
            Row(
                (
                    Picture(
                        title="Particles beside their reprojections",
                        plot=False,
                        addresses=(
                            figures_map.examples_figure(data.examples, pixel_size_A=data.map.pixel_size_A),
                        ),
                        caption="Top: particle as used. Middle: the same, smoothed. Bottom: the map "
                        "projected at "
                        "the pose found, with CTF and shift. Outlines in the middle and bottom rows should "
                        "agree; "
                        "the number is their correlation.",
                    ),
                )
            )
        )
    small = []
    if data.ctf is not None and len(data.ctf):
        small.append(
            Picture("Defocus", _ctf_caption(data.ctf), (figures_particles.defocus_figure(data.ctf),))
        )
    if data.statistics is not None:
        snr = data.statistics.snr
        known = "" if snr is None else f" The signal-to-noise ratio over the whole box is about {snr:.2g}."
        small.append(
            Picture(
                "Noise and signal",
                f"Power per Fourier shell of the images.{known} Where the signal lies far below the noise, "
                "many "
                "particles are needed.",
                (figures_curves.spectrum_figure(data.statistics),),
            )
        )
    if small:
        rows.append(Row(tuple(small), "two"))
    return Section("images", "Images", rows=tuple(rows)) if rows else None


_EVALUATION_WORDS = {
    "mse": "Pose error, mean of |R − R′|² (chance is 6, below 0.1 counts as converged)",
    "medse": "Pose error, median of |R − R′|²",
    "mse_refined": "Mean pose error in the refined frame",
    "medse_refined": "Median pose error in the refined frame",
    "hand": "Hand (+1 as the truth, −1 mirrored)",
    "hand_a": "Share of particles right in the map's hand",
    "hand_b": "Share right in the mirrored hand",
    "hand_union": "Share right in one hand or the other",
    "pose_verdict": "State of the poses",
    "pose_state": "In short",
    "converged_at": "Converged for good at this image visit",
    "subset_largest": "Share of the particles in the largest consistent subset (20°)",
    "subset_median": "Share of the particles that agree with the median particle (20°)",
    "mirror_correlation": "Correlation of the map with its best reflection",
    "mirror_agrees_to_A": "Resolution to which map and reflection agree (Å)",
    "mean_confidence": "Mean confidence of the poses",
    "confidence_right": "Share of the poses that are right (10°)",
    "rotation_error_deg_median": "Median rotation error (degrees)",
    "view_error_deg_median": "Median error of the viewing direction (degrees)",
    "in_plane_error_deg_median": "Median in-plane error (degrees)",
    "shift_error_A_median": "Median shift error (Å)",
    "converged": "Converged (pose error below 0.1)",
    "fsc05_truth_A": "Resolution against the truth, FSC 0.5 (Å)",
    "fsc05_truth_masked_A": "The same with a soft mask (Å)",
    "oracle_fsc05_truth_A": "With the true poses instead: the best possible (Å)",
    "oracle_fsc05_truth_masked_A": "With the true poses and a soft mask (Å)",
    "fsc0143_half_A": "Half-map resolution, FSC 0.143 (Å)",
    "seconds": "Wall time (s)",
    "image_visits": "Image visits",
}


def evaluation_section(data: ReportData) -> Section | None:
    """Numbers against the truth."""
    if not data.evaluation:
        return None
    known = [k for k in _EVALUATION_WORDS if k in data.evaluation]
    others = [k for k in data.evaluation if k not in _EVALUATION_WORDS]
    table = tuple((_EVALUATION_WORDS.get(k, k), text_of(data.evaluation[k])) for k in known + others)
    lead = "Compared with the poses and the map the images were simulated from. The program did not see them."
    return Section("truth", "Against the truth", lead, table=table)


def particle_section(data: ReportData) -> Section | None:
    """Summary of the particle table."""
    if not data.particles:
        return None
    table = tuple((str(k), text_of(v)) for k, v in data.particles.items())
    return Section("particles", "Particles", table=table)


def sections(data: ReportData) -> list[Section]:
    """All sections that have something to show."""
    makers = (
        map_section,
        resolution_section,
        postprocess_section,
        hand_section,
        pose_section,
        image_section,
        convergence_section,
        network_section,
        evaluation_section,
        truth_poses_section,
        particle_section,
    )
    return [section for make in makers if (section := make(data)) is not None]
