"""Laws of the HEALPix pixels and of the nested grid on the rotations, against published HEALPix facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import geodesic_angle, random_rotations
from cryorbit.geometry.so3_grid import (
    SO3Cells,
    children,
    direction_frame,
    direction_to_pixel,
    healpix_directions,
    n_in_plane,
    n_pixels,
    nested_to_ring,
    pixel_to_direction,
    ring_to_nested,
    so3_cells,
    so3_grid,
    spacing_deg,
)
from laws import ROUND_OFF, unit_vectors

F64 = torch.float64
EXACT = ROUND_OFF[F64]
COVERING = 0.85  # largest distance from a rotation to the grid, in steps: half the diagonal of a cube is 0.87

CURVATURE = (
    1.15  # carrying a frame along two sides of a triangle instead of one turns it by the triangle's area
)


def _close(a, b, atol=EXACT):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def _degrees(direction):
    colatitude = torch.rad2deg(torch.acos(direction[..., 2]))
    longitude = torch.rad2deg(torch.atan2(direction[..., 1], direction[..., 0])) % 360
    return colatitude, longitude


def test_pixels_of_order_zero():
    """Base pixels: four at z = 2/3 and 45 + 90 k degrees, four on the equator at 90 k, four at z = -2/3."""
    d = healpix_directions(0)
    _close(d[:, 2], torch.tensor([2 / 3] * 4 + [0.0] * 4 + [-2 / 3] * 4, dtype=F64))
    _, longitude = _degrees(d)
    expected = torch.tensor([45, 135, 225, 315, 0, 90, 180, 270, 45, 135, 225, 315], dtype=F64)
    _close(longitude, expected, 1e-9)


def test_rings_follow_the_published_formulas():
    """Ring i has 4 i pixels at z = 1 - i^2 / (3 nside^2) in the caps, 4 nside at z = 4/3 - 2 i / (3 nside).

    Gorski et al. 2005, equations 4-9.
    """
    order, nside = 3, 8
    d = healpix_directions(order, scheme="ring")
    start = 0
    for i in range(1, 4 * nside):
        m = min(i, 4 * nside - i)
        if m < nside:
            count, z, shift = 4 * m, (1 - m * m / (3 * nside**2)) * (1 if i < nside else -1), 0.5
        else:
            count, z, shift = 4 * nside, 4 / 3 - 2 * i / (3 * nside), 0.5 * ((i - nside + 1) % 2)
        ring = d[start : start + count]
        longitude = (torch.arange(count, dtype=F64) + shift) * 2 * math.pi / count
        sine = math.sqrt(1 - z * z)
        expected = torch.stack(
            [sine * longitude.cos(), sine * longitude.sin(), torch.full_like(longitude, z)], -1
        )
        _close(ring, expected)
        start += count
    assert start == n_pixels(order)


def test_nested_numbers_of_the_standard():
    """At nside 2 the four northernmost pixels are 3, 7, 11, 15, and the next ring holds their siblings."""
    assert ring_to_nested(torch.arange(8), order=1).tolist()[:4] == [3, 7, 11, 15]
    second = {int(p) for p in ring_to_nested(torch.arange(4, 12), order=1)}
    assert second == {1, 2, 5, 6, 9, 10, 13, 14}
    # Child 1 lies to the east of child 2, child 0 in the south, child 3 in the north.
    colatitude, longitude = _degrees(healpix_directions(1)[:4])
    assert colatitude[3] < colatitude[1]
    assert colatitude[1] < colatitude[0]
    assert longitude[1] > longitude[2]


@pytest.mark.parametrize("order", range(5))
def test_ring_and_nested_numbers_are_each_others_inverse(order):
    """Ring -> nested -> ring is the identity."""
    index = torch.arange(n_pixels(order))
    assert torch.equal(nested_to_ring(ring_to_nested(index, order=order), order=order), index)


@pytest.mark.parametrize("order", range(6))
def test_a_pixel_holds_its_centre(order):
    """Index -> direction -> index is the identity, directions have length 1."""
    index = torch.arange(n_pixels(order))
    d = pixel_to_direction(index, order=order)
    _close(d.norm(dim=-1), torch.ones(len(d), dtype=F64))
    assert torch.equal(direction_to_pixel(d, order=order), index)


@pytest.mark.parametrize("order", range(4))
def test_pixels_have_equal_area(order):
    """Every pixel catches as many of points drawn evenly on the sphere (chi-squared within 5 sigma)."""
    n = 100_000
    generator = torch.Generator().manual_seed(order)
    x = torch.randn(n, 3, generator=generator, dtype=F64)
    counts = torch.bincount(direction_to_pixel(x, order=order), minlength=n_pixels(order)).double()
    mean = n / n_pixels(order)
    chi_squared = ((counts - mean) ** 2 / mean).sum()
    degrees = n_pixels(order) - 1
    assert abs(chi_squared - degrees) < 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("order", range(4))
def test_pixel_area_by_its_boundary(order):
    """The solid angle inside a finely drawn pixel outline is 4 pi / n, for each kind of pixel."""
    steps = torch.linspace(0, 1, 2001, dtype=F64)
    zero, one = torch.zeros_like(steps), torch.ones_like(steps)
    outline = [(steps, zero), (one, steps), (steps.flip(0), one), (zero, steps.flip(0))]
    for pixel in (0, n_pixels(order) // 2, n_pixels(order) - 1, 4**order - 1):
        edge = torch.cat(
            [
                torch.stack(
                    [
                        pixel_to_direction(torch.tensor(pixel), order=order, u=float(u), v=float(v))
                        for u, v in zip(us[::40], vs[::40], strict=True)
                    ]
                )
                for us, vs in outline
            ]
        )
        centre = pixel_to_direction(torch.tensor(pixel), order=order).expand(len(edge) - 1, 3)
        a, b = edge[:-1], edge[1:]
        triple = (centre * torch.linalg.cross(a, b)).sum(-1)
        denominator = 1 + (centre * a).sum(-1) + (a * b).sum(-1) + (centre * b).sum(-1)
        area = (2 * torch.atan2(triple, denominator)).sum()
        torch.testing.assert_close(area.item(), 4 * math.pi / n_pixels(order), rtol=1e-3, atol=0)


@given(unit_vectors(), st.integers(0, 8))
def test_children_stay_within_their_parent(direction, order):
    """The pixel of a direction at the next order is one of the children of its pixel, anywhere."""
    # A hair off the coordinate axes, where pixels touch and rounding decides.
    direction = direction + torch.tensor([1.1e-7, 2.3e-7, 3.7e-7], dtype=F64)
    parent = direction_to_pixel(direction, order=order)
    assert direction_to_pixel(direction, order=order + 1) in children(parent)


@pytest.mark.parametrize("order", range(4))
def test_children_are_a_partition(order):
    """The children of all pixels are all pixels of the next order, each once."""
    index = children(torch.arange(n_pixels(order))).flatten()
    assert torch.equal(index.sort().values, torch.arange(n_pixels(order + 1)))


@given(unit_vectors())
def test_every_direction_has_a_pixel(direction):
    """Poles, axes and pixel borders included, and the pixel's centre is near."""
    order = 4
    index = direction_to_pixel(direction, order=order)
    assert 0 <= index < n_pixels(order)
    assert pixel_to_direction(index, order=order) @ direction > math.cos(math.radians(spacing_deg(order)))


@pytest.mark.parametrize("order", range(3))
def test_directions_are_balanced(order):
    """The mean direction is 0 and so is the sum over antipodes: the set is symmetric under -1."""
    d = healpix_directions(order)
    _close(d.mean(0), torch.zeros(3, dtype=F64))
    assert torch.equal(direction_to_pixel(-d, order=order).sort().values, torch.arange(len(d)))


def test_bad_pixels_are_refused():
    """Orders and numbers that do not exist are named."""
    with pytest.raises(BadInput, match="order -1"):
        n_pixels(-1)
    with pytest.raises(BadInput, match=r"0 \.\.\. 47; got 3 \.\.\. 48"):
        pixel_to_direction(torch.tensor([3, 48]), order=1)
    with pytest.raises(BadInput, match="scheme 'spiral'"):
        healpix_directions(1, scheme="spiral")
    with pytest.raises(BadInput, match="Give one interval"):
        SO3Cells(torch.tensor([0, 1]), torch.tensor([0]), 0)


@pytest.mark.parametrize("order", range(3))
def test_frames_look_along_their_pixel_and_turn_smoothly(order):
    """The third row is the direction; frames of siblings differ by about their distance."""
    index = torch.arange(n_pixels(order + 1))
    frame = direction_frame(index, order=order + 1)
    _close(frame @ frame.mT, torch.eye(3, dtype=F64).expand_as(frame))
    _close(frame[:, 2], pixel_to_direction(index, order=order + 1))
    siblings = frame.reshape(-1, 4, 3, 3)
    turn = geodesic_angle(siblings[:, :1], siblings[:, 1:])
    distance = torch.acos((siblings[:, :1, 2] * siblings[:, 1:, 2]).sum(-1))
    assert (turn / distance).max() < CURVATURE


@pytest.mark.parametrize("order", range(3))
def test_grid_is_all_cells(order):
    """`so3_grid` is the list of centres of `so3_cells`, 72 * 8^order of them."""
    grid = so3_grid(order, dtype=F64)
    assert grid.shape == (n_pixels(order), n_in_plane(order), 3, 3)
    _close(grid, so3_cells(order).rotation(dtype=F64))
    _close(grid.mT @ grid, torch.eye(3, dtype=F64).expand_as(grid))
    assert grid.shape[0] * grid.shape[1] == 72 * 8**order
    assert so3_grid(order).dtype == torch.float32


@pytest.mark.parametrize("order", range(2))
def test_subdivision_is_the_next_grid(order):
    """The children of all cells are the cells of the next order, each once, near their parent's centre."""
    cells = so3_cells(order)
    fine = cells.subdivide()
    assert fine.order == order + 1
    number = (fine.pixel * n_in_plane(order + 1) + fine.in_plane).flatten()
    assert torch.equal(number.sort().values, torch.arange(72 * 8 ** (order + 1)))
    angle = torch.rad2deg(
        geodesic_angle(cells.rotation(dtype=F64)[..., None, :, :], fine.rotation(dtype=F64))
    )
    assert angle.max() < 0.6 * spacing_deg(order)


@pytest.mark.parametrize("order", range(3))
def test_no_rotation_is_far_from_the_grid(order):
    """The grid covers SO(3): the nearest node is within a cell's half diagonal."""
    r = random_rotations(300, generator=torch.Generator().manual_seed(0), dtype=F64)
    nearest = geodesic_angle(r[:, None], so3_grid(order, dtype=F64).flatten(0, 1)).amin(1)
    assert torch.rad2deg(nearest.max()) < COVERING * spacing_deg(order)


@pytest.mark.parametrize("order", range(3))
def test_grid_integrates_low_harmonics(order):
    """The mean of R over the grid is 0: no direction and no in-plane angle is preferred."""
    _close(so3_grid(order, dtype=F64).mean((0, 1)), torch.zeros(3, 3, dtype=F64))
