"""The prior of tri-planes: units, whitening, and what it refuses; the codec's axes."""

import json
from dataclasses import replace

import pytest
import torch

from cryorbit.errors import BadFile, BadInput
from cryorbit.models.score import Denoiser
from cryorbit.models.triplane_codec import TriplaneEncoder
from cryorbit.models.triplane_prior import TriplanePrior, TriplanePriorShape

SHAPE = TriplanePriorShape(
    box=8,
    voxel_size_A=4.0,
    resolution_A=10.0,
    density_scale=0.4,
    features=2,
    hidden=8,
    channels=(8, 16),
    latent_spread=(1.0, 2.0, 0.5, 0.8, 1.5, 0.9),
    latent_spectrum=(9.0, 4.0, 1.0, 0.25, 0.1),
)
ARITHMETIC = 1e-5
"""Float32, sums in another order."""


@pytest.fixture(scope="module")
def prior() -> TriplanePrior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = TriplanePrior(SHAPE)
        for p in (*made.network.parameters(), made.network.mean):
            p.data += 0.05 * torch.randn_like(p)
    made.network.requires_grad_(False)
    return made


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_scale_for_all_maps(prior):
    """In volts through the planes: a prior of twice the scale makes of twice the density twice of what this one does."""
    maps = draw(2, 8, 8, 8)
    twice = TriplanePrior.from_state(prior.tensors(), {**prior.card(), "density_scale": 0.8})
    torch.testing.assert_close(
        twice.to_density(twice.to_latent(2 * maps)), 2 * prior.to_density(prior.to_latent(maps))
    )
    torch.testing.assert_close(
        prior.to_density(prior.to_latent(maps)),
        0.4 * prior.network.codec(maps / 0.4),
        rtol=0,
        atol=ARITHMETIC,
    )


def test_constants_whiten_each_channel_of_each_plane(prior):
    """(planes - mean planes) / spread, plane by plane, and back."""
    maps = draw(1, 8, 8, 8)
    planes = prior.network.codec.encoder(maps / 0.4)
    x = prior.to_latent(maps)
    torch.testing.assert_close(x[0, 1, 0], (planes[0, 1, 0] - prior.network.mean[1, 0]) / 0.5)
    torch.testing.assert_close(prior.to_planes(x), planes, rtol=0, atol=ARITHMETIC)


@pytest.mark.parametrize("box", [7, 8])
def test_turning_the_axes_turns_the_encoded_planes(box):
    """x -> y -> z -> x: slices lie behind planes as planes lie in space, odd and even."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TriplaneEncoder(box, 2, 8).requires_grad_(False)
    maps = draw(1, box, box, box)
    torch.testing.assert_close(
        encoder(maps.permute(0, 3, 1, 2)), encoder(maps).roll(-1, 1), rtol=0, atol=ARITHMETIC
    )


def test_without_noise_the_planes_come_back(prior):
    x = draw(2, 3, 2, 8, 8)
    clean = prior.denoiser()(x, torch.full((2,), 1e-7))
    torch.testing.assert_close(clean, x, rtol=0, atol=ARITHMETIC)


@torch.no_grad()
def test_a_fresh_prior_is_the_wiener_filter_of_its_planes():
    """Its network is silent: each Fourier term P / (P + s^2) of what it was; D(x; s) = x / (1 + s^2) without a spectrum."""
    x, sigma = draw(2, 3, 2, 8, 8), torch.tensor([0.5, 3.0])
    found = TriplanePrior(SHAPE, generator=torch.Generator().manual_seed(0)).denoiser()(x, sigma)
    gain = torch.fft.rfft2(found)[:, :, :, 0, 2] / torch.fft.rfft2(x)[:, :, :, 0, 2]
    expected = (1.0 / (1.0 + sigma**2)).view(2, 1, 1).expand(2, 3, 2)
    torch.testing.assert_close(gain.real, expected, rtol=1e-4, atol=0)
    white = TriplanePrior(replace(SHAPE, latent_spectrum=()), generator=torch.Generator().manual_seed(0))
    assert isinstance(white.denoiser(), Denoiser)
    torch.testing.assert_close(white.denoiser()(x, sigma), x / (1 + sigma**2).view(-1, 1, 1, 1, 1))


def test_a_prior_comes_back_from_its_card_and_tensors(prior):
    card = json.loads(json.dumps(prior.card()))
    again = TriplanePrior.from_state(prior.tensors(), card)
    assert again.shape == SHAPE
    x, sigma = draw(1, 3, 2, 8, 8), torch.full((1,), 1.0)
    assert torch.equal(again.denoiser()(x, sigma), prior.denoiser()(x, sigma))
    assert torch.equal(again.to_density(x), prior.to_density(x))
    with pytest.raises(BadFile, match="kind"):
        TriplanePrior.from_state(prior.tensors(), {**card, "kind": "volumes"})
    with pytest.raises(BadFile, match="does not fit"):
        TriplanePrior.from_state(prior.tensors(), {**card, "channels": [8, 24]})


def test_constants_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match="one each"):
        TriplanePriorShape(features=2, latent_spread=(1.0, 1.0))
    with pytest.raises(BadInput, match="positive"):
        TriplanePriorShape(density_scale=0.0)
    with pytest.raises(BadInput, match="positive"):
        TriplanePriorShape(features=1, latent_spread=(1.0, 0.0, 1.0))
