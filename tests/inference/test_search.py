"""Laws of the search: scores are log-likelihoods, sums are their adjoint, posteriors are distributions."""

import math
from itertools import pairwise

import pytest
import torch

from cryorbit.fourier.polar import to_circle
from cryorbit.inference.search import (
    Posterior,
    SliceSums,
    accumulate,
    circular_orders,
    image_matrix,
    image_rows,
    make_templates,
    normalise,
    score,
    sums_to_rings,
)
from inference_models import (
    RingProblem,
    brute_force_scores,
    random_problem,
    without_ctf_and_prior,
)

SINGLE_SUMS = 1e-5
"""float32 sums of some thousand terms of mixed sign, relative to the largest score."""

ASTIGMATIC_REST = 5e-3
"""Orders above 12 of a squared CTF whose phase varies by +-2 rad (J_7(4) = 0.015), weakened by |T|^2."""


def _scores(problem: RingProblem, **changes):
    templates = problem.templates(**changes)
    rows = image_matrix(problem.data, problem.plan)
    return score(problem.data, rows, problem.plan, templates)


def _relative_error(found, exact):
    return float((found - exact).abs().max() / (exact - exact.mean()).abs().max())


@pytest.mark.parametrize("m_max", [8, 9])
def test_scores_are_log_likelihoods_under_a_radial_ctf(m_max):
    """The direct sum over the circle of Y conj T - D |T|^2 / 2 with the template turned, plus the prior."""
    problem = random_problem(m_max=m_max, astigmatism_rad=0.0)
    assert _relative_error(_scores(problem), brute_force_scores(problem)) < SINGLE_SUMS


@pytest.mark.parametrize("astigmatism_rad", [0.6, 2.0])
def test_scores_are_log_likelihoods_under_an_astigmatic_ctf(astigmatism_rad):
    """The norm term turns with psi: exactly so with orders enough; with fewer the error shrinks by order."""
    problem = random_problem(m_max=12, astigmatism_rad=astigmatism_rad)
    exact = brute_force_scores(problem)
    norm_term = exact - brute_force_scores(without_ctf_and_prior(problem))
    turning = float((norm_term - norm_term.mean(0)).abs().max())
    errors = [float((_scores(problem, astigmatic_orders=e) - exact).abs().max()) / turning for e in range(7)]
    assert errors[0] > 0.9
    assert errors[1] < 0.5
    assert all(b < a for a, b in pairwise(errors[:5]))
    assert errors[6] < ASTIGMATIC_REST


def test_orders_beyond_the_band_add_nothing():
    """A template with orders up to 8 scores the same with m_max 8 and 13."""
    narrow, wide = (random_problem(m_max=8, kept=kept, astigmatism_rad=0.0) for kept in (8, 13))
    torch.testing.assert_close(_scores(wide), _scores(narrow), rtol=1e-4, atol=1e-4)


def test_rows_are_the_harmonics_of_shifted_images():
    """Order m of image and shift: (Re, Im) over radius, then (-Im, Re)."""
    problem = random_problem(m_max=5, astigmatism_rad=0.0)
    rows = image_matrix(problem.data, problem.plan)
    b, s = len(problem.data), problem.plan.n_shifts
    circle = to_circle(problem.data.filtered[:, None] * problem.plan.phases)
    harmonics = torch.fft.rfft(circle, dim=-1).reshape(b * s, circle.shape[2], -1)
    for slot, m in enumerate(circular_orders(5).tolist()):
        real, imag = harmonics[..., m].real, harmonics[..., m].imag
        torch.testing.assert_close(rows[slot, : b * s], torch.cat((real, imag), 1))
        torch.testing.assert_close(rows[slot, b * s :], torch.cat((-imag, real), 1))


def test_rows_of_an_image_stand_apart():
    """`image_rows` of several images are `image_matrix` of each alone."""
    problem = random_problem(m_max=5, astigmatism_rad=0.0)
    rows = image_rows(problem.data, problem.plan)
    for i in range(len(problem.data)):
        alone = image_matrix(problem.data[i : i + 1], problem.plan)
        torch.testing.assert_close(rows[i], alone, rtol=1e-5, atol=1e-6)


def _random_posterior(problem: RingProblem):
    shape = (problem.plan.n_psi, len(problem.data), problem.plan.n_shifts, problem.slices.shape[0])
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(9)) ** 8
    return weight / weight.sum((0, 2, 3), keepdim=True)


def _sums(problem: RingProblem, posterior, templates):
    sums = SliceSums.zeros(templates)
    accumulate(sums, posterior, problem.data, image_matrix(problem.data, problem.plan), problem.plan)
    return sums


@pytest.mark.parametrize(("m_max", "orders"), [(8, 0), (9, 0), (12, 6)])
def test_sums_are_the_adjoint_of_scores(m_max, orders):
    """<p, data term> = <numerator, slices> and <p, norm term> = -1/2 <denominator, |slices|^2>."""
    problem = random_problem(m_max=m_max, astigmatism_rad=0.6 if orders else 0.0)
    templates = problem.templates(astigmatic_orders=orders)
    posterior = _random_posterior(problem)
    sums = _sums(problem, posterior, templates)
    numerator, denominator = sums_to_rings(sums, problem.grid, templates.order)
    data_only = without_ctf_and_prior(problem)
    data_term = _scores(data_only, astigmatic_orders=orders)
    norm_term = _scores(without_ctf_and_prior(problem, keep_ctf=True), astigmatic_orders=orders) - data_term
    over_views = 2 * (numerator * problem.slices.conj()).real.sum()
    torch.testing.assert_close(over_views, (posterior * data_term).sum(), rtol=1e-4, atol=1e-4)
    power = -(denominator * problem.slices.abs().square()).sum()
    torch.testing.assert_close(power, (posterior * norm_term).sum(), rtol=1e-4, atol=1e-4)


def test_a_certain_pose_inserts_the_turned_image():
    """All probability on one pose: the view's numerator is Y, centred and turned back; others have none."""
    problem = random_problem(m_max=9, astigmatism_rad=0.0, limit_images=True)
    posterior = torch.zeros_like(_random_posterior(problem))
    psi, image, shift, view = 5, 1, 2, 3
    posterior[psi, image, shift, view] = 1
    posterior = posterior[:, image : image + 1]
    one = problem.only(slice(image, image + 1))
    templates = problem.templates()
    numerator, denominator = sums_to_rings(_sums(one, posterior, templates), problem.grid, templates.order)
    centred = to_circle(one.data.filtered[0] * problem.plan.phases[shift])
    # The image shows T(t + psi): so its own angle t goes to t + psi of the view.
    harmonics = torch.fft.rfft(centred, dim=-1)
    m = torch.arange(harmonics.shape[-1])
    turned = torch.fft.irfft(
        harmonics * torch.exp(-2j * math.pi * psi / problem.plan.n_psi * m), n=centred.shape[-1]
    )
    torch.testing.assert_close(to_circle(numerator[view]), turned, rtol=1e-4, atol=1e-4)
    others = torch.arange(len(numerator)) != view
    assert float(numerator[others].abs().max()) == 0
    torch.testing.assert_close(denominator[view], one.data.ctf_power[0].mean(-1, keepdim=True).expand(-1, 24))


def test_sums_of_parts_are_the_sum():
    """Images added in two parts and merged give the sums of all."""
    problem = random_problem(m_max=8, astigmatism_rad=0.6)
    templates = problem.templates(astigmatic_orders=2)
    posterior = _random_posterior(problem)
    whole = _sums(problem, posterior, templates)
    first = _sums(problem.only(slice(0, 1)), posterior[:, :1], templates)
    first.add(_sums(problem.only(slice(1, None)), posterior[:, 1:], templates))
    torch.testing.assert_close(first.numerator, whole.numerator, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.denominator, whole.denominator, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_posteriors_are_distributions(count):
    """Probabilities are the softmax per image; entropy, best pose and its probability follow from them."""
    problem = random_problem(m_max=8, astigmatism_rad=0.0).only(slice(0, count))
    scores = _scores(problem)
    flat = scores.double().permute(1, 0, 2, 3).reshape(count, -1)
    expected = flat.softmax(1)
    found: Posterior = normalise(scores.clone())
    probability = found.probability.permute(1, 0, 2, 3).reshape(count, -1)
    torch.testing.assert_close(probability.double(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(probability.sum(1), torch.ones(count))
    assert torch.equal(found.best, flat.argmax(1))
    torch.testing.assert_close(found.best_probability.double(), expected.amax(1), rtol=1e-4, atol=0)
    entropy = -(expected * expected.clamp_min(1e-300).log()).sum(1)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-4, atol=1e-5)


def test_evidence_is_the_mean_likelihood():
    """log_evidence: exp(score) summed over shifts, whose prior sums to 1, and averaged over rotations."""
    problem = random_problem(m_max=8, astigmatism_rad=0.0)
    scores = _scores(problem)
    expected = scores.double().logsumexp((0, 2, 3)) - math.log(scores.shape[0] * scores.shape[3])
    torch.testing.assert_close(normalise(scores).log_evidence.double(), expected, rtol=1e-5, atol=1e-4)


def test_hopeless_scores_do_not_spoil_the_sums():
    """Scores thousands below the best leave finite numbers and all the weight on the best."""
    scores = torch.full((4, 2, 3, 5), -1e5)
    scores[1, 0, 2, 3] = 7.0
    scores[2, 1, 0, 1] = -3.0
    found = normalise(scores)
    torch.testing.assert_close(found.best_probability, torch.ones(2))
    assert found.best.tolist() == [1 * 15 + 2 * 5 + 3, 2 * 15 + 0 * 5 + 1]
    assert bool(found.entropy.isfinite().all())
    assert float(found.entropy.max()) < 1e-6


def test_templates_hold_the_power_of_slices():
    """power = sum of |T|^2 over the whole circle; the first order kept is 0."""
    problem = random_problem(m_max=8, astigmatism_rad=0.0)
    templates = make_templates(problem.slices, problem.grid, m_max=8, astigmatic_orders=3)
    torch.testing.assert_close(templates.power, 2 * problem.slices.abs().square().sum(-1))
    assert templates.order.tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7]
    assert templates.power_harmonics.shape[0] == 3
    assert templates.n_views == problem.slices.shape[0]
