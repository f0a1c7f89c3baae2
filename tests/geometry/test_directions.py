"""Counts and coverings of directions and rotations, against published tables."""

import functools
import math

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.geometry.directions import (
    fibonacci_directions,
    ideal_count,
    ideal_count_so3,
    one_pixel_step_deg,
    ring_directions,
    saff_directions,
    so3_grid_reduced,
    super_fibonacci,
)
from cryorbit.geometry.distance import angle_to_nearest
from cryorbit.geometry.rotations import euler_to_matrix, random_rotations, rotvec_to_matrix
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.geometry.symmetry import point_group

F64 = torch.float64


@functools.cache
def _probes():
    return random_rotations(5000, generator=torch.Generator().manual_seed(0), dtype=F64)


def _covering_deg(grid):
    """Mean and largest angle to the nearest node, over random rotations."""
    angle = torch.rad2deg(angle_to_nearest(_probes(), grid))
    return float(angle.mean()), float(angle.max())


@pytest.mark.parametrize(
    ("spacing", "ideal", "up", "nearest"),
    [
        (30, 45.8, 48, 46),
        (15, 183.3, 188, 184),
        (10, 412.5, 422, 412),
        (7.5, 733.4, 746, 732),
        (5, 1650.1, 1666, 1652),
        (3, 4583.7, 4614, 4586),
        (2, 10313, 10356, 10318),
        (1, 41253, 41344, 41258),
    ],
)
def test_published_counts_of_directions(spacing, ideal, up, nearest):
    """41253 / delta^2, and the ring rule rounded up and to the nearest."""
    assert ideal_count(spacing) == pytest.approx(ideal, abs=0.06 if spacing > 2 else 0.6)
    assert len(ring_directions(spacing)) == up
    assert len(ring_directions(spacing, rounding="nearest")) == nearest


@pytest.mark.parametrize(
    ("spacing", "count"), [(30, 550), (15, 4400), (10, 14851), (7.5, 35203), (5, 118809)]
)
def test_published_counts_of_rotations(spacing, count):
    """8 pi^2 / delta^3."""
    assert round(ideal_count_so3(spacing)) == count


@pytest.mark.parametrize(
    ("radius", "step", "count"),
    [(16, 3.5763, 3225), (32, 1.7899, 12876), (64, 0.8952, 51480), (128, 0.4476, 205896)],
)
def test_one_pixel_at_the_rim(radius, step, count):
    """atan(1 / R), and how many directions that is: about 4 pi R^2."""
    found = one_pixel_step_deg(radius)
    assert found == pytest.approx(step, abs=5e-5)
    assert round(ideal_count(found)) == count
    assert count == pytest.approx(4 * math.pi * radius**2, rel=1.0 / radius**2)
    rim = torch.tensor([radius, 0.0, 0.0], dtype=F64)
    tangent_step = radius * math.tan(math.radians(found))
    assert tangent_step == pytest.approx(1.0)
    turned = rotvec_to_matrix(torch.tensor([0.0, 0.0, math.radians(found)], dtype=F64)) @ rim
    assert float((turned - rim).norm()) == pytest.approx(1.0, rel=1.0 / radius**2)


@pytest.mark.parametrize("make", [fibonacci_directions, saff_directions])
@pytest.mark.parametrize("n", [1, 2, 100, 1001])
def test_spirals_are_even(make, n):
    """Unit vectors; from some number on they balance, and every direction has one about an ideal spacing away."""
    d = make(n)
    assert d.shape == (n, 3)
    torch.testing.assert_close(d.norm(dim=1), torch.ones(n, dtype=F64))
    if n < 100:
        return
    assert d.mean(0).norm() < 2.0 / n
    spacing = math.sqrt(4 * math.pi / n)
    probes = torch.nn.functional.normalize(_probes()[..., 2], dim=-1)
    assert torch.acos((probes @ d.T).amax(1).clamp(max=1)).max() < spacing
    apart = torch.acos((d @ d.T - 2 * torch.eye(n)).amax(1).clamp(-1, 1))
    assert apart.min() > 0.5 * spacing


@pytest.mark.parametrize("spacing", [30.0, 7.5, 11.0])
def test_rings_leave_no_hole(spacing):
    """From pole to pole; no direction is further than a spacing's half diagonal from one of them."""
    d = ring_directions(spacing)
    torch.testing.assert_close(d[[0, -1], 2], torch.tensor([1.0, -1.0], dtype=F64))
    nearest = torch.acos((_probes()[..., 2] @ d.T).amax(1).clamp(max=1))
    assert torch.rad2deg(nearest).max() < 0.75 * spacing


@pytest.mark.parametrize(("order", "mean", "largest"), [(0, 28.5, 49.7), (1, 14.1, 25.0), (2, 7.1, 12.4)])
def test_covering_of_the_nested_grid(order, mean, largest):
    """72 * 8^order rotations, spacing 60 / 2^order; mean and largest angle as published, up to sampling."""
    grid = so3_grid(order, dtype=F64).flatten(0, 1)
    assert len(grid) == 72 * 8**order
    found = _covering_deg(grid)
    assert found[0] == pytest.approx(mean, rel=0.02)
    assert found[1] == pytest.approx(largest, rel=0.08)  # an extreme: grows with the number of probes


@pytest.mark.parametrize(("n", "mean", "largest"), [(576, 14.3, 24.9), (4608, 7.5, 12.9)])
def test_covering_of_super_fibonacci(n, mean, largest):
    """As good as the nested grid, for any n."""
    found = _covering_deg(super_fibonacci(n))
    assert found[0] == pytest.approx(mean, rel=0.02)
    assert found[1] == pytest.approx(largest, rel=0.08)


def test_a_grid_of_euler_angles_wastes_a_quarter():
    """30-degree steps in ZYX: 1008 triples are 744 rotations, and cover no better than 576 super-Fibonacci ones."""
    azimuth, tilt = torch.arange(0.0, 360.0, 30.0, dtype=F64), torch.arange(-90.0, 91.0, 30.0, dtype=F64)
    grid = euler_to_matrix(torch.cartesian_prod(azimuth, tilt, azimuth), convention="ZYX")
    assert len(grid) == 1008
    different = torch.unique((grid * 1e6).round().flatten(1), dim=0)
    assert len(different) == 744
    found = _covering_deg(grid)
    assert found[0] == pytest.approx(13.3, rel=0.02)
    assert found[1] == pytest.approx(23.4, rel=0.08)


@pytest.mark.parametrize("name", ["C1", "C2", "C5", "D2", "T", "O"])
def test_symmetry_reduced_grids_cover_as_well(name):
    """About 1 / |G| of the grid, and every rotation has an equivalent as near to it as to the whole grid's holes."""
    group = point_group(name)
    whole = so3_grid(2, dtype=F64).flatten(0, 1)
    reduced = so3_grid_reduced(2, name, dtype=F64)
    assert len(reduced) == pytest.approx(len(whole) / len(group), rel=0.1)
    best = torch.stack([angle_to_nearest(_probes()[:500] @ g, reduced) for g in group]).amin(0)
    assert torch.rad2deg(best).mean() < 1.1 * 7.1
    assert torch.rad2deg(best).max() < 1.3 * 12.4  # at the unit's border the next node may be further off


def test_senseless_grids_are_refused():
    """Nothing asked for, spacings and radii that are none."""
    for call in (lambda: fibonacci_directions(0), lambda: super_fibonacci(0), lambda: saff_directions(-1)):
        with pytest.raises(BadInput, match="at least one"):
            call()
    with pytest.raises(BadInput, match="spacing"):
        ring_directions(0.0)
    with pytest.raises(BadInput, match="radius"):
        one_pixel_step_deg(0.0)
