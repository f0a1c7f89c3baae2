"""Laws of a whole run: it finds poses and map, the same twice and when cut, symmetric if told so."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from cryorbit.analysis.pose_error import pose_errors
from cryorbit.data import MemoryImages, ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.symmetry import point_group
from cryorbit.inference.abinitio import run_abinitio
from cryorbit.inference.abinitio_settings import AbinitioSettings
from cryorbit.inference.half_sets import half_sets
from cryorbit.io.checkpoint import load_state, save_state
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.simulate import SimulationSettings, simulate
from physics_models import GaussianBlobs

FOUND = 0.1
"""Mean squared error below which a run has found the particle (0.1 is 12.8 degrees)."""


def _settings(**changes):
    values = {"threads": 1, "starts": 2, "batches": 30, "batch_images": 50, "rounds": 2}
    return AbinitioSettings(**(values | changes))


def _last(stack, settings, state=None):
    *_, last = run_abinitio(stack, settings, state=state)
    return last.result


@lru_cache(maxsize=1)
def _complex():
    atoms = synthetic_complex(generator=torch.Generator().manual_seed(0))
    settings = SimulationSettings(
        n_particles=400, box=48, pixel_size_A=8.0, snr=1.0, shift_sd_A=10.0, seed=1, b_factor_A2=200.0
    )
    return simulate(atoms, settings)


def _symmetric_blobs(symmetry, box):
    group = point_group(symmetry)
    blobs = GaussianBlobs.random(6, radius_px=0.28 * box, seed=5)
    centres = torch.cat([blobs.centre_px @ g.T for g in group])
    return GaussianBlobs(centres, blobs.weight.repeat(len(group)), 1.6).values(box).float()


@lru_cache(maxsize=1)
def _small():
    """120 images, too few and too small to find much, for runs whose result is only compared with itself."""
    values = GaussianBlobs.random(12, radius_px=9.0, sigma_px=1.6, seed=5).values(32).float()
    settings = SimulationSettings(n_particles=120, box=32, pixel_size_A=8.0, snr=2.0, shift_sd_A=6.0, seed=3)
    simulation = simulate(Volume(values, 8.0), settings)
    stack = simulation.stack
    images = MemoryImages(stack.images[torch.arange(len(stack))])
    return ParticleStack(
        images=images, pixel_size_A=8.0, ids=stack.ids, ctf=stack.ctf, half_set=stack.half_set
    )


def _small_settings():
    return _settings(batches=6, batch_images=25, rounds=1)


@lru_cache(maxsize=1)
def _small_result():
    return _last(_small(), _small_settings())


def _assert_same(a, b):
    assert torch.equal(a.pose.rotation, b.pose.rotation)
    assert torch.equal(a.pose.shift_A, b.pose.shift_A)
    assert torch.equal(a.map.values, b.map.values)
    assert all(torch.equal(x.values, y.values) for x, y in zip(a.half_maps, b.half_maps, strict=True))
    assert torch.equal(a.confidence, b.confidence)
    assert torch.equal(a.entropy, b.entropy)


@pytest.mark.slow
def test_a_run_finds_the_poses_of_one_hand():
    """400 images of an asymmetric complex, SNR 1, from nothing: one hand, shifts to half a pixel."""
    simulation = _complex()
    result = _last(simulation.stack, _settings())
    errors = pose_errors(result.pose, simulation.truth)
    assert errors.mse < FOUND
    assert max(errors.hand_a, errors.hand_b) > 0.95
    assert float(errors.shift_error_A.median()) < 4.0
    assert result.converged
    assert result.curve.resolution_A(threshold=0.143) < 25.0
    assert torch.equal(result.half_set, simulation.stack.half_set)


@pytest.mark.slow
@pytest.mark.parametrize(("symmetry", "box"), [("D2", 32), ("C3", 48)])
def test_symmetric_particles(symmetry, box):
    """Poses are right up to the group, the map is invariant, mates are not taken for rival poses."""
    settings = SimulationSettings(n_particles=300, box=box, pixel_size_A=8.0, snr=1.0, shift_sd_A=8.0, seed=3)
    simulation = simulate(Volume(_symmetric_blobs(symmetry, box), 8.0), settings)
    result = _last(simulation.stack, _settings(symmetry=symmetry))
    assert pose_errors(result.pose, simulation.truth, group=symmetry).mse < FOUND
    assert result.converged
    for element in point_group(symmetry).float():
        turned = _turned(result.map.values, element)
        inner = _ball(box, 0.35 * box)
        a, b = result.map.values[inner], turned[inner]
        assert float(torch.corrcoef(torch.stack((a, b)))[0, 1]) > 0.99


def _ball(n, radius):
    axis = torch.arange(n) - n // 2
    return axis[:, None, None].square() + axis[:, None].square() + axis.square() < radius**2


def _turned(values, rotation):
    """values at R x by trilinear reads, x from voxel n // 2."""
    n = values.shape[0]
    axis = torch.arange(n, dtype=torch.float32) - n // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    at = torch.stack((x, y, z), -1) @ rotation.T
    grid = (at + n // 2) * (2 / (n - 1)) - 1
    return torch.nn.functional.grid_sample(values[None, None], grid[None], align_corners=True)[0, 0]


def test_the_same_seed_gives_the_same_bits():
    """Two runs with one seed agree in every bit; another seed does not."""
    _assert_same(_last(_small(), _small_settings()), _small_result())
    other = _last(_small(), _settings(batches=6, batch_images=25, rounds=1, seed=1))
    assert not torch.equal(other.pose.rotation, _small_result().pose.rotation)


@pytest.mark.parametrize(
    ("stage", "step"), [("random starts", 2), ("search of all poses", 1), ("refinement, round 1", 1)]
)
def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path, stage, step):
    """State saved in each stage, read back from disk and continued gives the unbroken run's result."""
    for progress in run_abinitio(_small(), _small_settings()):
        if (progress.stage, progress.step) == (stage, step) or (
            progress.stage == stage and progress.step == progress.steps
        ):
            break
    else:
        pytest.fail(f"no record {stage} {step}")
    tensors = {k: v for k, v in progress.state.items() if isinstance(v, torch.Tensor)}
    meta = {k: v for k, v in progress.state.items() if k not in tensors}
    save_state(tmp_path / "state.safetensors", tensors, meta)
    tensors, meta = load_state(tmp_path / "state.safetensors")
    _assert_same(_last(_small(), _small_settings(), state={**tensors, **meta}), _small_result())


def test_progress_grows_and_the_last_record_has_the_result():
    """fraction and image_visits never fall, fraction ends at 1, only the last record carries a result."""
    records = [(p.fraction, p.metrics, p.result) for p in run_abinitio(_small(), _small_settings())]
    fractions = [f for f, _, _ in records]
    visits = [m["image_visits"] for _, m, _ in records]
    assert fractions == sorted(fractions)
    assert visits == sorted(visits)
    assert fractions[-1] == 1.0
    assert [r is not None for _, _, r in records] == [False] * (len(records) - 1) + [True]


def test_results_are_complete():
    """One row per particle; rotations are proper; maps have the box and pixel size of the images."""
    result, stack = _small_result(), _small()
    n = len(stack)
    assert len(result.pose) == len(result.confidence) == len(result.entropy) == len(result.half_set) == n
    identity = torch.eye(3).expand(n, 3, 3)
    torch.testing.assert_close(
        result.pose.rotation @ result.pose.rotation.transpose(1, 2), identity, rtol=0, atol=1e-5
    )
    assert bool((torch.linalg.det(result.pose.rotation) > 0).all())
    assert bool(((result.confidence > 0) & (result.confidence <= 1 + 1e-6)).all())
    assert bool((result.entropy <= 1e-4).all())
    for volume in (result.map, *result.half_maps):
        assert volume.box == stack.box
        assert volume.pixel_size_A == stack.pixel_size_A
        assert bool(volume.values.isfinite().all())


def _stack(n, **fields):
    g = torch.Generator().manual_seed(0)
    images = MemoryImages(torch.randn(n, 20, 20, generator=g))
    return ParticleStack(images=images, pixel_size_A=5.0, ids=np.arange(n).astype(str), **fields)


def _half_sets(stack):
    return half_sets(stack, generator=torch.Generator().manual_seed(0))


def test_halves_of_the_file_are_kept():
    """1 and 2 in the file are 0 and 1 here, even where micrographs would say otherwise."""
    half_set = 1 + (torch.arange(40) % 3 == 0).long()
    micrograph = np.repeat([f"m{i}" for i in range(8)], 5)
    assert torch.equal(_half_sets(_stack(40, half_set=half_set, micrograph=micrograph)), half_set - 1)


def test_micrographs_are_not_split():
    """Without halves in the file whole micrographs go to one half, and the halves are balanced."""
    sizes = [17, 3, 9, 11, 1, 20, 8, 31]
    micrograph = np.repeat([f"mic_{i}.mrc" for i in range(len(sizes))], sizes)
    half = _half_sets(_stack(100, micrograph=micrograph))
    for name in set(micrograph):
        assert len(half[torch.from_numpy(micrograph == name)].unique()) == 1
    assert abs(int((half == 0).sum()) - 50) <= 5


@pytest.mark.parametrize("fields", [{}, {"micrograph": np.repeat(["a", "b"], [50, 1])}])
def test_halves_at_random(fields):
    """Nothing to go by, or two micrographs of which one is nearly empty: at random, sizes within one."""
    half = _half_sets(_stack(51, **fields))
    assert abs(int((half == 0).sum()) - int((half == 1).sum())) == 1
    assert torch.equal(half, _half_sets(_stack(51, **fields)))


def test_a_file_with_one_half_is_split_anew():
    """Half set 1 throughout is no split."""
    half = _half_sets(_stack(50, half_set=torch.ones(50, dtype=torch.long)))
    assert int((half == 0).sum()) == 25


def test_too_few_images_are_refused():
    """Fewer than 50 images, or less than a batch: BadInput that says how many there are."""
    with pytest.raises(BadInput, match="49 images"):
        _last(_stack(49), AbinitioSettings())


@pytest.mark.parametrize("wrong", ["flat", "small"])
def test_unusable_images_are_refused(wrong):
    """An image without variation, or a box below 16 px."""
    stack = _stack(120)
    images = stack.images[torch.arange(120)]
    if wrong == "flat":
        images[7] = 3.0
    else:
        images = images[:, :14, :14].contiguous()
    bad = ParticleStack(images=MemoryImages(images), pixel_size_A=5.0, ids=stack.ids)
    with pytest.raises(BadInput, match="variation" if wrong == "flat" else "too small"):
        _last(bad, AbinitioSettings(threads=1))
