"""Particles and a prior to posterior maps: a run that was stopped goes on to the same result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.inference.half_posteriors import PriorReconstructionSettings
from cryorbit.inference.posterior import PosteriorSettings
from cryorbit.inference.prior_reconstruction import reconstruct_with_prior
from cryorbit.io.checkpoint import load_state, save_state
from cryorbit.models.volume_prior import VolumePrior, VolumePriorShape
from cryorbit.physics.simulate import simulate
from cryorbit.physics.stack_plan import SimulationSettings

N, VOXEL_A = 16, 20.0
HOW = PriorReconstructionSettings(method="diffpir-spectrum-draw", half_samples=2)
SAMPLING = PosteriorSettings(samples=2, steps=3)


@pytest.fixture(scope="module")
def stack():
    axis = torch.arange(N) - N // 2
    r2 = axis[:, None, None] ** 2 + (axis[:, None] * 1.4) ** 2 + axis**2
    how = SimulationSettings(n_particles=60, box=N, pixel_size_A=VOXEL_A, snr=0.5, shift_sd_A=0.0, seed=1)
    return simulate(Volume(5 * torch.exp(-r2 / 10), VOXEL_A), how).with_truth()


@pytest.fixture(scope="module")
def prior():
    """A network that says nothing, of a spectrum that falls."""
    shape = VolumePriorShape(
        channels=(8,),
        box=N,
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
