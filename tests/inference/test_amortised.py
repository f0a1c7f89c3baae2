"""Laws of amortised inference: it goes on where it was cut, searches only with a teacher, and finds a small particle."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from cryorbit.analysis.pose_error import pose_errors
from cryorbit.data import MemoryImages, ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.inference import first_map, hybrid, known_map, locate, ring_em
from cryorbit.inference.abinitio_settings import AbinitioSettings
from cryorbit.inference.amortised import (
    AmortisedSettings,
    new_training,
    result_of,
    run_amortised,
    training_images,
)
from cryorbit.inference.amortised_data import ImageBatch, misfit
from cryorbit.inference.network import run_network
from cryorbit.inference.refine import half_disk
from cryorbit.io.checkpoint import load_state, save_state
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.simulate import SimulationSettings, simulate
from laws import ROUND_OFF
from physics_models import GaussianBlobs

FOUND = 0.1
"""Mean squared error below which poses are found (12.8 degrees)."""


@lru_cache(maxsize=2)
def _simulated(n=300, snr=float("inf")):
    values = GaussianBlobs.random(14, radius_px=6.5, sigma_px=1.2, seed=5).values(24).float()
    settings = SimulationSettings(
        n_particles=n, box=24, pixel_size_A=8.0, snr=snr, shift_sd_A=6.0, seed=3, b_factor_A2=0.0
    )
    made = simulate(Volume(values, 8.0), settings)
    images = MemoryImages(made.stack.images[torch.arange(n)])
    return ParticleStack(images=images, pixel_size_A=8.0, ids=made.stack.ids, ctf=made.stack.ctf), made.truth


def _settings(**changes):
    values = {
        "box_px": 24,
        "width": 0.125,
        "hypotheses": 2,
        "batch": 16,
        "max_visits": 160,
        "search_batches": 4,
        "search_batch": 30,
        "record_every": 1,
        "contrast": "light",
    }
    return AmortisedSettings(**(values | changes))


KINDS = {
    "pure": {},
    "refined": {"refinement": 1},
    "gradient": {"update": "gradient", "encoder": "d4", "loss": "l2"},
    "fouriernet": {"decoder": "fouriernet", "encoder": "standard", "loss": "sym", "max_visits": 64},
    "grid": {"encoder": "slice", "max_visits": 64},
    "grid, refined": {"encoder": "slice", "refinement": 1, "max_visits": 64},
    "hybrid": {"teacher": 0.5, "max_visits": 500},
    "hybrid, grid": {"encoder": "slice", "teacher": 0.5, "max_visits": 500},
    "hybrid, own map": {"teacher": 0.5, "search_batches": 2, "max_visits": 10**6},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_where_it_was_cut(kind, tmp_path, monkeypatch):
    """From a checkpoint in a file, the second half ends in the same poses and map, to the last bit."""
    if (
        kind == "hybrid, own map"
    ):  # believed at once, posed in blocks of 20, and cut when the map is that of 40 posed images
        monkeypatch.setattr(first_map.FirstMap, "believed", lambda self: True)
        monkeypatch.setattr(hybrid, "BLOCK", 20)
        monkeypatch.setattr(hybrid, "FIRST_MAP", 40)
    stack, settings = _simulated(100 if "hybrid" in kind else 300)[0], _settings(**KINDS[kind])
    records = []
    for record in run_amortised(stack, settings):
        here = "map_of_posed" in record.state if "own map" in kind else len(records) == 2
        if here and not (tmp_path / "state").exists():
            save_state(tmp_path / "state", *_split(record.state))
        records.append(record)
    whole = records[-1].result
    assert len(records) > 4
    tensors, meta = load_state(tmp_path / "state")
    *_, last = run_amortised(stack, settings, state={**meta, **tensors})
    assert torch.equal(last.result.pose.rotation, whole.pose.rotation)
    assert torch.equal(last.result.map.values, whole.map.values)
    assert last.result.image_visits == whole.image_visits


def _split(state):
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return tensors, {k: v for k, v in state.items() if k not in tensors}


def test_without_a_teacher_nothing_is_searched(monkeypatch):
    """The posterior on the grid is not computed once, in training or afterwards; with a teacher it is."""

    def refuse(*_, **__):
        raise AssertionError("searched")

    for module, name in ((ring_em, "search_tiles"), (locate, "grid_modes"), (known_map, "locate")):
        monkeypatch.setattr(module, name, refuse)
    stack = _simulated()[0]
    short = AbinitioSettings(threads=1, rounds=3, contrast="light")
    for changes in (KINDS["pure"], KINDS["refined"], KINDS["gradient"]):
        *_, last = run_network(stack, short, _settings(**changes))
        assert last.result is not None
    with pytest.raises(AssertionError, match="searched"):
        list(run_amortised(stack, _settings(**KINDS["hybrid"])))


def test_the_hybrid_finds_the_particle():
    """From nothing, noise-free: poses within 13 degrees, and counts of visits that add up."""
    atoms = synthetic_complex(generator=torch.Generator().manual_seed(0))
    made = simulate(
        atoms,
        SimulationSettings(
            n_particles=250, box=32, pixel_size_A=12.0, snr=float("inf"), shift_sd_A=10.0, seed=1
        ),
    )
    settings = _settings(teacher=0.3, box_px=32, max_visits=10**6, search_batches=24, search_batch=40)
    training = new_training(training_images(made.stack, settings), settings)
    while not training.done:
        training.step()
    result = result_of(training)
    assert pose_errors(result.pose, made.truth).mse < FOUND
    counts = training.metrics()
    assert result.image_visits == counts["searched"] + counts["proposed"]
    assert counts["accepted"] <= counts["proposed"]


def test_dreams_are_images_of_the_map():
    """Without noise and CTF, a dream fits the map at its own pose to round-off."""
    stack = replace(_simulated()[0], ctf=None)
    settings = _settings(prefilter="none")
    training = new_training(training_images(stack, settings), settings)
    observed = training.images.small.observed
    quiet = replace(observed, noise_power=torch.zeros_like(observed.noise_power))
    images = replace(training.images, small=replace(training.images.small, observed=quiet))
    dream = images.dream(training.map.half(), 5, shift_sd_px=1.0, generator=torch.Generator().manual_seed(0))
    points = half_disk(8)
    half = torch.fft.rfft2(torch.fft.ifftshift(dream.images, dim=(-2, -1)))
    values = half[:, points[:, 1].long() % 24, points[:, 0].long()]
    batch = ImageBatch(values, torch.ones(values.shape), points, 24)
    slices = training.map.slices(dream.rotation, points)[:, None]
    fit = misfit(batch, slices, dream.shift_px[:, None])[:, 0]
    assert (fit / values.abs().square().sum(1)).max() < ROUND_OFF[torch.float32]


def test_too_few_images_are_refused():
    """With the reason."""
    with pytest.raises(BadInput, match="too few"):
        next(run_amortised(_simulated()[0].select(torch.arange(20)), _settings()))
