from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cryorbit.data import CTF, Gaussians, ParticleStack, Pose
from cryorbit.data.particles import MemoryImages
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import geodesic_angle, random_rotations, rotvec_to_matrix
from cryorbit.inference.flex import FlexTraining, run_training
from cryorbit.inference.flex_analysis import states_of
from cryorbit.inference.flex_latents import PosePrior, RowTable, latent_posterior
from cryorbit.inference.flex_likelihood import FlexLikelihood
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.inference.flex_start import consensus_map, train_flex
from cryorbit.inference.observations import Observations, observe
from cryorbit.models.deformation import GaussianModel, make_gaussian_model
from cryorbit.physics.splat import gaussians_to_map, splat_images

P = 3.0
NORMAL = 6.0  # standard errors of a mean of squares


def molecule(n: int = 30, *, spread_A: float = 12.0) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        spread_A * torch.randn(n, 3, generator=g).clamp(-1.5, 1.5),
        200 * (0.5 + torch.rand(n, generator=g)),
        torch.full((n,), 3.0),
    )


def poses(n: int, *, seed: int = 1) -> Pose:
    g = torch.Generator().manual_seed(seed)
    return Pose(random_rotations(n, generator=g, dtype=torch.float32), 2 * torch.randn(n, 2, generator=g))


def stack_of(gaussians: Gaussians, pose: Pose, *, box: int, sigma: float) -> ParticleStack:
    """Images of one conformation per pose, or of one for all, with white noise."""
    n = len(pose)
    ctf = CTF.uniform(n, defocus_A=12000.0)
    with torch.no_grad():
        images = splat_images(gaussians, pose, ctf, box=box, pixel_size_A=P)
    images = images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    ids = np.array([f"{i + 1}@m" for i in range(n)])
    return ParticleStack(images=MemoryImages(images), pixel_size_A=P, ids=ids, ctf=ctf, pose=pose)


def observed_of(stack: ParticleStack, *, sigma: float) -> Observations:
    """With the noise that was added and no scaling of single images, so that statistics are exact."""
    seen = observe(stack, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros_like(seen.background)
    nothing[0, 0] = True
    return replace(
        seen,
        scale_each=False,
        background=nothing,
        noise_power=torch.full_like(seen.noise_power, sigma**2 * stack.box**2),
    )


@pytest.mark.parametrize("box", [32, 33])
def test_residuals_of_the_true_model_are_chi_square(box):
    sigma, n = 2.0, 200  # the floor under the noise, 2 % of the images' power, is far below it
    pose = poses(n)
    stack = stack_of(molecule(), pose, box=box, sigma=sigma)
    seen = replace(observed_of(stack, sigma=sigma), background=torch.zeros(box, box, dtype=torch.bool))
    likelihood = FlexLikelihood(seen, resolution_A=None)
    rows = torch.arange(n)
    data = torch.fft.rfft2(torch.fft.ifftshift(stack.images[rows], dim=(-2, -1)))
    chi = 2 * likelihood.misfit(likelihood.model(molecule(), pose, rows), data)
    spread = (2 * likelihood.count) ** 0.5
    assert abs(float(chi.mean()) - likelihood.count) < NORMAL * spread / n**0.5
    assert float(chi.std()) == pytest.approx(spread, rel=0.3)
    left = (data - likelihood.model(molecule(), pose, rows))[:, None]
    torch.testing.assert_close(likelihood.inner(left, left)[:, 0, 0], chi, rtol=1e-5, atol=1e-3)


def test_detail_beyond_nyquist_is_refused():
    stack = stack_of(molecule(), poses(20), box=32, sigma=0.3)
    with pytest.raises(BadInput, match="finer than pixels"):
        FlexLikelihood(observed_of(stack, sigma=0.3), resolution_A=4.0)


def two_way_model() -> GaussianModel:
    """Anchors that move, come and go with two latent coordinates, smoothly."""
    torch.manual_seed(0)
    model = make_gaussian_model(molecule(), "basis", latent=2, unit_A=P, rank=4, width=16)
    assert model.deformation is not None
    return model


def test_posteriors_are_calibrated():
    """Truths drawn from the prior lie within the posterior's ellipsoids as often as they should: mean Mahalanobis = d."""
    model, n, sigma = two_way_model(), 300, 0.5
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    pose = poses(n)
    with torch.no_grad():
        stack = stack_of(model(z), pose, box=32, sigma=sigma)
    likelihood = FlexLikelihood(observed_of(stack, sigma=sigma), resolution_A=None)
    found = latent_posterior(model, likelihood, torch.arange(n), torch.zeros(n, 2), pose, steps=8)
    away = found.z - z
    distance = torch.einsum("ni,nij,nj->n", away, found.precision, away)
    # Mean 2, variance 4; a tenth more for the curvature of the model.
    assert float(distance.median()) == pytest.approx(1.386, rel=0.25)
    informed = torch.linalg.eigvalsh(found.precision)[:, 0]
    assert float(informed.min()) >= 1.0 - 1e-3  # the prior's precision is never lost


def test_no_step_makes_the_posterior_worse():
    model, n, sigma = two_way_model(), 50, 0.5
    pose = poses(n)
    with torch.no_grad():
        stack = stack_of(model(torch.randn(n, 2)), pose, box=32, sigma=sigma)
    likelihood = FlexLikelihood(observed_of(stack, sigma=sigma), resolution_A=None)
    rows, last = torch.arange(n), torch.full((n,), torch.inf)
    for steps in (0, 1, 2, 4):
        found = latent_posterior(model, likelihood, rows, torch.zeros(n, 2), pose, steps=steps)
        total = found.misfit + 0.5 * found.z.square().sum(1)
        assert bool((total <= last + 1e-3 * total.abs()).all())
        last = total


def test_poses_come_back_from_small_errors():
    n, sigma = 100, 0.2
    truth = poses(n)
    g = torch.Generator().manual_seed(6)
    wrong = Pose(
        rotvec_to_matrix(0.03 * torch.randn(n, 3, generator=g)) @ truth.rotation,
        truth.shift_A + 1.0 * torch.randn(n, 2, generator=g),
    )
    stack = stack_of(molecule(), truth, box=32, sigma=sigma)
    likelihood = FlexLikelihood(observed_of(stack, sigma=sigma), resolution_A=None)
    model = make_gaussian_model(molecule(), "none", latent=1, unit_A=P, gates=False)
    prior = PosePrior(angle_sd_rad=0.05, shift_sd_A=2.0, lever_A=15.0)

    def errors(start: Pose) -> tuple[float, float]:
        found = latent_posterior(
            model, likelihood, torch.arange(n), torch.zeros(n, 1), start, given=wrong, prior=prior, steps=6
        )
        angle = geodesic_angle(found.pose.rotation.double(), truth.rotation.double()).median()
        return float(angle), float((found.pose.shift_A - truth.shift_A).norm(dim=1).median())

    # The posterior's mode is one, wherever the steps begin.
    assert errors(wrong) == pytest.approx(errors(truth), rel=0.1)
    before = geodesic_angle(wrong.rotation.double(), truth.rotation.double()).median()
    assert errors(wrong)[0] < 0.5 * float(before)


def test_rows_of_a_table_move_alone():
    table = RowTable(torch.zeros(4, 2))
    table.step(torch.tensor([1, 3]), torch.ones(2, 2), rate=0.1)
    assert bool((table.values[[0, 2]] == 0).all())
    torch.testing.assert_close(table.values[[1, 3]], torch.full((2, 2), -0.1), rtol=1e-4, atol=1e-6)
    other = RowTable(torch.zeros(4, 2))
    other.restore("z", table.state("z"))
    assert torch.equal(other.values, table.values)
    assert torch.equal(other.steps, table.steps)


def two_states(n: int = 240, *, box: int = 32, sigma: float = 0.3) -> tuple[ParticleStack, Tensor]:
    """A molecule, and the same without a third of its Gaussians."""
    whole = molecule()
    state = torch.arange(n) % 2
    amplitude = whole.amplitude.repeat(n, 1)
    amplitude[:, :10] *= state[:, None]
    return stack_of(replace(whole, amplitude=amplitude), poses(n), box=box, sigma=sigma), state


SMALL = FlexSettings(latent=2, count=40, rank=4, width=16, epochs=10, batch=24, basis_rate=0.03, threads=1)


@pytest.fixture(scope="module")
def trained():
    stack, state = two_states()
    return stack, state, list(train_flex(stack, SMALL))


def test_two_states_are_told_apart_and_both_are_drawn(trained):
    _stack, state, records = trained
    result = records[-1].result
    away = torch.stack([result.z[state == s].mean(0) for s in (0, 1)]).diff(dim=0)[0]
    side = (result.z - result.z.mean(0)) @ away > 0
    agreed = float((side == (state == 1)).float().mean())
    assert max(agreed, 1 - agreed) > 0.95
    with torch.no_grad():
        maps = []
        for s in (0, 1):
            middle = result.model(result.z[state == s].mean(0)[None])
            one = Gaussians(middle.position_A[0], middle.amplitude[0], middle.width_A)
            maps.append(gaussians_to_map(one, box=32, pixel_size_A=P).values)
    missing = gaussians_to_map(molecule().select(torch.arange(10)), box=32, pixel_size_A=P).values
    drawn = (maps[1] - maps[0]).flatten()
    # Of 32 px images, 120 of each state: the difference map shows what is missing.
    assert float(torch.corrcoef(torch.stack((drawn, missing.flatten())))[0, 1]) > 0.7


@pytest.mark.parametrize(("linear", "right"), [(False, 0.95), (True, 0.7)])
def test_images_are_sorted_into_their_states(trained, linear, right):
    """By chance half are right. 240 images are few for the linear model: it fits noise too."""
    _, state, records = trained
    found = states_of(records[-1].result, 2, linear=linear)
    agreed = float((found.label == state).float().mean())
    assert max(agreed, 1 - agreed) > right
    with pytest.raises(BadInput, match="did not begin"):
        states_of(replace(records[-1].result, linear=None), 2, linear=True)


def test_a_run_goes_on_from_any_record_to_the_same_result(trained):
    stack, _, records = trained
    middle = next(r for r in records if r.stage == "learning" and r.step > 20)
    # Records hold the tensors of the running loop; a checkpoint is taken at once, as here.
    saved: dict = {}
    for record in train_flex(stack, SMALL):
        if record.stage == middle.stage and record.step == middle.step:
            saved = {k: v.clone() if isinstance(v, Tensor) else v for k, v in record.state.items()}
            break
    again = list(train_flex(stack, SMALL, state=saved))[-1].result
    expected = records[-1].result
    assert torch.equal(again.z, expected.z)
    assert torch.equal(again.misfit, expected.misfit)
    for a, b in zip(again.model.state_dict().values(), expected.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_fractions_rise_to_one(trained):
    fractions = [record.fraction for record in trained[2]]
    assert fractions[-1] == 1.0
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(fractions))


def test_poses_move_only_if_asked(trained):
    stack, _, records = trained
    assert records[-1].result.pose is not None
    assert torch.equal(records[-1].result.pose.rotation, stack.pose.rotation)


def test_priors_hold_a_motion_back():
    stack, _ = two_states(n=96)
    seen = observe(stack, generator=torch.Generator().manual_seed(0))
    z = torch.randn(96, 2, generator=torch.Generator().manual_seed(3))
    moved = []
    for weight in (0.0, 100.0):
        training = FlexTraining(seen, molecule(), z, replace(SMALL, smooth=weight, gates=False))
        list(run_training(training))
        with torch.no_grad():
            moved.append(float(training.model(z).position_A.std(0).mean()))
    assert moved[1] < 0.7 * moved[0]


def test_gaussians_of_another_frame_and_stacks_without_poses_are_refused():
    stack, _ = two_states(n=60)
    with pytest.raises(BadInput, match="no poses"):
        next(train_flex(replace(stack, pose=None), SMALL))
    dark = replace(molecule(), amplitude=-molecule().amplitude)
    with pytest.raises(BadInput, match="do not correlate"):
        list(train_flex(stack, SMALL, gaussians=dark))


def test_the_consensus_is_on_the_scale_of_the_images():
    stack, sigma = stack_of(molecule(), poses(400), box=32, sigma=0.1), 0.1
    found = consensus_map(observed_of(stack, sigma=sigma))
    total = float(found.values.sum()) * P**3
    assert total == pytest.approx(float(molecule().amplitude.sum()), rel=0.2)
