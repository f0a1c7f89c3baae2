"""Laws of calibration: posteriors that the truth is drawn from pass, others do not, and nothing passes without a truth."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch
from torch import Tensor

from cryorbit.analysis import calibration
from cryorbit.analysis.calibration import Calibration, calibrate, reliability, score_posterior
from cryorbit.data import SO3Distribution
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations, rotvec_to_matrix
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.geometry.symmetry import point_group

GRID = so3_grid(1, dtype=torch.float64).reshape(-1, 3, 3)
K = len(GRID)
N = 2000
INSIDE_CELL_RAD = 0.01
"""A small turn keeps a rotation in its cell of 30 degrees."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(sharpness: float = 6.0, temper: float = 1.0, seed: int = 0) -> tuple[SO3Distribution, Tensor]:
    """Random posteriors, truths drawn from them; then the posteriors raised to the power `temper`."""
    g = generator(seed)
    logits = sharpness * torch.randn(N, K, generator=g, dtype=torch.float64).abs()
    cell = torch.multinomial(torch.softmax(logits, 1), 1, generator=g)[:, 0]
    turn = rotvec_to_matrix(INSIDE_CELL_RAD * torch.randn(N, 3, generator=g, dtype=torch.float64))
    p = torch.softmax(logits * temper, 1)
    return SO3Distribution(GRID.expand(N, K, 3, 3), p, 1 / K), turn @ GRID[cell]


def calibrated(distribution: SO3Distribution, truth: Tensor, **how) -> Calibration:
    return calibrate(score_posterior(distribution, truth, generator=generator(1), **how))


@pytest.mark.parametrize("sharpness", [0.5, 6.0, 40.0])
def test_truths_drawn_from_the_posterior_are_covered_at_the_level(sharpness):
    """Broad, peaked or certain: coverage equals the level within the binomial error, and it is said."""
    found = calibrated(*made(sharpness))
    assert bool(((found.coverage - found.level).abs() < 4 * found.deviation).all())
    assert found.calibrated
    assert found.distance < 1.628
    assert found.expected_error < 3 * found.noise_error
    assert found.nll == pytest.approx(found.entropy, abs=0.1)  # the proper score's own law
    assert found.uniform_nll == pytest.approx(math.log(K))
    assert bool((found.coverage_whole_cells >= found.coverage).all())
    assert "Calibrated on this simulation" in found.verdict()


@pytest.mark.parametrize(("temper", "word"), [(1.6, "Overconfident"), (0.6, "Too cautious")])
def test_posteriors_too_narrow_or_too_wide_fail(temper, word):
    """Tempered posteriors do not pass, lean the right way and score worse."""
    found, right = calibrated(*made(temper=temper)), calibrated(*made())
    assert not found.calibrated
    assert word in found.verdict()
    assert found.expected_error > 5 * found.noise_error
    assert found.nll > right.nll
    assert (found.nll > found.entropy) == (temper > 1)


def test_knowing_nothing_is_calibrated_and_scores_log_k():
    """The uniform posterior covers every level, with the score and entropy log k."""
    truth = random_rotations(N, generator=generator(2), dtype=torch.float64)
    found = calibrated(SO3Distribution(GRID.expand(N, K, 3, 3), torch.full((N, K), 1 / K), 1 / K), truth)
    assert found.calibrated
    assert found.nll == pytest.approx(math.log(K), abs=1e-6)
    assert found.entropy == pytest.approx(math.log(K), abs=1e-6)


def test_wrong_poses_are_not_calibrated():
    """Sharp posteriors about unrelated truths hold none of them."""
    distribution, _ = made(sharpness=40.0)
    truth = random_rotations(N, generator=generator(3), dtype=torch.float64)
    found = calibrated(distribution, truth)
    assert found.coverage_at(0.95) < 0.1
    assert not found.calibrated
    assert found.nll > found.uniform_nll


def test_scores_are_those_of_the_truths_own_cell():
    """Level, log score and entropy of one posterior, by hand."""
    p = torch.full((1, K), 0.1 / (K - 3), dtype=torch.float64)
    p[0, [5, 6, 7]] = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    scores = score_posterior(SO3Distribution(GRID[None], p, 1 / K), GRID[6:7], generator=generator())
    assert float(scores.nll) == pytest.approx(-math.log(0.3))
    assert float(scores.mass_above) == pytest.approx(0.5)
    assert 0.5 <= float(scores.level) <= 0.8
    assert float(scores.entropy) == pytest.approx(float(-(p * p.log()).sum()))
    assert float(scores.nearest_deg) < 1e-4


def test_parts_joined_are_the_whole():
    """Scores of parts of the images, joined, give the same calibration but for the random shares of cells."""
    distribution, truth = made()
    scores = [
        score_posterior(
            SO3Distribution(distribution.rotation[s], distribution.probability[s], 1 / K),
            truth[s],
            generator=generator(),
        )
        for s in (slice(0, 700), slice(700, N))
    ]
    joined, whole = calibrate(scores[0].joined(scores[1])), calibrated(distribution, truth)
    assert joined.nll == pytest.approx(whole.nll)
    torch.testing.assert_close(joined.coverage_whole_cells, whole.coverage_whole_cells)
    with pytest.raises(BadInput, match="different size"):
        scores[0].joined(dataclasses.replace(scores[1], cell_fraction=0.5))


def test_grids_of_each_image_are_like_a_shared_one():
    """Own copies of the grid, cells in another order, change nothing but the chance."""
    distribution, truth = made()
    order = torch.randperm(K, generator=generator(4))
    other = SO3Distribution(
        distribution.rotation[:, order].contiguous(), distribution.probability[:, order].contiguous(), 1 / K
    )
    one, two = (score_posterior(d, truth, generator=generator()) for d in (distribution, other))
    torch.testing.assert_close(one.nll, two.nll)
    torch.testing.assert_close(one.mass_above, two.mass_above)


@pytest.mark.parametrize("reduced", [False, True])
def test_symmetry_keeps_calibration(reduced):
    """A D2 posterior stays calibrated whichever mate is the truth, over all of SO(3) or an asymmetric unit of it."""
    group, g = point_group("D2"), generator(5)
    base = GRID[(GRID[:, None] @ group).diagonal(dim1=-2, dim2=-1).sum(-1).argmax(1) == 0]
    cells = base if reduced else (base[None] @ group[:, None]).flatten(0, 1)
    k = len(cells)
    logits = 6.0 * torch.randn(N, k, generator=g, dtype=torch.float64).abs()
    p = torch.softmax(logits, 1)
    truth = cells[torch.multinomial(p, 1, generator=g)[:, 0]]
    mate = group[torch.randint(len(group), (N,), generator=g)]
    fraction = 1 / (len(base) * len(group))
    found = calibrated(SO3Distribution(cells.expand(N, k, 3, 3), p, fraction), truth @ mate, group="D2")
    assert found.calibrated
    assert bool(((found.coverage - found.level).abs() < 4 * found.deviation).all())


def test_calibration_asks_for_a_truth():
    """Nothing in the module makes a Calibration or Reliability without true rotations or outcomes."""
    assert "truth" in inspect.signature(score_posterior).parameters
    assert next(iter(inspect.signature(calibrate).parameters)) == "scores"
    assert inspect.signature(reliability).parameters["correct"].default is inspect.Parameter.empty
    makers = [
        f
        for _, f in inspect.getmembers(calibration, inspect.isfunction)
        if f.__module__ == calibration.__name__
        and "Calibration" in str(inspect.signature(f).return_annotation)
    ]
    assert [f.__name__ for f in makers] == ["calibrate"]


def test_honest_confidence_is_reliable_and_bluster_is_not():
    """Outcomes of the stated probability: small error; stated higher than true: too sure."""
    g = generator(7)
    chance = torch.rand(4000, generator=g, dtype=torch.float64)
    honest = reliability(chance, torch.rand(4000, generator=g) < chance)
    assert honest.expected_error < 0.03
    assert "as sure as it should be" in honest.verdict()
    assert honest.brier == pytest.approx(1 / 6, abs=0.01)
    assert float(honest.count.sum()) == 4000
    bluster = reliability(chance.sqrt(), torch.rand(4000, generator=g) < chance)
    assert "too sure" in bluster.verdict()
    assert bluster.lean == pytest.approx(1 / 2 - 2 / 3, abs=0.02)
    assert "too cautious" in reliability(chance.square(), torch.rand(4000, generator=g) < chance).verdict()


def test_what_is_no_posterior_is_refused():
    """Unequal numbers, logits instead of probabilities, levels and confidences out of range."""
    distribution, truth = made()
    with pytest.raises(BadInput, match="2000 posteriors but 5"):
        score_posterior(distribution, truth[:5], generator=generator())
    with pytest.raises(BadInput, match="softmax"):
        score_posterior(
            SO3Distribution(GRID[None], torch.zeros(1, K), 1 / K), GRID[:1], generator=generator()
        )
    scores = score_posterior(distribution, truth, generator=generator())
    with pytest.raises(BadInput, match="between 0 and 1"):
        calibrate(scores, levels=(0.5, 1.0))
    with pytest.raises(BadInput, match="probabilities"):
        reliability(torch.tensor([1.5]), torch.tensor([True]))
