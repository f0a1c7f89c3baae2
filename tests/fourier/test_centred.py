"""Laws of the centred transforms, odd and even boxes."""

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.fourier.centred import fft_centred, ifft_centred, irfft_centred, rfft_centred
from cryorbit.fourier.grid import index_grid, pixel_grid
from cryorbit.fourier.shells import sample_weight
from laws import ROUND_OFF

F64 = torch.float64
BOXES = [7, 8]


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def _close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("n", BOXES)
def test_transform_is_its_definition(n):
    """X(k) = sum over x of f(x) exp(-2 pi i k x / n) with x and k counted from index n // 2."""
    image = _random(n, n)
    position, frequency = pixel_grid(n, ndim=2, dtype=F64), index_grid(n, ndim=2, layout="centred", dtype=F64)
    phase = -2 * torch.pi / n * torch.einsum("uvi,yxi->uvyx", frequency, position)
    expected = torch.einsum(
        "uvyx,yx->uv", torch.polar(torch.ones_like(phase), phase), image.to(torch.complex128)
    )
    _close(fft_centred(image, dims=(0, 1)), expected)


@pytest.mark.parametrize("n", BOXES)
def test_point_at_the_origin_has_a_flat_real_transform(n):
    """The origin is index n // 2: a point there transforms to 1 everywhere, in every layout."""
    point = torch.zeros(n, n, n, dtype=F64)
    point[n // 2, n // 2, n // 2] = 1
    for transform in (fft_centred(point, dims=(0, 1, 2)), rfft_centred(point, ndim=3)):
        _close(transform, torch.ones_like(transform))


@pytest.mark.parametrize("n", BOXES)
@pytest.mark.parametrize("dims", [(-1,), (-2, -1), (0, 2)])
def test_inverse_undoes(n, dims):
    """ifft_centred after fft_centred is the identity, over any axes."""
    x = _random(n, n, n)
    back = ifft_centred(fft_centred(x, dims=dims), dims=dims)
    _close(back.real, x)
    _close(back.imag, torch.zeros_like(x))


@pytest.mark.parametrize("n", BOXES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_half_transform_round_trip(n, ndim):
    """irfft_centred after rfft_centred is the identity, on batches."""
    x = _random(2, *[n] * ndim)
    _close(irfft_centred(rfft_centred(x, ndim=ndim), n=n, ndim=ndim), x)


@pytest.mark.parametrize("n", BOXES)
def test_half_transform_holds_the_same_numbers(n):
    """The half layout is the shifted full layout, right half."""
    x = _random(n, n)
    full = torch.fft.ifftshift(fft_centred(x, dims=(0, 1)))
    _close(rfft_centred(x, ndim=2), full[:, : n // 2 + 1])


@pytest.mark.parametrize("n", BOXES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_parseval(n, ndim):
    """Sum |f|^2 = sum |X|^2 / n^ndim, for the full and, with weights, for the half transform."""
    x = _random(*[n] * ndim)
    energy = (x**2).sum()
    dims = tuple(range(ndim))
    _close((fft_centred(x, dims=dims).abs() ** 2).sum() / n**ndim, energy)
    half = rfft_centred(x, ndim=ndim).abs() ** 2 * sample_weight(n, ndim=ndim, dtype=F64)
    _close(half.sum() / n**ndim, energy)


@pytest.mark.parametrize("n", [31, 32])
def test_fourier_slice_theorem(n):
    """The 2D transform of a projection is the central slice of the 3D transform."""
    volume = _random(n, n, n)
    of_projection = fft_centred(volume.sum(0), dims=(0, 1))
    _close(of_projection, fft_centred(volume, dims=(0, 1, 2))[n // 2], ROUND_OFF[F64] * n**3)


def test_wrong_edge_is_refused():
    """A half transform that cannot belong to the stated edge is named."""
    with pytest.raises(BadInput, match="5 frequencies"):
        irfft_centred(torch.zeros(8, 5, dtype=torch.complex64), n=10, ndim=2)
