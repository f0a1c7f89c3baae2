"""Laws of the slice encoder as a reader of particles: it finds the poses untrained, and moves with the image."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from cryorbit.data import MemoryImages
from cryorbit.geometry.groups import act_on_images, act_on_rotation
from cryorbit.geometry.rotations import geodesic_angle
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.inference.predictor import Predictor
from cryorbit.inference.slice_reader import ORDER, SliceReader, moved_images, moved_rows
from cryorbit.physics.transfer import odd_phase
from pose_models import PIXEL_A, fine_model, model_of, simulated

N = 60
CELL_DEG = 15.0
"""Spacing of the grid: the nearest cell's centre is at most about this far from any rotation."""
SAME_P = 2e-5
"""Of probabilities, float32, through a ring interpolation and FFTs, where log-likelihoods reach some hundred nats."""
AMONG_FOUR, FIRST = 0.9, 0.8
"""Shares of images at SNR 1 with a cell within its spacing of the truth: nearly all, but for the few that noise moves a cell
further, and of the most probable cell alone a tenth less. Any guess would have some hundredths."""
CALIBRATED = 0.15
"""Of a share of 120 images: three of its standard errors of 0.045."""
SAME_IMAGE = 1e-5
"""Relative, float32, of a transform and back."""


@lru_cache(maxsize=1)
def read():
    stack, truth, _ = simulated(N, snr=1.0)
    model = model_of(snr=1.0, max_images=16)
    return SliceReader(Predictor(stack, model, contrast="light")), truth


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
    assert float((angle.amin(1) < CELL_DEG).double().mean()) > AMONG_FOUR
    assert float((angle[:, 0] < CELL_DEG).double().mean()) > FIRST
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


@pytest.mark.parametrize(("box", "snr"), [(24, 0.1), (48, 0.3)])
def test_it_is_right_as_often_as_it_says_on_images_of_another_scale(box, snr):
    """The map is finer than the images read, of a stack with another noise and so, divided by it, another grey scale."""
    stack, truth, _ = simulated(120, box=box, snr=snr)
    predictor = Predictor(stack, fine_model(snr=1.0), contrast="light")
    assert not 0.7 < predictor.scale < 1.4, "no other scale"
    said = SliceReader(predictor).hypotheses(torch.arange(120), top=1)
    right = torch.rad2deg(geodesic_angle(said.rotation[:, 0], truth.rotation.float())) < CELL_DEG
    assert abs(float(said.mode_probability.mean() - right.float().mean())) < CALIBRATED


@pytest.mark.parametrize("box", [24, 31])
def test_beam_tilt_is_taken_out(box):
    """Images with the phase of a beam tilt, and a CTF that says so, are read as without either."""
    stack, _, _ = simulated(8, box=box)
    reader, rows = SliceReader(Predictor(stack, fine_model(), contrast="light")), torch.arange(8)
    reader.observed = replace(reader.observed, scale_each=False)
    expected, ctf = reader.images(rows)
    tilted = replace(stack.ctf, beam_tilt_mrad=torch.tensor([[1.5, -0.7]]).double().expand(8, 2))
    plane = torch.stack(
        (torch.fft.rfftfreq(box).expand(box, -1), torch.fft.fftfreq(box)[:, None].expand(-1, box // 2 + 1)),
        -1,
    )
    phase = odd_phase(tilted, plane / stack.pixel_size_A)
    transform = torch.fft.rfft2(torch.fft.ifftshift(stack.images[rows], dim=(-2, -1)))
    moved = torch.fft.fftshift(torch.fft.irfft2(transform * phase, s=(box, box)), dim=(-2, -1))
    given = replace(stack, images=MemoryImages(moved.float()), ctf=tilted)
    assert float((moved - stack.images[rows]).norm() / moved.norm()) > 100 * SAME_IMAGE, "hardly a tilt"
    reader.observed = replace(reader.observed, stack=given)
    found, same = reader.images(rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME_IMAGE * float(expected.abs().max()))
    torch.testing.assert_close(same, ctf)
