"""Encoders on the grid of rotations: turned and mirrored images turn the prediction; losses; the map branch is exact."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from cryorbit.data import Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import random_rotations
from cryorbit.geometry.so3_grid import so3_cells, so3_grid
from cryorbit.models.pose_encoder import make_encoder
from cryorbit.models.slice_encoder import SliceEncoder, SliceSettings, trial_shifts
from cryorbit.models.so3_losses import (
    cell_nll,
    cell_of,
    covered,
    distillation_kl,
    entropy_nats,
    exact_nll,
    n_cells,
    parents,
)
from cryorbit.physics.project import project, shift_phase

BOX = 24
F64 = torch.float64
ROUND_OFF = {F64: 1e-12, torch.float32: 2e-5}
"""Relative; in float32 the circles are sums over all pixels, of noise."""


def _blobs(n: int = BOX) -> Volume:
    """An asymmetric map of Gaussian balls, well inside the box."""
    centres = torch.tensor([[4.0, 1.0, -2.0], [-3.0, 2.0, 1.0], [0.5, -4.0, 3.0], [1.0, 2.5, 4.0]])
    weights = torch.tensor([1.0, 0.7, 1.3, 0.4])
    axis = torch.arange(n) - n // 2
    each = torch.exp(-0.5 * ((axis - centres[..., None]) / 1.6) ** 2)  # ball, axis, n
    return Volume(torch.einsum("i,iz,iy,ix->zyx", weights, each[:, 2], each[:, 1], each[:, 0]), 2.0)


def _train(net, *, steps: int) -> None:
    generator = torch.Generator().manual_seed(5)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        images = torch.randn(8, net.box, net.box, generator=generator)
        cell = torch.randint(n_cells(net.settings.order), (8,), generator=generator)
        optimiser.zero_grad()
        cell_nll(net(images).logits, cell).mean().backward()
        optimiser.step()


def _turned(images):
    """A quarter turn from x towards y about index box // 2."""
    out = torch.rot90(images, 1, (-1, -2))
    return out if images.shape[-1] % 2 else out.roll(1, -1)


def _mirrored(images):
    out = images.flip(-2)
    return out if images.shape[-1] % 2 else out.roll(1, -2)


def _at(net, rotation):
    """Where on the net's grid the cells R lie once multiplied: index of the nearest cell."""
    return (rotation.reshape(-1, 9) @ net.grid.reshape(-1, 9).mT).argmax(1)


def _relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("dtype", ROUND_OFF)
@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize(
    "options",
    [{"depth": 0}, {"depth": 2, "readout": "views"}, {"depth": 1, "readout": "harmonics", "l_max": 5}],
)
def test_quarter_turn_of_image_turns_the_distribution(box, options, dtype):
    """p(Rz(90) R | turned image) = p(R | image) on the grid itself, after training; the shift turns as a vector."""
    net = make_encoder("slice", box=box, order=1, generator=torch.Generator().manual_seed(0), **options)
    _train(net, steps=3)
    net.to(dtype)
    images = torch.randn(3, box, box, generator=torch.Generator().manual_seed(1), dtype=dtype)
    torch.nn.init.normal_(net.learned.shift)
    before, after = net(images), net(_turned(images))
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    assert _relative(after.logits[:, _at(net, quarter @ net.grid)], before.logits) < ROUND_OFF[dtype]
    shift = before.shift_px[:, 0] @ quarter[:2, :2].mT
    assert _relative(after.shift_px[:, 0], shift) < ROUND_OFF[dtype]


@pytest.mark.parametrize("dtype", ROUND_OFF)
@pytest.mark.parametrize("box", [24, 25])
def test_mirrored_image_predicts_the_other_side(box, dtype):
    """p(Rx(pi) R | image with y -> -y) = p(R | image), to round-off, for the harmonics of the read-out."""
    net = make_encoder("slice", box=box, order=1, depth=1, generator=torch.Generator().manual_seed(0))
    _train(net, steps=3)
    net.to(dtype)
    images = torch.randn(2, box, box, generator=torch.Generator().manual_seed(1), dtype=dtype)
    before, after = (
        net.learned.harmonics(net.rings(images)),
        net.learned.harmonics(net.rings(_mirrored(images))),
    )
    assert _relative(net.learned.pairs.reflect(after), before) < ROUND_OFF[dtype]


@pytest.mark.parametrize("dtype", ROUND_OFF)
@pytest.mark.parametrize("box", [24, 25])
def test_map_branch_turns_with_the_image(box, dtype):
    """log p(Rz(90) R | turned image) = log p(R | image) for the likelihood too, with trial shifts, which turn along.

    Up to a constant: its size is that of its spread over the grid.
    """
    net = SliceEncoder(SliceSettings(box=box, order=1, fine=0, learned=False, shift_px=1.0)).to(dtype)
    volume = _blobs(box)
    net.set_map(Volume(volume.values.to(dtype), volume.pixel_size_A))
    net.set_noise(float(volume.values.var()) * box**2)
    truth = random_rotations(3, generator=torch.Generator().manual_seed(2), dtype=dtype)
    images = project(Volume(volume.values.to(dtype), 2.0), Pose(truth, truth.new_zeros(3, 2)))
    with torch.no_grad():
        before, after = net(images), net(_turned(images))
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    at = _at(net, quarter @ net.grid)
    got, want = (x - x.mean(1, keepdim=True) for x in (after.logits[:, at], before.logits))
    assert float((got - want).abs().max() / want.abs().max()) < ROUND_OFF[dtype]
    shift = before.shift_px @ quarter[:2, :2].mT
    assert float((after.shift_px[:, at] - shift).abs().max()) < 100 * ROUND_OFF[dtype]


def test_map_branch_is_the_log_likelihood_at_every_cell():
    """Its logits on the grid are the brute-force -|y - P_R V|^2 / 2 s^2, up to a constant: correlation > 0.999."""
    volume, sigma = _blobs(), 2.0
    net = SliceEncoder(SliceSettings(box=BOX, order=1, fine=0, learned=False))
    net.set_map(volume)
    net.set_noise(sigma**2 * BOX**2)
    generator = torch.Generator().manual_seed(2)
    still = torch.zeros(len(net.grid), 2)
    templates = project(volume, Pose(net.grid, still)).flatten(1)
    truth = random_rotations(20, generator=generator, dtype=torch.float32)
    images = project(volume, Pose(truth, still[:20]))
    images = images + sigma * torch.randn(images.shape, generator=generator)
    brute = -0.5 * (images.flatten(1)[:, None] - templates).square().sum(-1) / sigma**2
    ours = net(images).logits.detach()
    both = torch.stack([x - x.mean(1, keepdim=True) for x in (ours, brute)]).flatten(1)
    assert float(torch.corrcoef(both)[0, 1]) > 0.999
    slope = float((both[0] * both[1]).sum() / both[1].square().sum())
    assert abs(slope - 1) < 0.02


def test_map_branch_finds_shifted_particles():
    """With trial shifts, the pose and the shift of a moved particle come out."""
    volume = _blobs()
    net = SliceEncoder(SliceSettings(box=BOX, order=2, fine=0, learned=False, shift_px=2.0))
    net.set_map(volume)
    net.set_noise(float(volume.values.var()) * BOX**2)
    pose = Pose(net.grid[[100, 2000]], torch.tensor([[2.0, -2.0], [0.0, 4.0]]))
    best = net(project(volume, pose)).best()
    torch.testing.assert_close(best.rotation, pose.rotation)
    torch.testing.assert_close(best.shift_px, pose.shift_A / volume.pixel_size_A, rtol=0, atol=0.1)
    assert shift_phase(pose.shift_A, BOX, pixel_size_A=2.0).shape == (2, BOX, BOX // 2 + 1)


def test_image2sphere_predicts_on_the_same_grid_and_learns():
    """Shapes, and a loss that falls on a fixed batch."""
    net = make_encoder(
        "i2s", box=BOX, width=0.25, order=1, l_max=3, generator=torch.Generator().manual_seed(0)
    )
    images = torch.randn(8, BOX, BOX, generator=torch.Generator().manual_seed(1))
    cell = torch.arange(8) * 70
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = cell_nll(net(images).logits, cell).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    prediction = net(images)
    assert prediction.rotation.shape == (8, n_cells(1), 3, 3)
    assert torch.equal(prediction.distribution().rotation[0], so3_grid(1).reshape(-1, 3, 3))


@pytest.mark.parametrize("name", ["slice", "i2s"])
def test_settings_rebuild_the_encoder(name):
    """make_encoder(**asdict(settings)) plus the weights, map included, gives the same prediction."""
    net = make_encoder(name, box=BOX, width=0.25, order=1)
    if isinstance(net, SliceEncoder):
        net.set_map(_blobs())
    again = make_encoder(**dataclasses.asdict(net.settings))
    again.load_state_dict(net.state_dict())
    images = torch.randn(2, BOX, BOX, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(images).logits, net(images).logits)


def test_cells_hold_their_centres_and_nest():
    """The cell of a centre is that centre's; the cell at one order is the parent of the cell at the next."""
    for order in (0, 1, 2):
        assert torch.equal(
            cell_of(so3_grid(order, dtype=F64).reshape(-1, 3, 3), order=order), torch.arange(n_cells(order))
        )
    r = random_rotations(500, generator=torch.Generator().manual_seed(0), dtype=F64)
    coarse, fine = cell_of(r, order=1), cell_of(r, order=2)
    where = torch.full((1, n_cells(2)), -math.inf, dtype=F64).repeat(500, 1)
    where[torch.arange(500), fine] = 0
    assert torch.equal(parents(where, order=2).argmax(1), coarse)
    children = so3_cells(0).subdivide()
    rows = cell_of(so3_grid(1).reshape(-1, 3, 3), order=0)[children.pixel * 12 + children.in_plane]
    assert torch.equal(rows.reshape(-1, 8), torch.arange(72)[:, None].expand(-1, 8))


def test_losses_of_the_uniform_distribution():
    """log(number of cells) for both likelihoods and the entropy, group or not; no divergence from itself."""
    order = 1
    logits = torch.zeros(5, n_cells(order), dtype=F64)
    r = random_rotations(5, generator=torch.Generator().manual_seed(0), dtype=F64)
    grid = so3_grid(order, dtype=F64).reshape(-1, 3, 3)
    expected = torch.full((5,), math.log(n_cells(order)), dtype=F64)
    group = torch.stack([torch.eye(3, dtype=F64), torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=F64))])
    for value in (
        cell_nll(logits, cell_of(r, order=order)),
        exact_nll(logits, r, grid=grid, order=order),
        exact_nll(logits, r, grid=grid, order=order, group=group),
        entropy_nats(logits),
    ):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(distillation_kl(logits, logits), torch.zeros(5, dtype=F64))


def test_exact_likelihood_reads_between_the_centres():
    """It varies continuously with the truth, and at a centre stays near the likelihood of the cell."""
    order, generator = 2, torch.Generator().manual_seed(3)
    grid = so3_grid(order, dtype=F64).reshape(-1, 3, 3)
    centre = grid[[1234]]
    angle = grid.reshape(-1, 9) @ centre.reshape(9)
    logits = (20 * (angle - 3) / 2)[None]
    at_centre = float(exact_nll(logits, centre, grid=grid, order=order))
    assert abs(at_centre - float(cell_nll(logits, torch.tensor([1234])))) < 0.7
    direction = torch.randn(3, generator=generator, dtype=F64)
    values = []
    for step in torch.linspace(0, 0.3, 31, dtype=F64):
        turn = torch.linalg.matrix_exp(
            step * torch.linalg.cross(torch.eye(3, dtype=F64), direction.expand(3, 3))
        )
        values.append(float(exact_nll(logits, turn @ centre, grid=grid, order=order)))
    jumps = torch.tensor(values).diff().abs()
    assert float(jumps.max()) < 0.35


def test_credible_sets_of_a_calibrated_forecast_cover_at_their_level():
    """Truths drawn from the forecast lie in its 95 % sets 95 % of the time."""
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(4000, 500, generator=generator)
    cell = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert abs(float(covered(logits, cell).float().mean()) - 0.95) < 0.015


def test_trial_shifts_are_a_disc():
    """The origin and its neighbours within the radius."""
    assert trial_shifts(0.0, 1.0).tolist() == [[0.0, 0.0]]
    assert len(trial_shifts(1.0, 1.0)) == 5


def test_wrong_use_is_refused():
    """A map of another box, images of another box, unknown options: BadInput."""
    net = SliceEncoder(SliceSettings(box=BOX, order=0, learned=False))
    with pytest.raises(BadInput, match="Resample the map"):
        net.set_map(_blobs(20))
    with pytest.raises(BadInput, match="images"):
        net(torch.zeros(1, 20, 20))
    with pytest.raises(BadInput, match="settings only"):
        make_encoder("slice", box=BOX, depht=2)
