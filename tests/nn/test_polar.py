"""Polar features: turns of the image are shifts of the angle, mirrors are reversals, and the layers commute with both."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import in_plane_rotation
from cryorbit.geometry.harmonics import in_plane_series
from cryorbit.geometry.so3_grid import direction_frame, n_pixels
from cryorbit.nn.polar import (
    CircularConv,
    MirrorPairs,
    OrderwiseLinear,
    PolarRings,
    PolarSettings,
    PolarTrunk,
    angular_harmonics,
    in_plane_matrix,
    mirror_circle,
    read_out,
    shift_circle,
    turn_circle,
)
from laws import ROUND_OFF

F64 = torch.float64
SETTINGS = {n: PolarSettings(box=n, n_angles=48, max_radius=7.0) for n in (20, 21)}


def _relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


def _picture(angle: float, box: int, *, mirror: bool = False, shift=(0.0, 0.0)) -> torch.Tensor:
    """Three Gaussian blobs, turned from x towards y about index box // 2, mirrored first if asked, then moved."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=F64)
    centre = torch.tensor([[2.0, 0.5], [-1.5, 1.0], [0.3, -2.2]], dtype=F64)
    if mirror:
        centre = centre * torch.tensor([1.0, -1.0], dtype=F64)
    centre = centre @ turn.mT + torch.tensor(shift, dtype=F64)
    axis = torch.arange(box, dtype=F64) - box // 2
    x = torch.exp(-0.5 * ((axis - centre[:, :1]) / 1.2) ** 2)
    y = torch.exp(-0.5 * ((axis - centre[:, 1:]) / 1.2) ** 2)
    return torch.einsum("i,iy,ix->yx", torch.tensor([1.0, 0.7, 1.3], dtype=F64), y, x)[None]


@pytest.mark.parametrize("box", [20, 21])
def test_quarter_turns_and_mirrors_of_pixels_are_exact(box):
    """A quarter turn of any image about index box // 2 shifts the circle by a quarter; a mirror reverses it."""
    rings = PolarRings(SETTINGS[box], dtype=F64)
    image = torch.randn(1, box, box, generator=torch.Generator().manual_seed(0), dtype=F64)
    turned, mirrored = torch.rot90(image, 1, (-1, -2)), image.flip(-2)
    if box % 2 == 0:
        turned, mirrored = turned.roll(1, -1), mirrored.roll(1, -2)
    # From x towards y: what was at +x comes to +y.
    spot = torch.zeros(1, box, box, dtype=F64)
    spot[0, box // 2, box // 2 + 3] = 1
    moved = torch.rot90(spot, 1, (-1, -2))
    moved = moved.roll(1, -1) if box % 2 == 0 else moved
    assert moved[0, box // 2 + 3, box // 2] == 1
    assert _relative(rings(turned), turn_circle(rings(image), 12)) < ROUND_OFF[F64]
    assert _relative(rings(mirrored), mirror_circle(rings(image))) < ROUND_OFF[F64]


@pytest.mark.parametrize("box", [20, 21])
@given(st.integers(1, 47))
def test_turns_by_the_angle_of_the_grid_shift_the_circle(box, steps):
    """A smooth picture turned by any angle of the grid has its circles shifted, to what its pixels cannot hold."""
    rings = PolarRings(SETTINGS[box], dtype=F64)
    circle = rings(_picture(0.0, box))
    turned = rings(_picture(2 * math.pi * steps / 48, box))
    assert _relative(turned, turn_circle(circle, steps)) < 2e-3  # Gaussians of 1.2 px, sampled, and the mask


def test_moving_the_content_back_centres_it():
    """`shift_circle` undoes a shift of the image content, where the mask does not cut."""
    settings = PolarSettings(box=32, n_angles=48, max_radius=8.0)
    rings = PolarRings(settings, dtype=F64)
    shift = torch.tensor([[1.25, -0.5]], dtype=F64)
    back = shift_circle(rings(_picture(0.3, 32, shift=(1.25, -0.5))), shift, settings)[:, 0]
    assert _relative(back, rings(_picture(0.3, 32))) < 1e-4


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_trunk_commutes_with_every_turn_of_the_grid(dtype):
    """All 48 turns, after a few training steps, to round-off."""
    torch.manual_seed(0)
    trunk = PolarTrunk(7, 8, depth=3).to(dtype)
    x = torch.randn(4, 7, 48, dtype=dtype)
    optimiser = torch.optim.Adam(trunk.parameters(), lr=1e-2)
    for _ in range(5):
        optimiser.zero_grad()
        (trunk(x) - 1).square().mean().backward()
        optimiser.step()
    y = trunk(x)
    for steps in range(48):
        assert _relative(trunk(turn_circle(x, steps)), turn_circle(y, steps)) < ROUND_OFF[dtype]


def test_harmonics_gain_a_phase():
    """Order m gains exp(i m a) when the image turns by a, and is conjugated by the mirror."""
    x = torch.randn(2, 3, 48, dtype=F64, generator=torch.Generator().manual_seed(1))
    before = angular_harmonics(x, 10)
    phase = torch.polar(torch.ones(11, dtype=F64), torch.arange(11, dtype=F64) * (2 * math.pi * 5 / 48))
    assert _relative(angular_harmonics(turn_circle(x, 5), 10), before * phase) < ROUND_OFF[F64]
    assert _relative(angular_harmonics(mirror_circle(x), 10), before.conj()) < ROUND_OFF[F64]


def test_read_out_is_orderwise_then_series():
    """The fused read-out equals the complex linear map followed by the Fourier series, for few and many angles."""
    torch.manual_seed(2)
    linear = OrderwiseLinear(9, 4, 5).double()
    x = torch.randn(3, 4, 9, dtype=torch.complex128)
    for n_psi in (7, 12, 24):
        values = read_out(x, linear.weight, in_plane_matrix(9, n_psi, start_rad=0.2))
        assert _relative(values, in_plane_series(linear(x), n_psi, start_rad=0.2)) < ROUND_OFF[F64]


def test_reflected_harmonics_predict_the_mirrored_pose():
    """f(Rx(pi) R) from the harmonics of f, at every view and angle."""
    frames = direction_frame(torch.arange(n_pixels(1)), order=1)
    pairs = MirrorPairs.of_frames(frames)
    g = torch.randn(1, n_pixels(1), 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))
    g[..., 0] = g[..., 0].real.to(g.dtype)
    psi = 0.4
    reflected = in_plane_series(pairs.reflect(g), 1, start_rad=psi)[0, :, 0]
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=F64))
    for v in range(n_pixels(1)):
        r = half_turn @ in_plane_rotation(torch.tensor(psi, dtype=F64)) @ frames[v]
        partner = int((frames[:, 2] @ r[2]).argmax())
        turn = r @ frames[partner].mT
        angle = math.atan2(float(turn[0, 1]), float(turn[0, 0]))
        expected = in_plane_series(g[:, partner], 1, start_rad=angle)[0, 0]
        torch.testing.assert_close(reflected[v], expected, rtol=0, atol=1e-12)


def test_wrong_sizes_are_refused():
    """Even filters, rings outside the box, orders beyond the grid, views without opposites: BadInput."""
    with pytest.raises(BadInput, match="odd"):
        CircularConv(1, 1, width=4)
    with pytest.raises(BadInput, match="do not fit"):
        PolarSettings(box=20, n_angles=48, max_radius=10)
    with pytest.raises(BadInput, match="multiple of 4"):
        PolarSettings(box=20, n_angles=50, max_radius=5)
    with pytest.raises(BadInput, match="at most 24"):
        angular_harmonics(torch.zeros(1, 48), 30)
    with pytest.raises(BadInput, match="opposite"):
        MirrorPairs.of_frames(torch.eye(3)[None])
