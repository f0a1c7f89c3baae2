"""The prior of maps: units, conditions, and what it refuses."""

import json

import pytest
import torch

from cryorbit.errors import BadFile, BadInput
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape

SHAPE = VolumePriorShape(
    channels=(8, 16),
    box=8,
    density_scale=0.4,
    sigma_data=1.5,
    voxel_size_A=(2.0, 4.0),
    resolution_A=(8.0, 12.0),
)


@pytest.fixture(scope="module")
def prior() -> VolumePrior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = VolumePrior(SHAPE)
        for p in made.network.parameters():
            p.data += 0.05 * torch.randn_like(p)
    made.network.requires_grad_(False)
    return made


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_scale_for_all_maps(prior):
    """To the latent and back is the identity, and the scale is the card's, whatever the map."""
    for size in (0.1, 10.0):
        density = size * draw(1, 1, 8, 8, 8)
        torch.testing.assert_close(prior.to_density(prior.to_latent(density)), density)
        torch.testing.assert_close(prior.to_latent(density), density / 0.4)


@pytest.mark.parametrize("box", [7, 8])
def test_without_noise_the_map_comes_back(prior, box):
    """c_skip is 1 and c_out 0: D(x; 0) = x, odd and even."""
    x = draw(2, 1, box, box, box)
    clean = prior.denoiser(voxel_size=3.0, resolution=9.0)(x, torch.full((2,), 1e-7))
    torch.testing.assert_close(clean, x, rtol=0, atol=1e-5)


def test_a_fresh_prior_is_the_wiener_filter_of_white_maps():
    """Its network is silent, so D(x; s) = x d^2 / (d^2 + s^2)."""
    x, sigma = draw(2, 1, 8, 8, 8), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        found = VolumePrior(SHAPE).denoiser(voxel_size=3.0)(x, sigma)
    gain = 1.5**2 / (1.5**2 + sigma**2)
    torch.testing.assert_close(found, x * gain.view(-1, 1, 1, 1, 1))


def test_conditions_matter_per_sample(prior):
    """Voxel size and resolution change the result of their own sample alone; unknown is not the same as known."""
    x, sigma = draw(1, 1, 8, 8, 8).expand(2, -1, -1, -1, -1), torch.full((2,), 1.0)
    same = prior.denoiser(voxel_size=3.0, resolution=9.0)(x, sigma)
    other = prior.denoiser(voxel_size=3.0, resolution=torch.tensor([9.0, 11.0]))(x, sigma)
    torch.testing.assert_close(other[0], same[0], rtol=0, atol=1e-5)
    assert not torch.allclose(other[1], same[1], atol=1e-3)
    unknown = prior.denoiser(voxel_size=3.0)(x, sigma)
    assert not torch.allclose(unknown, same, atol=1e-3)


def test_guidance_leads_away_from_the_unconditioned(prior):
    """D_without + (1 + w) (D_with - D_without), and w = 0 is the conditioned estimate."""
    x, sigma = draw(1, 1, 8, 8, 8), torch.full((1,), 1.0)
    without = prior.denoiser(voxel_size=3.0)(x, sigma)
    informed = prior.denoiser(voxel_size=3.0, resolution=9.0)(x, sigma)
    guided = prior.denoiser(voxel_size=3.0, resolution=9.0, guidance=2.0)(x, sigma)
    torch.testing.assert_close(guided - without, 3 * (informed - without), rtol=0, atol=1e-5)


def test_what_was_never_trained_on_is_refused(prior):
    with pytest.raises(BadInput, match="2 to 4 A"):
        prior.denoiser(voxel_size=1.0)
    with pytest.raises(BadInput, match="8 to 12 A"):
        prior.denoiser(voxel_size=3.0, resolution=20.0)
    with pytest.raises(BadInput, match="guidance"):
        prior.denoiser(voxel_size=3.0, guidance=1.0)
    with pytest.raises(BadInput, match="no range"):
        VolumePriorShape(voxel_size_A=(3.0, 2.0))


def test_a_prior_comes_back_from_its_card_and_tensors(prior):
    card = json.loads(json.dumps(prior.card()))
    again = VolumePrior.from_state(prior.tensors(), card)
    assert again.shape == SHAPE
    x, sigma = draw(1, 1, 8, 8, 8), torch.full((1,), 1.0)
    assert torch.equal(again.denoiser(voxel_size=3.0)(x, sigma), prior.denoiser(voxel_size=3.0)(x, sigma))
    with pytest.raises(BadFile, match="kind"):
        VolumePrior.from_state(prior.tensors(), {**card, "kind": "points"})
    for wrong in (
        {"channels": [8, 24]},
        {"channels": "8"},
        {"voxel_size_A": 3.0},
        {"voxel_size_A": [3.0, 2.0]},
    ):
        with pytest.raises(BadFile, match="does not fit"):
            VolumePrior.from_state(prior.tensors(), {**card, **wrong})


def test_the_generator_alone_decides_the_weights():
    """Same seed, same network; torch's own state neither matters nor moves, nor does it when a prior is read."""
    before = torch.get_rng_state()
    first, second = (
        VolumePrior(SHAPE, generator=torch.Generator().manual_seed(3)).tensors() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    VolumePrior.from_state(first, VolumePrior(SHAPE, generator=torch.Generator()).card())
    assert torch.equal(torch.get_rng_state(), before)
