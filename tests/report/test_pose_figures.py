"""Laws of the pose figures: every state can be drawn, the plane's colours are one at its rim, no truth means no claim."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from cryorbit.analysis.calibration import calibrate, reliability, score_posterior
from cryorbit.analysis.fsc import ShellCorrelation
from cryorbit.analysis.mirror import MirrorSymmetry
from cryorbit.analysis.pose_history import PoseSnapshot, pose_history
from cryorbit.analysis.pose_subsets import consistent_subsets
from cryorbit.data import SO3Distribution, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.geometry.rotations import random_rotations
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.report import figures_map, pose_figures
from cryorbit.report.data import PosesBesideTruth, ReportData
from cryorbit.report.html import render_html
from cryorbit.report.pose_sections import looks_mirrored
from cryorbit.report.style import house_style

N = 24


@pytest.fixture(autouse=True)
def without_surface(monkeypatch):
    """Surfaces are drawn in other tests."""
    monkeypatch.setattr(figures_map, "surface_pictures", lambda volume: None)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(**more) -> ReportData:
    x = torch.arange(N) - N // 2
    radius = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).float().sqrt()
    return ReportData(map=Volume(torch.sigmoid(6 - radius), 4.0), settings={}, **more)


def mirror(correlation: float) -> MirrorSymmetry:
    frequency = torch.arange(10) / 100.0
    values = torch.full((10,), correlation) if correlation > 0.9 else torch.linspace(1, -0.2, 10)
    return MirrorSymmetry(
        correlation=correlation,
        typical=0.6,
        normal=torch.tensor([0.0, 0.6, 0.8]),
        offset_A=1.0,
        curve=ShellCorrelation(frequency, values),
    )


def against_truth() -> ReportData:
    g = generator(1)
    truth = random_rotations(200, generator=g, dtype=torch.float64)
    mixed = torch.where((torch.arange(200) % 2 == 0)[:, None, None], truth, mirror_pose_rotation(truth))
    rows = torch.arange(200)
    shots = [PoseSnapshot(10.0 * (i + 1), rows, r) for i, r in enumerate((mixed, mixed, truth))]
    grid = so3_grid(0, dtype=torch.float64).reshape(-1, 3, 3)
    k = len(grid)
    scores = score_posterior(
        SO3Distribution(grid.expand(200, k, 3, 3), torch.full((200, k), 1 / k), 1 / k), truth, generator=g
    )
    confidence = torch.rand(200, generator=g, dtype=torch.float64)
    return plain(
        mirror=mirror(0.99),
        poses_beside_truth=PosesBesideTruth(mixed, truth, confidence),
        subsets=consistent_subsets(mixed, truth),
        pose_history=pose_history(shots, truth),
        calibration=calibrate(scores),
        reliability=reliability(confidence, torch.rand(200, generator=g) < confidence),
    )


def words_of(data: ReportData) -> str:
    return re.sub(r'src="data:[^"]*"', "", render_html(data))


def test_a_report_tells_the_state_of_the_poses():
    """Verdict in words, every panel, and all of it marked as possible in simulations only."""
    text = words_of(against_truth())
    for words in (
        "Two hands mixed",
        "One hand or two",
        "mixes both hands",
        "Views on the projective plane",
        "Pose error through the run",
        "Hands through the run",
        "Consistent subsets through the run",
        "Share right, by hand",
        "Coverage of credible sets",
        "Confidence against being right",
    ):
        assert words in text, words
    section = text[text.index('id="truth-poses"') :]
    section = section[: section.index("</section>")]
    assert section.count("simulation only") == section.count("<img")


def test_without_a_truth_nothing_claims_calibration():
    """Confidence and entropy alone lead to no word of calibration, reliability or being right."""
    g = generator(2)
    text = words_of(plain(confidence=torch.rand(50, generator=g), entropy=-torch.rand(50, generator=g)))
    assert not re.search(r"calibrat|reliab|credible|too sure", text, flags=re.IGNORECASE)
    assert "Poses against the truth" not in text


def test_only_a_mirrored_map_is_called_one():
    """High correlation with the reflection that reaches as far as the half maps agree; neither alone."""
    frequency = torch.arange(10) / 100.0
    halves = ShellCorrelation(frequency, torch.ones(10))
    assert looks_mirrored(plain(mirror=mirror(0.99), half_curve=halves))
    assert not looks_mirrored(plain(mirror=mirror(0.7), half_curve=halves))
    shapeless = replace(mirror(0.99), curve=mirror(0.7).curve)
    assert not looks_mirrored(plain(mirror=shapeless, half_curve=halves))
    assert not looks_mirrored(plain())
    assert "shows one hand" in words_of(plain(mirror=mirror(0.7)))


@pytest.mark.parametrize(
    "name", ["subsets", "pose_history", "calibration", "reliability", "poses_beside_truth", "mirror"]
)
def test_any_panel_may_stand_alone(name):
    """A report comes out with only one of the optional parts there."""
    assert "<img" in render_html(plain(**{name: getattr(against_truth(), name)}))


def test_opposite_points_of_the_rim_have_one_colour():
    """(x, y) and (-x, -y) with x^2 + y^2 = 1 are one point of the plane; inside, neighbours differ little."""
    turn = torch.linspace(0, 6.0, 50, dtype=torch.float64)
    rim = torch.stack((turn.cos(), turn.sin()), 1)
    np.testing.assert_allclose(
        pose_figures.plane_colours(rim), pose_figures.plane_colours(-rim), rtol=0, atol=1e-6
    )
    step = pose_figures.plane_colours(0.5 * rim)[1:] - pose_figures.plane_colours(0.5 * rim)[:-1]
    assert np.abs(step).max() < 0.25
    spread = pose_figures.plane_colours(0.7 * rim)
    assert spread.std(0).min() > 0.08


def test_a_view_and_its_opposite_are_one_point():
    """Turning a pose by half a turn about x in the image plane reverses the view and leaves the point."""
    rotation = random_rotations(40, generator=generator(3), dtype=torch.float64)
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(
        pose_figures.plane_points(rotation), pose_figures.plane_points(half_turn @ rotation)
    )
    assert float(pose_figures.plane_points(rotation).norm(dim=1).max()) <= 1.0


def test_a_history_of_one_moment_and_of_many_can_be_drawn():
    """One snapshot, time from 0, and more snapshots than ridges."""
    truth = random_rotations(30, generator=generator(4), dtype=torch.float64)
    for times in ([0.0], [0.0, 5.0], [float(t + 1) for t in range(40)]):
        history = pose_history([PoseSnapshot(t, torch.arange(30), truth) for t in times], truth)
        with house_style():
            for make in (
                pose_figures.error_history_figure,
                pose_figures.joy_figure,
                pose_figures.hand_history_figure,
            ):
                address = make(history)
                assert base64.b64decode(address.partition(",")[2]).startswith(b"<?xml")


def test_poses_must_pair():
    """As many true rotations as predicted ones."""
    with pytest.raises((BadInput, TypeCheckError)):
        PosesBesideTruth(torch.zeros(3, 3, 3), torch.zeros(2, 3, 3))
