"""Laws of the surface renderer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryorbit.data import Volume
from cryorbit.report import surface as surface_module
from cryorbit.report.surface import Paint, render_surface


@pytest.fixture(autouse=True)
def coarse_surface(monkeypatch):
    """A third of the usual rays is enough for laws."""
    monkeypatch.setattr(surface_module, "_GRID", 70)


def balls(n: int, *placed: tuple[float, float, float, float]) -> Volume:
    """Solid balls: x, y, z from the centre and radius, in voxels."""
    x = torch.arange(n) - n // 2
    values = torch.zeros(n, n, n)
    for cx, cy, cz, radius in placed:
        square = (x[:, None, None] - cz) ** 2 + (x[:, None] - cy) ** 2 + (x - cx) ** 2
        values += torch.sigmoid((radius - square.sqrt()) * 2)
    return Volume(values, 3.0)


def centre_of(picture: np.ndarray) -> tuple[float, float]:
    """Right and up of the middle of what is drawn, from the middle of the picture, 1 is the edge."""
    alpha = picture[..., 3]
    rows, columns = np.indices(alpha.shape)
    right = (columns * alpha).sum() / alpha.sum() / (alpha.shape[1] - 1) * 2 - 1
    down = (rows * alpha).sum() / alpha.sum() / (alpha.shape[0] - 1) * 2 - 1
    return right, -down


@pytest.mark.parametrize("n", [31, 32])
def test_a_ball_is_a_disc_of_its_size(n):
    """Seen from anywhere, a ball of radius r covers pi r^2, and it is lit from the upper left."""
    surface = render_surface(balls(n, (0, 0, 0, 9)), level=0.5)
    assert surface is not None
    for picture in surface.pictures.values():
        covered = float(picture[..., 3].mean()) * surface.edge_A**2
        assert covered == pytest.approx(np.pi * 27.0**2, rel=0.06)
        h, w = picture.shape[:2]
        light = picture[..., :3].mean(-1)
        assert light[int(0.35 * h), int(0.35 * w)] > light[int(0.65 * h), int(0.65 * w)] + 0.1


@pytest.mark.parametrize("n", [40, 41])
def test_views_are_not_mirror_images(n):
    """From +z: x right, y up. From +x: y up, z to the left. From +y: x right, z down. From behind: x or z reversed."""
    for axis, expected in {
        "x": {
            "front": (1, 0),
            "side": (0, 0),
            "top": (1, 0),
            "back": (-1, 0),
            "left": (0, 0),
            "bottom": (1, 0),
        },
        "y": {
            "front": (0, 1),
            "side": (0, 1),
            "top": (0, 0),
            "back": (0, 1),
            "left": (0, 1),
            "bottom": (0, 0),
        },
        "z": {
            "front": (0, 0),
            "side": (-1, 0),
            "top": (0, -1),
            "back": (0, 0),
            "left": (1, 0),
            "bottom": (0, 1),
        },
    }.items():
        place = {"x": (11, 0, 0, 5), "y": (0, 11, 0, 5), "z": (0, 0, 11, 5)}[axis]
        surface = render_surface(balls(n, place), level=0.5, views=tuple(expected))
        assert surface is not None
        for view, (right, up) in expected.items():
            found = centre_of(surface.pictures[view])
            assert found == pytest.approx((0.6 * right, 0.6 * up), abs=0.12), (axis, view)


def test_a_ray_stops_at_the_first_surface():
    """Height is where the density first passes the level, between grid points; NaN where it never does."""
    volume = balls(40, (0, 0, -6, 9), (3, 0, 13, 4))
    height = surface_module._height(volume.values.numpy(), 0.5)
    assert height[20, 20 - 5] == pytest.approx(20 - 6 + (81 - 25) ** 0.5, abs=0.2)
    assert height[20, 20 + 3] == pytest.approx(20 + 13 + 4, abs=0.2)
    assert np.isnan(height[2, 2])


def test_specks_are_left_out():
    """A detached part much smaller than the particle is not drawn."""
    clean = render_surface(balls(40, (0, 0, 0, 9)), level=0.5)
    specks = render_surface(balls(40, (0, 0, 0, 9), (-15, -15, -15, 1.5)), level=0.5)
    assert clean is not None
    assert specks is not None
    assert specks.edge_A == clean.edge_A
    np.testing.assert_allclose(specks.pictures["front"][..., 3], clean.pictures["front"][..., 3], atol=0.05)


def test_a_flat_map_has_no_surface():
    """Nothing to draw is None, not an error: the report goes on without."""
    assert render_surface(Volume(torch.zeros(20, 20, 20), 3.0)) is None
    assert render_surface(balls(20, (0, 0, 0, 5)), level=9.0) is None


@pytest.mark.parametrize("n", [39, 40])
@pytest.mark.parametrize(
    ("axis", "view", "right"), [("x", "front", True), ("z", "side", False), ("x", "top", True)]
)
def test_paint_lies_where_its_values_are(n, axis, view, right):
    """A ball painted by one coordinate: red where that is high, as the view shows it (+z is left of +x)."""
    k = torch.arange(n, dtype=torch.float32) - n // 2
    z, y, x = torch.meshgrid(k, k, k, indexing="ij")
    ball = Volume((12.0 - (x**2 + y**2 + z**2).sqrt()).clamp(0.0, 1.0), 2.0)
    along = {"x": x, "z": z}[axis] + n  # positive everywhere
    inside = (x**2 + y**2 + z**2).sqrt() < 9  # beyond, the nearest value counts
    paint = Paint(Volume(along * inside, 2.0), n - 8.0, n + 8.0, np.array([[0.0, 0, 1], [1, 0, 0]]))
    surface = render_surface(ball, paint=paint)
    assert surface is not None
    picture = surface.pictures[view]
    red = (picture[..., 0] - picture[..., 2]) * (picture[..., 3] > 0.9)
    half = red.shape[1] // 2
    left_sum, right_sum = red[:, :half].sum(), red[:, half:].sum()
    assert (right_sum > 0 > left_sum) if right else (left_sum > 0 > right_sum)
