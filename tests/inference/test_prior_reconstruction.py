"""Particles and a prior to posterior maps: a run that was stopped goes on to the same result, and volts are volts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryorbit.data import ParticleStack, Volume
from cryorbit.data.particles import MemoryImages
from cryorbit.fourier.resample import box_crop
from cryorbit.inference.half_posteriors import PriorReconstructionSettings
from cryorbit.inference.posterior import PosteriorSettings
from cryorbit.inference.prior_images import gaussian_pass
from cryorbit.inference.prior_maps import cut
from cryorbit.inference.prior_reconstruction import reconstruct_with_prior
from cryorbit.io.checkpoint import load_state, save_state
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from cryorbit.physics.simulate import simulate
from cryorbit.physics.stack_plan import SimulationSettings

N, VOXEL_A = 16, 20.0
HOW = PriorReconstructionSettings(method="diffpir-spectrum-draw", half_samples=2)
SAMPLING = PosteriorSettings(samples=2, steps=3)
QUICK = PosteriorSettings(samples=1, steps=2)
AMPLITUDE = 0.1
"""Of a map's amplitude: 60 images at SNR 0.5 leave it 0.02 off, measured. Noise taken for the unit leaves it 0.86 off."""
SAME = 1e-5
"""Relative, float32: eight is a power of two, so that not even rounding differs."""


def blob(n: int) -> Tensor:
    """A map in volts, so strong that its images' noise is of several grey values."""
    axis = torch.arange(n) - n // 2
    r2 = axis[:, None, None] ** 2 + (axis[:, None] * 1.4) ** 2 + axis**2
    return 40 * torch.exp(-r2 / 10)


def images_of(n: int) -> ParticleStack:
    """The map's images with noise, in volts summed over voxels."""
    how = SimulationSettings(n_particles=60, box=n, pixel_size_A=VOXEL_A, snr=0.5, shift_sd_A=0.0, seed=1)
    return simulate(Volume(blob(n), VOXEL_A), how).with_truth()


@pytest.fixture(scope="module")
def stack():
    return images_of(N)


@pytest.fixture(scope="module")
def prior():
    """A network that says nothing, of a spectrum that falls."""
    shape = VolumePriorShape(
        channels=(8,),
        box=N,
        density_scale=8.0,
        voxel_size_A=(18.0, 24.0),
        resolution_A=(40.0, 50.0),
        spectrum=tuple(1e12 * 10 ** (-0.5 * k) for k in range(8)),
        spectrum_step_per_A=0.004,
    )
    return VolumePrior(shape, generator=torch.Generator().manual_seed(0))


def test_a_stopped_run_goes_on_to_the_same_maps(stack, prior, tmp_path):
    """From a checkpoint read back from its file: amid the first sampling, and at the end of the second, bit by bit."""
    states, last = {}, None
    for record in reconstruct_with_prior(stack, prior, HOW, SAMPLING):
        kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in record.state.items()}
        states[record.stage, record.step] = kept
        last = record.result
    assert last is not None
    for state in (states["sampling all", 2], states["sampling half 1", 3]):
        tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        rest = {k: v for k, v in state.items() if k not in tensors}
        save_state(tmp_path / "c.safetensors", tensors, {"state": rest})
        read, meta = load_state(tmp_path / "c.safetensors")
        *_, end = reconstruct_with_prior(stack, prior, HOW, SAMPLING, state={**read, **meta["state"]})
        assert torch.equal(end.result.samples, last.samples)
        assert torch.equal(end.result.halves[1], last.halves[1])
        assert (end.result.network_passes, end.result.chi_square) == (last.network_passes, last.chi_square)


def run(stack, prior, **options):
    *_, end = reconstruct_with_prior(stack, prior, replace(HOW, half_samples=1, **options), QUICK)
    return end.result


@pytest.mark.parametrize("n", [16, 17])
def test_a_gain_of_one_is_right_for_images_of_volts(prior, n):
    """Though their noise is of seven grey values: the posterior has the truth's amplitude."""
    found = run(images_of(n), prior, gain=1.0)
    low = gaussian_pass(n, VOXEL_A, found.grid.resolution_A, ndim=3)
    truth = torch.fft.irfftn(torch.fft.rfftn(blob(n)) * low, s=(n,) * 3)
    truth = cut(box_crop(truth, found.grid.box, ndim=3), found.cutoff_A, VOXEL_A)
    assert found.gain == 1.0
    amplitude = float((found.mean * truth).sum() / truth.square().sum())
    assert amplitude == pytest.approx(1, abs=AMPLITUDE)


def test_the_grey_scale_is_that_of_the_file(stack, prior):
    """Images eight times as strong have eight times the gain, fitted or given, and the same maps."""
    strong = replace(stack, images=MemoryImages(8 * stack.images[:]))
    fitted, fitted_strong = run(stack, prior), run(strong, prior)
    given, given_strong = run(stack, prior, gain=fitted.gain), run(strong, prior, gain=8 * fitted.gain)
    assert fitted_strong.gain == pytest.approx(8 * fitted.gain, rel=SAME)
    for one, other in ((fitted, fitted_strong), (given, given_strong)):
        assert float((one.mean - other.mean).norm() / one.mean.norm()) < SAME
    # Given or fitted, the same number says the same, but for each image's own measured noise.
    amplitude = float((given.mean * fitted.mean).sum() / fitted.mean.square().sum())
    assert amplitude == pytest.approx(1, abs=AMPLITUDE)
