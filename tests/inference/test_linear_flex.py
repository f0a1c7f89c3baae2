from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from scipy.stats import chi2

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.inference.linear_flex import LinearSettings, fit_linear
from cryorbit.inference.linear_model import LinearModel
from linear_stacks import PIXEL_A, LinearStack, linear_stack

SUBSPACE = 0.97  # cosine of the larger principal angle; measured 0.985: noise of 1500 images is the rest
ORDER = 1e-2  # relative; sums in another order, carried through some ten iterations
NEAR_NOMINAL = (
    0.8,
    0.95,
)  # of posteriors at level 0.9: 1500 images give +-0.015 (2 sd), noise in maps takes from it

SETTINGS = LinearSettings(rank=2, iterations=4, stages=2, particle_diameter_A=17 * PIXEL_A)


def fitted(data: LinearStack, settings: LinearSettings = SETTINGS, mask: Volume | None = None) -> LinearModel:
    *_, last = fit_linear(data.stack, settings, mask=mask)
    assert isinstance(last.result, LinearModel)
    return last.result


@lru_cache
def example(box: int) -> tuple[LinearStack, LinearModel]:
    data = linear_stack(1500, box=box, noise=1.0)
    return data, fitted(data)


def true_latents(data: LinearStack, model: LinearModel) -> torch.Tensor:
    """The true latents in the model's coordinates: the affine map that fits what the images alone say, unshrunk."""
    precision = torch.linalg.inv(model.latent_covariance.double())
    data_only = precision - torch.diag(1 / model.variance.double())
    alone = torch.linalg.solve(data_only, precision @ model.latent.double()[..., None])[..., 0]
    known = torch.cat((torch.ones(len(alone), 1), data.latent), 1).double()
    return (known @ torch.linalg.lstsq(known, alone).solution).float()


@pytest.mark.parametrize("box", [16, 17])
def test_the_likelihood_never_falls(box):
    """The law of E-M: at one resolution, and without a prior that changes, each iteration is at least as likely."""
    model = fitted(linear_stack(60, box=box), replace(SETTINGS, prior=False, iterations=8, stages=1))
    gains = model.log_likelihood
    assert len(set(model.radius)) == 1
    assert all(later >= earlier for earlier, later in pairwise(gains))
    assert gains[-1] > gains[0]


@pytest.mark.parametrize("box", [24, 25])
def test_a_known_subspace_is_recovered(box):
    data, model = example(box)
    truth = torch.linalg.qr(data.maps[1:].flatten(1).T).Q
    cosines = torch.linalg.svdvals(truth.T @ model.components.flatten(1).T)
    assert float(cosines.min()) > SUBSPACE
    at = true_latents(data, model)
    for k in range(2):
        assert float(torch.corrcoef(torch.stack((at[:, k], model.latent[:, k])))[0, 1]) > 0.95


def test_posteriors_cover_the_truth():
    """Squared Mahalanobis distances of the truth follow chi-square."""
    data, model = example(24)
    away = model.latent - true_latents(data, model)
    squared = (away * torch.linalg.solve(model.latent_covariance, away)).sum(1)
    covered = float((squared < chi2.ppf(0.9, 2)).float().mean())
    assert NEAR_NOMINAL[0] < covered < NEAR_NOMINAL[1]
    torch.testing.assert_close(
        model.squared_distance(model.latent[3])[3], torch.tensor(0.0), atol=1e-6, rtol=0
    )


def test_components_are_orthonormal_and_ordered():
    _, model = example(25)
    flat = model.components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(2), atol=1e-4, rtol=0)  # float32 sums of 15,625 terms
    assert model.variance[0] >= model.variance[1] > 0
    middle = model.volume(torch.zeros(2))
    assert torch.equal(middle.values, model.mean.values)


def test_the_order_of_images_does_not_matter():
    data, model = example(24)
    turn = torch.randperm(len(data.stack), generator=torch.Generator().manual_seed(7))
    other = fitted(replace(data, stack=data.stack.select(turn)))
    for row in (0, 5):
        first = model.volume(model.latent[turn[row]]).values
        second = other.volume(other.latent[row]).values
        assert float((first - second).norm() / first.norm()) < ORDER


def test_a_run_taken_up_again_ends_the_same():
    data = linear_stack(80, box=16)
    settings = replace(SETTINGS, iterations=2)
    records = [(deepcopy(p.state), p.result) for p in fit_linear(data.stack, settings)]
    *_, last = fit_linear(data.stack, settings, state=records[2][0])
    assert torch.equal(last.result.components, records[-1][1].components)
    assert torch.equal(last.result.latent, records[-1][1].latent)


def test_maps_stay_inside_a_given_mask():
    data = linear_stack(60, box=16)
    values = torch.zeros(16, 16, 16)
    values[4:13, 5:12, 4:13] = 1
    model = fitted(data, replace(SETTINGS, iterations=2), Volume(values, PIXEL_A))
    for one in (model.mean.values, *model.components):
        assert float(one[values == 0].abs().max()) < 1e-6 * float(one.abs().max())


def test_what_cannot_be_fitted_is_refused():
    data = linear_stack(20, box=16)
    with pytest.raises(BadInput, match="no poses"):
        next(fit_linear(replace(data.stack, pose=None), SETTINGS))
    with pytest.raises(BadInput, match="Lower the rank"):
        next(fit_linear(data.stack, replace(SETTINGS, rank=20)))
    with pytest.raises(BadInput, match="Resample"):
        next(fit_linear(data.stack, SETTINGS, mask=Volume(torch.ones(18, 18, 18), PIXEL_A)))
    with pytest.raises(BadInput, match="coordinates"):
        example(24)[1].volume(torch.zeros(3))
    with pytest.raises(BadInput, match="rank"):
        LinearSettings(rank=0)
