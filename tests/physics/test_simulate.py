from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from cryorbit.data import ImageSource, Volume
from cryorbit.errors import BadInput
from cryorbit.physics.formation import form_images
from cryorbit.physics.noise import shell_means
from cryorbit.physics.simulate import SimulationSettings, resample_volume, simulate
from laws import ROUND_OFF
from physics_models import GaussianBlobs, blob_atoms, varied_ctf

SMALL = SimulationSettings(n_particles=60, box=32, pixel_size_A=5.0, seed=3)


def map_32() -> Volume:
    return Volume(GaussianBlobs.random(40, radius_px=8.0, sigma_px=1.2).values(32).float(), 5.0)


def test_snr_is_the_ratio_of_variances():
    """Variance of the filtered, shifted signal over the box (mean over images) / noise variance = SNR."""
    clean = simulate(map_32(), replace(SMALL, snr=float("inf")))
    assert clean.sigma == 0
    signal = clean.stack.images[:].double().var(dim=(1, 2), correction=0).mean()
    for snr in (1.0, 0.1):
        noisy = simulate(map_32(), replace(SMALL, snr=snr))
        torch.testing.assert_close(noisy.sigma**2, (signal / snr).item(), rtol=1e-5, atol=0)
        noise = (noisy.stack.images[:] - clean.stack.images[:]).double()
        # 60 images of 1024 pixels: relative standard error of a variance sqrt(2 / 61440) = 0.6 %.
        assert abs(noise.var().item() / noisy.sigma**2 - 1) < 0.03


def test_images_are_what_the_truth_says():
    """Without noise the stack is form_images of the true map, poses and CTF."""
    simulation = simulate(blob_atoms(), replace(SMALL, snr=float("inf"), box=48))
    expected = form_images(simulation.volume, simulation.truth, simulation.stack.ctf)
    images = simulation.stack.images[:]
    assert ((images - expected).norm() / expected.norm()).item() < 1e-5
    assert simulation.stack.pose is None
    assert simulation.with_truth().pose is simulation.truth


def test_an_image_is_the_same_however_it_is_asked_for():
    """Slices, single rows, chunks and shuffled rows give the same images and noise, but for round-off."""
    stack = simulate(map_32(), replace(SMALL, snr=0.5)).stack
    assert isinstance(stack.images, ImageSource)
    every = stack.images[:]
    rows = torch.tensor([17, 3, 59, 3])
    bar = ROUND_OFF[torch.float32] * every.abs().max().item()
    torch.testing.assert_close(stack.images[rows], every[rows], rtol=0, atol=bar)
    torch.testing.assert_close(stack.images[5:6], every[5:6], rtol=0, atol=bar)
    chunks = list(simulate(map_32(), replace(SMALL, snr=0.5)).chunks(size=7))
    torch.testing.assert_close(torch.cat(chunks), every, rtol=0, atol=bar)


def test_seed_decides_everything():
    """Same seed, same stack; another seed, other poses and noise."""
    first, again, other = (simulate(map_32(), replace(SMALL, seed=s)) for s in (1, 1, 2))
    assert torch.equal(first.stack.images[:], again.stack.images[:])
    assert not torch.equal(first.truth.rotation, other.truth.rotation)


def test_shifts_have_the_spread_asked_for():
    """shift_sd_A is the standard deviation per axis, in angstrom."""
    truth = simulate(map_32(), replace(SMALL, n_particles=2000, shift_sd_A=7.0, snr=float("inf"))).truth
    assert (truth.shift_A.std(0) / 7.0 - 1).abs().max().item() < 0.08  # 5 standard errors of 2000 draws


def test_preferred_views_crowd_around_one_axis():
    """Mean cos^2 of the view with z is 1/3 when uniform; preferred views lie above 0.6. Rotations stay
    proper.
    """
    means = {}
    for kind in ("uniform", "preferred"):
        rotation = simulate(map_32(), replace(SMALL, n_particles=1000, orientations=kind)).truth.rotation
        identity = torch.eye(3).expand(1000, 3, 3)
        torch.testing.assert_close(rotation @ rotation.transpose(1, 2), identity, rtol=0, atol=1e-5)
        assert (torch.linalg.det(rotation) > 0.99).all()
        means[kind] = rotation[:, 2, 2].square().mean().item()
    assert abs(means["uniform"] - 1 / 3) < 0.05
    assert means["preferred"] > 0.6


def test_ctf_table_is_drawn_from_without_repeats():
    """With a table at least as long as the stack, every row is used at most once."""
    table = varied_ctf(80)
    ctf = simulate(map_32(), SMALL, ctf_table=table).stack.ctf
    assert ctf is not None
    drawn = ctf.defocus_u_A.tolist()
    assert len(set(drawn)) == 60
    assert set(drawn) <= set(table.defocus_u_A.tolist())


def test_defocus_stays_in_its_range_and_is_shared_by_a_micrograph():
    """Mean defocus within the range; particles of a micrograph within a few hundred angstrom."""
    stack = simulate(map_32(), replace(SMALL, particles_per_micrograph=20, optics_groups=2)).stack
    assert stack.ctf is not None
    assert stack.half_set is not None
    assert stack.optics_group is not None
    mean = 0.5 * (stack.ctf.defocus_u_A + stack.ctf.defocus_v_A)
    assert mean.min().item() >= 10000 - 1
    assert mean.max().item() <= 30000 + 1
    assert mean.view(3, 20).std(1).max().item() < 500
    assert stack.micrograph is not None
    assert [len(set(stack.micrograph[i : i + 20])) for i in (0, 20, 40)] == [1, 1, 1]
    assert stack.half_set.view(3, 20)[:, 0].tolist() == [1, 2, 1]
    assert stack.optics_group.view(3, 20)[:, 0].tolist() == [1, 2, 1]


def test_coloured_noise_falls_and_keeps_its_variance():
    """Coloured noise has sigma^2 per pixel and a spectrum that falls to about a third."""
    settings = replace(SMALL, snr=0.1, n_particles=200)
    clean = simulate(map_32(), replace(settings, snr=float("inf"))).stack.images[:]
    coloured = simulate(map_32(), replace(settings, noise="coloured"))
    noise = coloured.stack.images[:] - clean
    assert abs(noise.double().square().mean().item() / coloured.sigma**2 - 1) < 0.03
    power = shell_means(torch.fft.rfft2(noise).abs().square(), 32).mean(0)
    assert 2.5 < (power[1:3].mean() / power[-3:].mean()).item() < 4


def test_dark_contrast_is_the_negative():
    """contrast="dark" multiplies the signal by -1."""
    light, dark = (
        simulate(map_32(), replace(SMALL, snr=float("inf"), contrast=c)).stack.images[:]
        for c in ("light", "dark")
    )
    assert torch.equal(light, -dark)


@pytest.mark.parametrize(("n", "box"), [(32, 40), (33, 24), (32, 32)])
def test_resampling_keeps_origin_and_grey_values(n: int, box: int):
    """A smooth map sampled on another grid is the same function: blobs stay where they were, in angstrom."""
    pixel_A, new_A = 3.0, 3.0 * 0.8 * n / 32 if box > 30 else 4.2
    blobs = GaussianBlobs.random(20, radius_px=5.0, sigma_px=2.5)
    volume = Volume(blobs.values(n), pixel_A)
    scale = pixel_A / new_A
    expected = GaussianBlobs(blobs.centre_px * scale, blobs.weight * scale**3, blobs.sigma_px * scale).values(
        box
    )
    result = resample_volume(volume, box=box, pixel_size_A=new_A)
    assert result.pixel_size_A == new_A
    assert (
        (result.values - expected).norm() / expected.norm()
    ).item() < 5e-3  # the blobs' tails beyond Nyquist


def test_map_with_another_pixel_size_is_resampled():
    """A map of 33 px at 4 A simulated at 32 px and 5 A gives images of that box."""
    volume = Volume(GaussianBlobs.random(40, radius_px=8.0, sigma_px=2.0).values(33).float(), 4.0)
    simulation = simulate(volume, SMALL)
    assert simulation.volume.box == 32
    assert simulation.volume.pixel_size_A == 5.0
    assert simulation.stack.images[:3].shape == (3, 32, 32)


@pytest.mark.parametrize("change", [{"snr": 0.0}, {"defocus_um": (3.0, 1.0)}, {"box": 2}, {"n_particles": 0}])
def test_impossible_settings_are_refused(change: dict[str, float]):
    """Values that cannot be simulated are errors that name the setting."""
    with pytest.raises(BadInput, match=next(iter(change))):
        replace(SMALL, **change)


def test_every_setting_is_read():
    """A setting nobody reads would be a lie to the user."""
    seen: set[str] = set()

    class Spy(SimulationSettings):
        def __getattribute__(self, name: str) -> object:
            seen.add(name)
            return super().__getattribute__(name)

    simulate(blob_atoms(), Spy(n_particles=3, box=48, pixel_size_A=5.0))
    assert {f.name for f in dataclasses.fields(SimulationSettings)} <= seen
