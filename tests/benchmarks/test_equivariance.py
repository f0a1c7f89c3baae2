"""The equivariance table says what is so: exact laws hold, the control fails, ignorance is seen as such."""

import math

import pytest
import torch

from cryorbit.benchmarks.equivariance import (
    ROUND_OFF,
    Check,
    equivariance_rows,
    format_poster,
    format_rows,
    knows_nothing,
    poster_row,
    probability_map,
)
from cryorbit.benchmarks.equivariance_checks import encoder_checks, layer_checks, pictures, trained_encoders
from cryorbit.geometry.rotations import random_rotations
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.models.pose_encoder import PosePrediction


@pytest.fixture(scope="module")
def encoders():
    return trained_encoders(["standard", "d4-regular"], steps=40)


def test_layers_hold_their_laws():
    """No layer with a bound exceeds it in either precision; the measured ones improve with their grid."""
    rows = equivariance_rows(layer_checks())
    assert {row.precision for row in rows} == {"float64", "float32"}
    assert [row.subject for row in rows if row.bound is not None and row.verdict != "holds"] == []
    measured = [row.worst for row in rows if row.bound is None and row.precision == "float64"]
    assert measured == sorted(measured, reverse=True)
    assert "D4 group convolution 3x3" in format_rows(rows)


def test_encoders_hold_theirs_and_the_control_fails(encoders):
    """The regular head is equivariant as a distribution; the plain network is not."""
    rows = {
        row.subject: row for row in equivariance_rows(encoder_checks(encoders)) if row.precision == "float64"
    }
    assert rows["encoder d4-regular"].verdict == "holds"
    assert rows["encoder standard"].verdict == "fails, as it must"


def test_a_broken_law_is_reported():
    """Errors beyond round-off, and a control that passes, are called so."""
    wrong = Check("wrong", ("a",), lambda dtype: [10 * ROUND_OFF[dtype]])
    lame = Check("lame", ("a",), lambda dtype: [0.0], must_fail=True)
    assert {row.verdict for row in equivariance_rows([wrong])} == {"FAILS"}
    assert {row.verdict for row in equivariance_rows([lame])} == {"PASSES, but must fail"}


def test_ignorance_passes_the_poster_s_score_and_shows_in_the_entropy(encoders):
    """The uniform prediction differs from its moved self by nothing, at the largest entropy; the equivariant network
    differs by nothing at a smaller one; the plain one differs by as much as the maps are large.
    """
    images = pictures(4, 32, seed=3).images
    nothing = poster_row("uniform", knows_nothing, images)
    assert nothing.mse_max < 1e-18
    assert nothing.entropy_nats == pytest.approx(math.log(nothing.cells), rel=1e-5)
    regular, plain = (poster_row(name, encoders[name], images) for name in ("d4-regular", "standard"))
    assert regular.relative_error < 1e-4
    assert regular.entropy_nats < nothing.entropy_nats - 0.3
    assert plain.relative_error > 0.3
    assert "8.44" in format_poster([nothing, regular, plain])


def test_probability_map_peaks_at_its_hypotheses():
    """One certain hypothesis gives a map that sums to 1 and is largest at the nearest cell."""
    cells = so3_grid(1).reshape(-1, 3, 3)
    truth = random_rotations(3, generator=torch.Generator().manual_seed(0))
    one = PosePrediction(truth[:, None], torch.zeros(3, 1), torch.zeros(3, 1, 2), 1.0)
    values = probability_map(one, cells)
    torch.testing.assert_close(values.sum(-1), torch.ones(3))
    nearest = torch.einsum("cij,bij->bc", cells, truth).argmax(-1)
    assert torch.equal(values.argmax(-1), nearest)
