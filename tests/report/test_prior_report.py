"""The verdict on a posterior: what it says of held-out images goes by the error of a difference, not of one misfit."""

from __future__ import annotations

import pytest
import torch

from cryorbit.analysis.fsc import ShellCorrelation
from cryorbit.inference.half_posteriors import PriorReconstruction
from cryorbit.inference.prior_images import PriorGrid
from cryorbit.report.prior_report import PriorReading, verdict, write_prior_report

N, VOXEL_A = 12, 5.0
ERROR = 2e-6
"""Standard error of the difference; that of one misfit is 700 times as large."""


def result_with(better: float) -> PriorReconstruction:
    """A posterior that explains held-out images so many standard errors better than the data-only map."""
    axis = torch.arange(N) - N // 2
    ball = 5 * torch.exp(-(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) / 8.0)
    frequency = torch.arange(N // 2 + 1) / (N * VOXEL_A)
    curve = ShellCorrelation(frequency, torch.linspace(1.0, -0.2, N // 2 + 1))
    return PriorReconstruction(
        grid=PriorGrid(N, VOXEL_A, N, 2 * VOXEL_A),
        gain=1.0,
        gain_of_posterior=1.0,
        prior_error=0.2,
        samples=torch.stack((ball, 1.1 * ball)),
        mean=ball,
        spread=0.1 * ball,
        data_only=ball,
        prior_only=ball.roll(1, 0),
        disagreement=torch.zeros_like(ball),
        halves=(ball, ball),
        data_halves=(ball, ball),
        data_curve=curve,
        posterior_curve=curve,
        chi_square={"empty": 1.01, "data only": 1.0, "posterior": 1.0 - better * ERROR},
        misfit_error={"empty": 1e-4, "data only": 0.0, "posterior": ERROR},
        numbers=1e6,
        images=100,
        cutoff_A=None,
        radius_A=20.0,
        network_passes=10,
    )


@pytest.mark.parametrize(
    ("better", "level", "words"),
    [
        (5.0, "good", "explained 5.0 standard errors better by"),
        (
            1.5,
            "good",
            "no worse by the posterior than by the map without a prior: 1.5 standard errors better",
        ),
        (
            -1.5,
            "good",
            "no better by the posterior than by the map without a prior: 1.5 standard errors worse",
        ),
        (-5.0, "caution", "explained 5.0 standard errors worse by"),
    ],
)
def test_the_verdict_goes_by_the_error_of_the_difference(better, level, words):
    """Three of them on either side may be chance, and are said to; beyond, the worse posterior is not to be believed."""
    found = result_with(better)
    assert found.gain_in_errors == pytest.approx(better, rel=1e-6)
    got, told = verdict(found)
    assert got == level
    assert words in told
    assert ("believe the data-only map" in told) == (level == "caution")
    assert ("chance" in told) == (abs(better) < 3)


def test_the_page_tells_differences_in_their_own_errors(tmp_path):
    """Beside each map's misfit; that of the data-only map, which all are compared with, has none."""
    write_prior_report(
        tmp_path / "r.html", PriorReading(result=result_with(-5.0), source="a", prior="b", method="dps")
    )
    page = (tmp_path / "r.html").read_text()
    assert "+5.0" in page
    assert "+100.0" in page
    assert "+0.0" not in page
