"""The prior of chains: equivariance after training, over whole trajectories; hands; physical units."""

import json

import pytest
import torch

from cryorbit.errors import BadFile, BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.inference.prior_sampling import noise_levels, sample
from cryorbit.io.atoms import read_atoms
from cryorbit.models.point_prior import PointPrior, PointPriorShape
from cryorbit.models.score import TrainingNoise, denoising_loss

EQUIVARIANCE = {torch.float64: 1e-12, torch.float32: 5e-6}
"""Of the output's root mean square: round-off of one pass."""
TRAJECTORY = 1e-8
"""Float64, a whole trajectory: round-off of 2 n passes, each seeing the noise divided by its level."""
MIRROR_MARGIN = 1e-2
"""A network that could not tell hands apart would be at round-off; measured 0.04 to 0.2 after these few steps."""


def helices(b: int, *, seed: int = 0) -> torch.Tensor:
    """Right-handed C-alpha helices of 12 with a kink in the middle, angstrom, turned at random; shape (b, 12, 3)."""
    angle = torch.arange(12, dtype=torch.float64) * torch.pi * 100 / 180
    rise = 1.5 * torch.arange(12, dtype=torch.float64)
    helix = torch.stack((2.3 * angle.cos(), 2.3 * angle.sin(), rise), 1)
    helix[6:] += torch.tensor([0.0, 0.5, 0.3])
    turn = random_rotations(b, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return helix @ turn.mT


def chains(b: int, *, padding: int = 3):
    """Chains of 12 as two of 6, then padding; the second sample is shorter."""
    n = 12 + padding
    mask = (torch.arange(n) < 12).repeat(b, 1)
    mask[1:, 11:] = False
    return mask, (torch.arange(n) >= 6).long().expand(b, n), (torch.arange(n) % 6 + n // 12).expand(b, n)


def padded(position_A: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    out = position_A.new_zeros(*mask.shape, 3)
    out[:, : position_A.shape[1]] = position_A
    return out * mask[..., None]


@pytest.fixture(scope="module")
def trained() -> PointPrior:
    """Some steps on helices, so that no weight is zero any more."""
    prior = PointPrior(PointPriorShape(hidden=16, layers=2), generator=torch.Generator().manual_seed(0))
    prior.network.double()
    mask, chain, residue = chains(8)
    denoiser = prior.denoiser(mask, chain, residue)
    g = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(prior.network.parameters(), lr=3e-3)
    for step in range(40):
        clean = prior.to_latent(padded(helices(8, seed=step), mask), mask)
        sigma = TrainingNoise().draw(denoiser.spread, generator=g)
        noise = denoiser.project(torch.randn(clean.shape, generator=g, dtype=torch.float64))
        loss = denoising_loss(denoiser, clean, noise, sigma, sigma_data=denoiser.spread, mask=mask).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    prior.network.requires_grad_(False)
    return prior


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("level", [0.02, 0.5, 20.0])
def test_denoising_commutes_with_turns_and_shifts(trained, dtype, level):
    """D(x R + t) = D(x) R: 8 rotations, 100 A away, padding in place, a trained network, three levels of noise."""
    prior = PointPrior.from_state({k: v.to(dtype) for k, v in trained.tensors().items()}, trained.card())
    prior.network.to(dtype).load_state_dict({k: v.to(dtype) for k, v in trained.tensors().items()})
    mask, chain, residue = chains(2)
    denoiser = prior.denoiser(mask, chain, residue)
    g = torch.Generator().manual_seed(3)
    clean = prior.to_latent(padded(helices(2), mask), mask)
    sigma = level * denoiser.spread
    x = denoiser.project(
        clean + sigma[:, None, None] * torch.randn(clean.shape, generator=g, dtype=torch.float64)
    )
    here = denoiser(x.to(dtype), sigma.to(dtype)).double()
    far = 100 / prior.shape.length_scale_A * (2 * torch.rand(8, 1, 3, generator=g, dtype=torch.float64) - 1)
    for turn, shift in zip(random_rotations(8, generator=g, dtype=torch.float64), far, strict=True):
        there = denoiser((x @ turn.mT + shift).to(dtype), sigma.to(dtype)).double()
        assert relative(there, here @ turn.mT) < EQUIVARIANCE[dtype]
    assert float(here[~mask].abs().max()) == 0


def test_a_whole_trajectory_commutes_with_turns(trained):
    """Turned noise gives the turned sample."""
    mask, chain, residue = chains(2)
    denoiser = trained.denoiser(mask, chain, residue)
    g = torch.Generator().manual_seed(4)
    noise = torch.randn(2, 15, 3, generator=g, dtype=torch.float64)
    turn = random_rotations(1, generator=g, dtype=torch.float64)[0]
    levels = noise_levels(12, 0.005 * denoiser.sigma_data, 20 * denoiser.sigma_data)
    here = sample(denoiser, noise, levels, project=denoiser.project)
    there = sample(denoiser, noise @ turn.mT, levels, project=denoiser.project)
    assert relative(there, here @ turn.mT) < TRAJECTORY
    assert float(here.sum(1).abs().max()) < 1e-10


def test_mirror_images_are_told_apart(trained):
    """D of a mirror image is not the mirror image of D: the prior knows which hand proteins have."""
    mask, chain, residue = chains(2)
    denoiser = trained.denoiser(mask, chain, residue)
    clean = trained.to_latent(padded(helices(2), mask), mask)
    sigma = 0.3 * denoiser.spread
    g = torch.Generator().manual_seed(5)
    x = denoiser.project(
        clean + sigma[:, None, None] * torch.randn(clean.shape, generator=g, dtype=torch.float64)
    )
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert relative(denoiser(x * mirror, sigma), denoiser(x, sigma) * mirror) > MIRROR_MARGIN


def test_the_order_of_chains_carries_no_meaning(trained):
    """Chains in another order, and renamed: each residue's estimate goes with it."""
    mask, chain, residue = chains(1)
    order = torch.cat((torch.arange(6, 12), torch.arange(6), torch.arange(12, 15)))
    x = padded(helices(1), mask) / 10
    sigma = torch.tensor([0.2], dtype=torch.float64)
    here = trained.denoiser(mask, chain, residue)(x, sigma)
    there = trained.denoiser(mask[:, order], 5 - chain[:, order], residue[:, order])(x[:, order], sigma)
    torch.testing.assert_close(there, here[:, order], rtol=0, atol=1e-12)


@pytest.mark.data
@pytest.mark.parametrize(("name", "rg_A"), [("6lyz", 13.745), ("4lzt", 13.755)])
def test_angstrom_go_in_and_come_back(data_dir, name, rg_A):
    """Radius of gyration of lysozyme's C-alphas: the file's, through the latent and back, to 0.01 A."""
    found = sorted(data_dir.rglob(f"{name}.*"))
    if not found:
        pytest.skip(f"no file of {name} under {data_dir}")
    atoms = read_atoms(found[0])
    assert atoms.atom_name is not None
    position = atoms.position_A[
        torch.from_numpy((atoms.atom_name == "CA") & (atoms.atomic_number == 6).numpy())
    ][None]
    mask = torch.ones(1, position.shape[1], dtype=torch.bool)
    prior = PointPrior(PointPriorShape(hidden=4, layers=1))
    latent = prior.to_latent(position, mask)
    back = prior.to_angstrom(latent)
    rg = [
        float((p - p.mean(1, keepdim=True)).square().sum(-1).mean().sqrt()) for p in (position, latent, back)
    ]
    assert rg[0] == pytest.approx(rg_A, abs=0.01)
    assert rg[1] * prior.shape.length_scale_A == pytest.approx(rg_A, abs=0.01)
    assert rg[2] == pytest.approx(rg[0], rel=1e-6)
    # The scale of noise follows the law of sizes: a lysozyme is as large as a protein of its length should be.
    assert float(prior.sigma_data(mask.sum(1))) * 3**0.5 == pytest.approx(rg[1], rel=0.05)


def test_a_prior_comes_back_from_its_card_and_tensors(trained):
    card = json.loads(json.dumps(trained.card()))
    again = PointPrior.from_state({k: v.float() for k, v in trained.tensors().items()}, card)
    assert again.shape == trained.shape
    with pytest.raises(BadFile, match="kind"):
        PointPrior.from_state(trained.tensors(), {**card, "kind": "volumes"})
    with pytest.raises(BadFile, match="does not fit"):
        PointPrior.from_state(trained.tensors(), {**card, "hidden": 24})


def test_lengths_of_nothing_are_refused():
    with pytest.raises(BadInput, match="positive"):
        PointPriorShape(length_scale_A=0.0)
