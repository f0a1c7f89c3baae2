from __future__ import annotations

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.physics.noise import (
    add_coloured_noise,
    add_white_noise,
    noise_spectrum,
    normalise_images,
    shell_means,
    spread_shells,
)
from physics_models import GaussianBlobs, uniform_rotations

STANDARD_ERRORS = 5.0  # of some 30 shells none should miss by more
MASK_BLUR = 0.02  # relative; the mask's transform mixes neighbouring shells of a smooth spectrum


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("box", [32, 33])
def test_white_noise_has_the_power_of_its_variance(box: int):
    """|rfft2|^2 of white noise averages box^2 sigma^2 in every shell, within its standard error."""
    images = add_white_noise(torch.zeros(400, box, box), sigma=1.7, generator=chance())
    power = shell_means(torch.fft.rfft2(images).abs().square(), box)
    error = power.std(0) / 20
    assert ((power.mean(0) - box**2 * 1.7**2).abs() < STANDARD_ERRORS * error).all()


@pytest.mark.parametrize("box", [32, 33])
def test_coloured_noise_has_the_power_asked_for(box: int):
    """The shells of coloured noise average the given power, within their standard errors and one shell's
    width.
    """
    wanted = 100 * torch.exp(-torch.arange(box // 2 + 1) / 8.0) + 20
    images = add_coloured_noise(torch.zeros(400, box, box), power=wanted, generator=chance())
    power = shell_means(torch.fft.rfft2(images).abs().square(), box)
    expected = shell_means(spread_shells(wanted, box), box)  # what linear interpolation makes of it
    error = power.std(0) / 20
    assert ((power.mean(0) - expected).abs() < STANDARD_ERRORS * error).all()


@pytest.mark.parametrize("box", [48, 49])
def test_spectrum_is_recovered_outside_the_particle(box: int):
    """Noise with a known spectrum on top of particles: the estimate misses by its standard errors and the
    mask's blur.
    """
    blobs = GaussianBlobs.random(30, radius_px=0.2 * box)
    particles = 20 * blobs.images(box, uniform_rotations(300)).float()
    wanted = 100 * torch.exp(-torch.arange(box // 2 + 1) / 20.0) + 20
    images = add_coloured_noise(particles, power=wanted, generator=chance())
    found = noise_spectrum(images, radius_px=0.25 * box, edge_px=4)
    expected = shell_means(spread_shells(wanted, box), box)
    miss = (found.power - expected).abs()
    allowed = STANDARD_ERRORS * found.standard_error + MASK_BLUR * expected
    assert (miss[3:] < allowed[3:]).all()  # the mean is taken away, so the lowest shells are low
    assert (found.standard_error < 0.1 * found.power)[1:].all()


def test_spectrum_needs_room_around_the_particle():
    """A circle that fills the image leaves nothing to measure."""
    with pytest.raises(BadInput, match="larger box"):
        noise_spectrum(torch.randn(3, 16, 16, generator=chance()), radius_px=20.0)


@pytest.mark.parametrize("box", [32, 33])
def test_normalised_background_has_mean_0_and_spread_1(box: int):
    """Outside the circle: mean 0, standard deviation 1, whatever the scale and offset were."""
    images = 7 + 3 * torch.randn(5, box, box, generator=chance())
    x = torch.arange(box) - box // 2
    outside = (x[:, None] ** 2 + x**2) > 100
    for scaled in (images, -40 * images + 1000):
        background = normalise_images(scaled, radius_px=10.0)[:, outside]
        assert background.mean(1).abs().max().item() < 1e-4
        assert (background.std(1) - 1).abs().max().item() < 1e-4


def test_normalising_a_flat_image_gives_zeros():
    """An image without variation is shifted to 0, not divided by it."""
    assert torch.equal(normalise_images(torch.full((1, 16, 16), 5.0), radius_px=4.0), torch.zeros(1, 16, 16))


@pytest.mark.parametrize("box", [16, 17])
def test_shell_means_of_a_spread_profile_return_a_constant(box: int):
    """A constant profile survives spreading and averaging."""
    flat = torch.full((box // 2 + 1,), 3.0, dtype=torch.float64)
    torch.testing.assert_close(shell_means(spread_shells(flat, box), box), flat, rtol=0, atol=1e-12)


def test_wrong_number_of_powers_is_refused():
    """Coloured noise wants one power per shell, none negative."""
    for power in (torch.ones(5), -torch.ones(9)):
        with pytest.raises(BadInput, match="9 non-negative"):
            add_coloured_noise(torch.zeros(1, 16, 16), power=power, generator=chance())
