from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.physics.formation import form_images
from cryorbit.physics.simulate import SimulationSettings, simulate
from cryorbit.physics.simulate_states import assign_states, common_frame, simulate_states
from laws import ROUND_OFF
from physics_models import GaussianBlobs, blob_atoms

SMALL = SimulationSettings(n_particles=70, box=20, pixel_size_A=9.0, snr=0.5, seed=3)


def two_maps(box: int) -> list[Volume]:
    return [
        Volume(GaussianBlobs.random(20, radius_px=5.0, sigma_px=1.2, seed=s).values(box).float(), 9.0)
        for s in (0, 1)
    ]


@pytest.mark.parametrize("box", [20, 21])
@pytest.mark.parametrize("noise", ["white", "coloured"])
def test_one_state_is_the_stack_of_simulate(box, noise):
    """With one state, atoms or map, images, poses and CTF are those of `simulate`."""
    settings = replace(SMALL, box=box, noise=noise)
    for model in (blob_atoms(), two_maps(box)[0]):
        plain = simulate(model, settings)
        states = simulate_states([model], torch.zeros(70, dtype=torch.long), settings)
        expected = plain.stack.images[:]
        bar = ROUND_OFF[torch.float32] * expected.abs().max().item()
        torch.testing.assert_close(states.stack.images[:], expected, rtol=0, atol=bar)
        assert torch.equal(states.truth.rotation, plain.truth.rotation)
        assert states.stack.ctf is not None
        assert plain.stack.ctf is not None
        assert torch.equal(states.stack.ctf.defocus_u_A, plain.stack.ctf.defocus_u_A)


@pytest.mark.parametrize("box", [20, 21])
def test_every_image_shows_its_state(box):
    """Without noise, image i is form_images of the map of state i in its pose, whatever the order of the states."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(2, (70,), generator=generator)
    made = simulate_states(two_maps(box), state, replace(SMALL, box=box, snr=float("inf")))
    for number in (0, 1):
        rows = torch.nonzero(state == number)[:, 0]
        assert made.stack.ctf is not None
        expected = form_images(made.volume(number), made.truth[rows], made.stack.ctf[rows])
        bar = ROUND_OFF[torch.float32] * expected.abs().max().item()
        torch.testing.assert_close(made.stack.images[rows], expected, rtol=0, atol=bar)


def test_the_noise_of_an_image_does_not_depend_on_its_state():
    """The same settings with other states: the noise, over its sigma, is the same image by image."""
    noise = []
    for state in (torch.zeros(70, dtype=torch.long), torch.arange(70) % 2):
        made = simulate_states(two_maps(20), state, SMALL)
        clean = simulate_states(two_maps(20), state, replace(SMALL, snr=float("inf")))
        noise.append((made.stack.images[:] - clean.stack.images[:]) / made.sigma)
    # The difference of two float32 images is good to their own round-off; the noise is of the order of 1.
    torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-4)


def test_snr_is_that_of_the_set():
    """Mean signal variance over all images / noise variance = SNR."""
    state = torch.arange(70) % 2
    clean = simulate_states(two_maps(20), state, replace(SMALL, snr=float("inf"))).stack.images[:]
    sigma = simulate_states(two_maps(20), state, SMALL).sigma
    signal = clean.double().var(dim=(1, 2), correction=0).mean().item()
    torch.testing.assert_close(sigma**2, signal / SMALL.snr, rtol=1e-5, atol=0)


def test_states_of_atoms_keep_their_frame():
    """All states move by one vector, and the mean of their centres is the origin."""
    first = blob_atoms()
    second = replace(first, position_A=first.position_A + torch.tensor([8.0, 0.0, 0.0]))
    a, b = common_frame([first, second])
    torch.testing.assert_close(b.position_A - a.position_A, second.position_A - first.position_A)
    mass = (a.occupancy * a.atomic_number)[:, None] / (a.occupancy * a.atomic_number).sum()
    centre = 0.5 * (mass * (a.position_A + b.position_A)).sum(0)
    assert centre.norm().item() < 1e-4  # float32 positions of 60 A


def test_states_are_assigned_in_their_proportions():
    """Counts differ from n times the share by less than one; the order is random, the seed decides it."""
    population = torch.tensor([1.0, 2.0, 0.0, 4.0])
    first, again, other = (
        assign_states(101, population, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    count = torch.bincount(first, minlength=4).double()
    assert (count - 101 * population / 7).abs().max().item() < 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, first.sort().values)


def test_wrong_states_are_refused():
    """A state that does not exist, a wrong number of images, no state, no population."""
    with pytest.raises(BadInput, match="2 models"):
        simulate_states(two_maps(20), torch.full((70,), 2), SMALL)
    with pytest.raises(BadInput, match="n_particles 70"):
        simulate_states(two_maps(20), torch.zeros(9, dtype=torch.long), SMALL)
    with pytest.raises(BadInput, match="no state"):
        simulate_states([], torch.zeros(70, dtype=torch.long), SMALL)
    with pytest.raises(BadInput, match="populations"):
        assign_states(5, torch.zeros(3), generator=torch.Generator())
