import itertools

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.physics.interpolation import complete_plane, gather, gather_with_gradient, scatter

ROUND_OFF = 1e-12
P = 16


def random_half(generator: torch.Generator) -> torch.Tensor:
    """A Hermitian transform, stored as its half."""
    real = torch.randn(P, P, P, dtype=torch.float64, generator=generator)
    full = torch.fft.fftn(real)
    return torch.fft.fftshift(full, dim=(0, 1))[:, :, : P // 2 + 1].contiguous()


def random_points(n: int, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(n, 3, dtype=torch.float64, generator=generator) - 0.5) * (P - 3)


def plain_gather(half: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The specification: eight corners, each the stored value or the conjugate of its mate's."""
    floor, total = points.floor(), 0
    for corner in torch.tensor(list(itertools.product((0, 1), repeat=3))):
        at = floor + corner
        weight = (1 - (points - at).abs()).prod(1)
        mate = at[:, 0] < 0
        x, y, z = torch.where(mate[:, None], -at, at).long().T
        value = half[z + P // 2, y + P // 2, x]
        total = total + weight * torch.where(mate, value.conj(), value)
    return total


def test_lattice_points_are_read_exactly():
    """At a lattice point trilinear interpolation is the value stored there, or its conjugate for x < 0."""
    half = random_half(torch.Generator().manual_seed(0))
    points = torch.tensor([[0, 0, 0], [3, -2, 5], [-3, 2, -5], [1, 6, -6]], dtype=torch.float64)
    c = P // 2
    expected = torch.stack(
        (half[c, c, 0], half[c + 5, c - 2, 3], half[c + 5, c - 2, 3].conj(), half[c - 6, c + 6, 1])
    )
    torch.testing.assert_close(gather(half, points), expected, rtol=0, atol=ROUND_OFF)


def test_values_are_hermitian():
    """V(-k) = conj V(k)."""
    generator = torch.Generator().manual_seed(1)
    half, points = random_half(generator), random_points(200, generator)
    torch.testing.assert_close(gather(half, -points), gather(half, points).conj(), rtol=0, atol=ROUND_OFF)


def test_gradient_is_the_slope_inside_a_cell():
    """Within a cell the interpolant is a cubic without squares: a central difference is exact along each axis."""
    generator = torch.Generator().manual_seed(2)
    half, points = random_half(generator), random_points(300, generator)
    inside = ((points - points.floor() - 0.5).abs() < 0.4).all(1)
    points = points[inside]
    value, gradient = gather_with_gradient(half, points)
    torch.testing.assert_close(value, gather(half, points), rtol=0, atol=ROUND_OFF)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = 0.05
        slope = (gather(half, points + step) - gather(half, points - step)) / 0.1
        torch.testing.assert_close(gradient[:, axis], slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sign_of_x", [1, -1])
def test_scatter_is_the_transpose_of_gather(sign_of_x: int):
    """<gather(V), y> = <V, scatter(y)> over the stored half, for points whose corners stay off the plane x = 0."""
    generator = torch.Generator().manual_seed(3)
    half, points = random_half(generator), random_points(100, generator)
    points[:, 0] = sign_of_x * (points[:, 0].abs() % 5 + 1)
    y = torch.randn(100, dtype=torch.complex128, generator=generator)
    out = torch.zeros(2, P, P, P // 2 + 1, dtype=torch.float64)
    scatter(out, points, torch.stack((y.real, y.imag)))
    left = torch.view_as_real(gather(half, points) * y.conj())[:, 0].sum()
    right = (half.real * out[0] + half.imag * out[1]).sum()
    torch.testing.assert_close(left, right, rtol=ROUND_OFF, atol=0)


def test_scattered_lattice_is_hermitian():
    """After `complete_plane` the plane x = 0 obeys V(0, -y, -z) = conj V(0, y, z), as a real map demands."""
    generator = torch.Generator().manual_seed(4)
    points = random_points(100, generator) * 0.8
    out = torch.zeros(3, P, P, P // 2 + 1, dtype=torch.float64)
    scatter(out, points, torch.randn(3, 100, dtype=torch.float64, generator=generator))
    values, weight = torch.complex(out[0], out[1]), out[2]
    for half in (values, weight):
        complete_plane(half)
        plane = half[1:, 1:, 0]
        torch.testing.assert_close(plane.flip(0, 1), plane.conj(), rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 20_000])
def test_any_number_of_points(n: int):
    """Whole blocks, part blocks and several chunks: each point is read, sloped and added as if it were alone."""
    generator = torch.Generator().manual_seed(5)
    half, points = random_half(generator), random_points(n, generator)
    value, slope = gather_with_gradient(half, points)
    assert slope.shape == (n, 3)
    torch.testing.assert_close(value, gather(half, points), rtol=0, atol=ROUND_OFF)
    torch.testing.assert_close(value, plain_gather(half, points), rtol=0, atol=1e-10)
    together, apart = (torch.zeros(3, P, P, P // 2 + 1, dtype=torch.float64) for _ in range(2))
    rows = torch.randn(3, n, dtype=torch.float64, generator=generator)
    scatter(together, points, rows)
    for part in (slice(0, n // 3), slice(n // 3, n)):
        scatter(apart, points[part], rows[:, part])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-10)


def test_points_that_want_a_gradient_are_refused():
    """No gradient is lost in silence: the error names what has one."""
    half = random_half(torch.Generator().manual_seed(6))
    with pytest.raises(BadInput, match=r"read_points"):
        gather(half, torch.zeros(1, 3, dtype=torch.float64, requires_grad=True))
    with pytest.raises(BadInput, match=r"even P"):
        gather(half[:, :, :-1], torch.zeros(1, 3, dtype=torch.float64))
