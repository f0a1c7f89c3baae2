"""Laws of the slice encoder as a reader of particles: it finds the poses untrained, and moves with the image."""

from functools import lru_cache

import pytest
import torch

from cryorbit.data import MemoryImages, ParticleStack, Volume
from cryorbit.geometry.groups import act_on_images, act_on_rotation
from cryorbit.geometry.rotations import geodesic_angle
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.inference.predictor import Predictor
from cryorbit.inference.slice_reader import ORDER, SliceReader, moved_images, moved_rows
from cryorbit.inference.supervised import train_pose_model
from cryorbit.inference.supervised_settings import SupervisedSettings
from cryorbit.physics.simulate import SimulationSettings, simulate
from physics_models import GaussianBlobs

BOX, PIXEL_A, N = 24, 8.0, 60
CELL_DEG = 15.0
"""Spacing of the grid: the nearest cell's centre is at most about this far from any rotation."""
SAME_P = 2e-5
"""Of probabilities, float32, through a ring interpolation and FFTs, where log-likelihoods reach some hundred nats."""


@lru_cache(maxsize=1)
def read():
    values = GaussianBlobs.random(14, radius_px=6.5, sigma_px=1.2, seed=5).values(BOX).float()
    volume = Volume(values, PIXEL_A)
    how = SimulationSettings(
        n_particles=N, box=BOX, pixel_size_A=PIXEL_A, snr=1.0, shift_sd_A=6.0, seed=3, b_factor_A2=0.0
    )
    made = simulate(volume, how)
    images = MemoryImages(made.stack.images[torch.arange(N)])
    stack = ParticleStack(images=images, pixel_size_A=PIXEL_A, ids=made.stack.ids, ctf=made.stack.ctf)
    settings = SupervisedSettings(
        box_px=BOX,
        map_px=BOX,
        width=0.125,
        hypotheses=2,
        max_images=16,
        contrast="light",
        particle_diameter_A=110.0,
        shift_sd_A=6.0,
    )
    *_, last = train_pose_model(stack, volume, settings)
    return SliceReader(Predictor(stack, last.result, contrast="light")), made.truth


@pytest.mark.parametrize("box", [7, 8])
@pytest.mark.parametrize("element", range(8))
def test_moves_keep_the_origin_and_multiply(box, element):
    mark = torch.zeros(1, box, box)
    mark[0, box // 2, box // 2] = 1
    assert torch.equal(moved_images(mark, element), mark)
    picture = torch.randn(2, box, box, generator=torch.Generator().manual_seed(element))
    if box % 2:
        assert torch.equal(moved_images(picture, element), act_on_images(picture, element))
    back = picture
    for _ in range(2 if element >= 4 else 4):
        back = moved_images(back, element)
    assert torch.equal(back, picture)


@pytest.mark.parametrize("element", range(8))
def test_the_grid_is_moved_onto_itself(element):
    grid = so3_grid(1, dtype=torch.float64).reshape(-1, 3, 3)
    rows = moved_rows(grid, element)
    assert torch.equal(rows.sort().values, torch.arange(len(grid)))
    torch.testing.assert_close(act_on_rotation(grid[rows], element), grid, atol=1e-12, rtol=0)


def test_it_finds_the_poses_untrained():
    reader, truth = read()
    said = reader.hypotheses(torch.arange(N), top=4)
    angle = torch.rad2deg(geodesic_angle(said.rotation, truth.rotation.float()[:, None]))
    assert float((angle.amin(1) < CELL_DEG).double().mean()) > 0.9
    assert float((angle[:, 0] < CELL_DEG).double().mean()) > 0.8
    shift = (said.shift_A[:, 0] - truth.shift_A.float()).norm(dim=1)
    assert float(shift.median()) < PIXEL_A


@pytest.mark.parametrize("element", [1, 2, 4, 5])
def test_its_answer_moves_with_the_image(element):
    reader, _ = read()
    images, ctf = reader.images(torch.arange(8))
    still = reader.predict(images, ctf).logits.softmax(1)
    moved = reader.predict(moved_images(images, element), ctf).logits.softmax(1)
    assert reader.encoder.settings.order == ORDER
    torch.testing.assert_close(moved, still[:, moved_rows(reader.encoder.grid, element)], atol=SAME_P, rtol=0)
