"""Tri-planes: they are the three coordinate pairs, and nothing is lost where they are moved, resampled or read."""

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.fourier.grid import pixel_grid
from cryorbit.fourier.resample import fourier_crop
from cryorbit.models.triplane import (
    AXES,
    TriplaneDecoder,
    grid_features,
    moved_planes,
    point_features,
    resample_planes,
)
from laws import ROUND_OFF

EXACT = ROUND_OFF[torch.float64]
SPLINE = 5e-3
"""Error of `fourier.cubic_spline` between pixels, thrice, times the size of three features below half of Nyquist."""
EG3D_AXES = ((0, 1), (0, 2), (2, 0))
"""What EG3D's published matrices project a point to."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points_of(n: int) -> torch.Tensor:
    return pixel_grid(n, ndim=3, dtype=torch.float64).flatten(0, 2)


def smooth_planes(n: int, *, seed: int = 0) -> torch.Tensor:
    """Up to half of Nyquist."""
    return resample_planes(draw(3, 2, n // 2 | 1, n // 2 | 1, seed=seed), n)


def decoder() -> TriplaneDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TriplaneDecoder(2, 5).double().requires_grad_(False)


def is_every_pair(axes) -> bool:
    """Whether each axis is missing from one plane, and only one."""
    return sorted(3 - u - v for u, v in axes if u != v) == [0, 1, 2]


def test_each_pair_of_axes_occurs_once():
    """And the axes that EG3D published do not: y and z share no plane there."""
    assert is_every_pair(AXES)
    assert not is_every_pair(EG3D_AXES)


@pytest.mark.parametrize("n", [9, 10])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_moving_along_an_axis_changes_the_two_planes_that_have_it(n, axis):
    """What each plane alone says at points, before and after they move: the third one says the same."""
    moved = points_of(n)[::7].clone()
    moved[:, axis] += 0.37
    for plane, uv in enumerate(AXES):
        planes = torch.zeros(3, 2, n, n, dtype=torch.float64)
        planes[plane] = draw(2, n, n)
        before, after = (point_features(planes, p)[:, :2] for p in (points_of(n)[::7], moved))
        assert torch.equal(before, after) == (axis not in uv)


@pytest.mark.parametrize("n", [7, 8])
def test_points_at_voxels_say_what_voxels_say(n):
    """Axes z, y, x and the origin at index n // 2 in both, odd and even."""
    planes = draw(3, 2, n, n)
    at_points = point_features(planes, points_of(n))
    at_voxels = grid_features(planes[None])[0].movedim(0, -1).flatten(0, 2)
    torch.testing.assert_close(at_points, at_voxels, rtol=0, atol=10 * EXACT)
    made = decoder()
    torch.testing.assert_close(
        made.at_points(planes, points_of(n)), made.at_voxels(planes[None]).flatten(), rtol=0, atol=10 * EXACT
    )


def test_features_are_the_sum_and_the_product():
    """Of the three values that belong to a voxel, by their indices."""
    planes = draw(3, 2, 6, 6)
    x, y, z = 1, 4, 2
    parts = planes[0, :, y, x], planes[1, :, z, y], planes[2, :, x, z]
    found = grid_features(planes[None])[0, :, z, y, x]
    torch.testing.assert_close(found, torch.cat((sum(parts), parts[0] * parts[1] * parts[2])))


def test_turning_the_axes_turns_the_planes():
    """x -> y -> z -> x: plane 0 -> 1 -> 2 -> 0, and the density with them."""
    planes = draw(1, 3, 2, 6, 6)
    turned = grid_features(planes.roll(-1, 1))
    torch.testing.assert_close(turned, grid_features(planes).permute(0, 1, 4, 2, 3), rtol=0, atol=EXACT)


@pytest.mark.parametrize("n", [9, 10])
@pytest.mark.parametrize("m", [13, 20])
def test_finer_planes_are_the_same_functions(n, m):
    """To another size and back is the identity, and points say the same: nothing is lost and nothing shifted."""
    planes = smooth_planes(n)
    fine = resample_planes(planes, m)
    torch.testing.assert_close(fourier_crop(fine, n, ndim=2), planes, rtol=0, atol=EXACT)
    points = points_of(n)[::5]
    torch.testing.assert_close(
        point_features(fine, points * m / n), point_features(planes, points), rtol=0, atol=SPLINE
    )


@pytest.mark.parametrize("n", [9, 10])
def test_moved_planes_are_a_moved_density(n):
    """By whole voxels: the map rolled. By parts: points that move the other way."""
    planes, made = smooth_planes(n), decoder()
    shift = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    rolled = made.at_voxels(planes[None]).roll((3, -2, 1), (1, 2, 3))
    torch.testing.assert_close(made.at_voxels(moved_planes(planes[None], shift)), rolled, rtol=0, atol=EXACT)
    shift = torch.tensor([[0.3, -0.4, 0.25]], dtype=torch.float64)
    found = grid_features(moved_planes(planes[None], shift))[0].movedim(0, -1).flatten(0, 2)
    inner = points_of(n) - shift
    torch.testing.assert_close(found, point_features(planes, inner), rtol=0, atol=SPLINE)


def test_density_may_be_negative():
    """The decoder ends linearly: the sign of its last layer is the sign of the density."""
    made, planes = decoder(), draw(1, 3, 2, 5, 5)
    before = made.at_voxels(planes)
    for weight in made.last.parameters():
        weight.neg_()
    torch.testing.assert_close(made.at_voxels(planes), -before)


def test_what_would_alias_is_refused():
    with pytest.raises(BadInput, match="resample the map"):
        resample_planes(draw(3, 2, 8, 8), 6)
    with pytest.raises(BadInput, match="channels"):
        TriplaneDecoder(0, 4)
