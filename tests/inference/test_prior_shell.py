"""What stands between images or maps and a prior: grids, likelihoods of a part, grey scale, patches, the prior's error."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from cryorbit.data import Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.resample import box_crop, box_pad
from cryorbit.geometry.rotations import random_rotations
from cryorbit.inference.image_sums import ImageSums, central
from cryorbit.inference.observations import observe
from cryorbit.inference.patched_denoiser import PatchedDenoiser
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.prior import PriorSettings
from cryorbit.inference.prior_error import ErrorModel, held_out_size
from cryorbit.inference.prior_gain import fit_gain
from cryorbit.inference.prior_images import collapse_half, gaussian_pass, grid_for, posed_images
from cryorbit.inference.prior_recipe import PriorRecipe, Structures, make_prior, procedural_lengths
from cryorbit.models.volume_prior import VolumePriorShape
from cryorbit.physics.atom_density import density_of_atoms
from cryorbit.physics.procedural_protein import procedural_protein
from cryorbit.physics.simulate import simulate
from cryorbit.physics.stack_plan import SimulationSettings
from laws import ROUND_OFF

SHAPE = VolumePriorShape(box=32, voxel_size_A=(2.5, 4.0), resolution_A=(6.0, 12.0))
TINY = PriorRecipe(
    proteins=1,
    lengths=(20, 22),
    held_back=0,
    batch=1,
    measured_batches=1,
    box=8,
    voxel_size_A=(8.0, 9.0),
    map_resolution_A=(18.0, 20.0),
    channels=(8,),
)
GAIN_SPREAD = 0.2
"""Procedural proteins are a tenth less dense than the real ones the constant is of, and scatter by 4 %."""


def sums(n: int) -> TwoVolumes:
    """The likelihood of images of noise at random poses, float64."""
    g = torch.Generator().manual_seed(n)
    made = ImageSums(n, pixel_size_A=1.0, width=8)
    images = torch.randn(6, n, n, generator=g, dtype=torch.float64)
    pose = Pose(random_rotations(6, generator=g).double(), torch.zeros(6, 2, dtype=torch.float64))
    made.insert(images, pose, noise_power=float(n * n))
    return made.finish(dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(12, 8), (12, 7), (11, 8), (11, 7)])
def test_the_middle_of_a_likelihood_is_that_of_maps_empty_outside(n, m):
    """W and B of the middle equal those of the padded map: misfit and gradient, exactly."""
    data, v = sums(n), torch.randn(m, m, m, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide, part = box_pad(v, n, ndim=3), central(data, m)
    scale = float(data.apply(wide).abs().max())
    error = part.apply(v) - box_crop(data.apply(wide), m, ndim=3)
    assert float(error.abs().max()) < 1e-10 * scale
    assert float(part.chi_square(v) - data.chi_square(wide)) == pytest.approx(0, abs=1e-9 * data.energy)
    with pytest.raises(BadInput, match="smaller box"):
        central(part, n + 1)


def test_a_grid_holds_the_particle_at_the_finest_voxels_the_prior_knows():
    small = grid_for(SHAPE, box=64, pixel_size_A=1.5, diameter_A=40.0)
    assert small.box == 32
    assert small.images_px * small.voxel_size_A == pytest.approx(96.0)
    assert 2.5 <= small.voxel_size_A < 2.6
    large = grid_for(SHAPE, box=128, pixel_size_A=1.5, diameter_A=95.0)
    assert large.box * large.voxel_size_A > 1.1 * 95
    assert large.resolution_A >= 2 * large.voxel_size_A
    with pytest.raises(BadInput, match="--particle-diameter-A"):
        grid_for(SHAPE, box=256, pixel_size_A=1.5, diameter_A=200.0)
    with pytest.raises(BadInput, match="smaller pixels"):
        grid_for(SHAPE, box=32, pixel_size_A=5.0, diameter_A=100.0)


@pytest.mark.parametrize("resolution_A", [5.1, 20.0])
def test_a_resolution_that_the_prior_does_not_know_is_refused(resolution_A):
    """Its maps went through 6 to 12 A: what is sharper or smoother is none of them."""
    with pytest.raises(BadInput, match="6 to 12 A"):
        grid_for(SHAPE, box=64, pixel_size_A=1.5, diameter_A=40.0, resolution_A=resolution_A)
    assert grid_for(SHAPE, box=64, pixel_size_A=1.5, diameter_A=40.0, resolution_A=9.0).resolution_A == 9.0


@pytest.mark.parametrize("box", [40, 41])
def test_the_true_map_explains_images_as_well_as_their_measured_noise_allows(box):
    """chi^2 per number is 1 within 0.012, three standard deviations: no signal is taken for noise, at SNR 0.1 with CTF."""
    atoms = procedural_protein(60, seed=7)
    drawn = density_of_atoms(atoms, box=box, pixel_size_A=3.0, resolution_A=6.0)
    model = Volume(drawn.values.to(torch.float32), 3.0)
    how = SimulationSettings(n_particles=100, box=box, pixel_size_A=3.0, snr=0.1, shift_sd_A=0.0, seed=1)
    seen = observe(simulate(model, how).with_truth(), generator=torch.Generator().manual_seed(0))
    shape = VolumePriorShape(box=48, voxel_size_A=(2.5, 4.0), resolution_A=(6.0, 12.0))
    posed = posed_images(seen, grid_for(shape, box=box, pixel_size_A=3.0, diameter_A=60.0))
    data = collapse_half(posed, 0, seed=0) + collapse_half(posed, 1, seed=0)
    low = gaussian_pass(box, 3.0, posed.grid.resolution_A, ndim=3)
    truth = torch.fft.irfftn(torch.fft.rfftn(model.values) * low, s=(box,) * 3)
    truth = truth * data.gain(truth)
    assert float(data.chi_square(truth)) / data.count == pytest.approx(1, abs=0.012)


@pytest.mark.parametrize("box", [31, 32])
def test_the_grey_scale_is_found_whatever_the_mass(box):
    """Twice as large for maps twice as strong; of proteins of two sizes within the spread; with noise in the halves."""
    g = torch.Generator().manual_seed(0)
    for residues in (60, 150):
        atoms = procedural_protein(residues, seed=7)
        v = density_of_atoms(atoms, box=box, pixel_size_A=3.0, resolution_A=6.0).values
        how = {"voxel_size_A": 3.0, "resolution_A": 6.0, "radius_A": 28.0}
        one = fit_gain(v, v, **how)
        assert one == pytest.approx(1.0, abs=GAIN_SPREAD)
        assert fit_gain(2 * v, 2 * v, **how) == pytest.approx(2 * one, rel=1e-6)
        low = gaussian_pass(box, 3.0, 6.0, ndim=3)
        noisy = [
            v + torch.fft.irfftn(low * torch.fft.rfftn(2 * torch.randn(v.shape, generator=g)), s=(box,) * 3)
            for _ in range(2)
        ]
        assert fit_gain(*noisy, **how) == pytest.approx(one, rel=0.1)
    with pytest.raises(BadInput, match="--contrast"):
        fit_gain(-v, -v, **how)


@dataclass(frozen=True)
class Halving:
    """A denoiser that acts voxel by voxel."""

    sigma_data: float = 1.0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize("n", [5, 8, 9, 13, 20])
def test_patches_blend_to_what_a_local_denoiser_gives(n):
    """Every voxel is covered, and windows add up to one."""
    patched = PatchedDenoiser(Halving(), 8)
    x = torch.randn(2, 1, n, n, n, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        patched(x, torch.ones(2)), x / 2, rtol=ROUND_OFF[x.dtype], atol=ROUND_OFF[x.dtype]
    )
    starts = patched.starts(n)
    assert starts[0] == 0
    assert starts[-1] == max(n - 8, 0)


def diagonal_halves(n: int, truth: Tensor, weight: float) -> list[TwoVolumes]:
    g = torch.Generator().manual_seed(3)
    out = []
    for _ in range(2):
        y = truth + weight**-0.5 * torch.randn(truth.shape, generator=g, dtype=truth.dtype)
        full = torch.full((n, n, n // 2 + 1), weight, dtype=truth.dtype)
        out.append(TwoVolumes(weight * y, full, None, float(weight * y.square().sum()), float(n**3), 1.0))
    return out


@pytest.mark.parametrize("n", [9, 10])
def test_held_out_data_say_how_wrong_the_prior_is(n):
    """A right map stays as it is; a wrong one is corrected towards the data where it has density, and only there."""
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    r2 = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    truth = 3 * torch.exp(-r2 / 6)
    halves = diagonal_halves(n, truth, 4.0)
    assert held_out_size([truth, truth], halves)[0] <= 0.1
    assert torch.equal(ErrorModel.of(truth, 0.0).corrected(truth, halves[0]), truth)
    wrong = 0.6 * truth
    size, misfit = held_out_size([wrong, wrong], halves)
    assert size > 0.1
    assert misfit[size] < misfit[0.0]
    better = ErrorModel.of(wrong, size).corrected(wrong, halves[0])
    inside = truth > 0.5
    assert float((better - truth)[inside].norm()) < float((wrong - truth)[inside].norm())
    assert float((better - wrong)[r2 > 0.8 * float(r2.max())].abs().max()) < 0.05


def test_a_prior_is_made_and_resumed_to_the_same():
    """From folding to weights; stopped after two of four steps and gone on, the weights are equal bit by bit."""
    recipe = replace(TINY, proteins=2, held_back=1, measured_batches=2)
    how = PriorSettings(steps=4, record_every=2, warm_up=1)
    whole = list(make_prior(recipe, how, Structures()))
    kept = next(r for r in make_prior(recipe, how, Structures()) if r.stage == "learning").state
    kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kept.items()}
    again = list(make_prior(recipe, how, Structures(), state=kept))
    assert "validation_dB" in whole[-2].metrics
    for name, weight in whole[-1].result.tensors().items():
        assert torch.equal(again[-1].result.tensors()[name], weight)


def test_a_prior_has_the_network_its_recipe_asks_for():
    """Cubes of voxels, blocks and attention, on an odd box too: the weights that come out fit what their card says."""
    recipe = replace(TINY, box=9, channels=(8, 16), patch=2, blocks=2, attention=True)
    prior = list(make_prior(recipe, PriorSettings(steps=1, warm_up=1), Structures()))[-1].result
    card = prior.card()
    assert (card["patch"], card["blocks"], card["attention"]) == (2, 2, True)
    again = type(prior).from_state(prior.tensors(), card)
    assert any("attention" in name for name in again.tensors())
    assert again.denoiser(voxel_size=8.0)(torch.zeros(1, 1, 9, 9, 9), torch.ones(1)).shape == (1, 1, 9, 9, 9)


def test_lengths_of_the_shipped_prior_are_those_of_its_recipe():
    lengths = procedural_lengths(400, (50, 240))
    assert len(lengths) == 400
    assert 50 <= min(lengths) <= max(lengths) < 240
