"""Laws of the coordinate grids and of shifts by a phase."""

import pytest
import torch

from cryorbit.fourier.centred import fft_centred, irfft_centred, rfft_centred
from cryorbit.fourier.grid import frequency_grid, index_grid, pixel_grid, radius_grid, shift_phase

F64 = torch.float64
BOXES = [7, 8]


@pytest.mark.parametrize("n", BOXES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_layouts_are_those_of_torch(n, ndim):
    """The layouts hold rfftfreq, fftfreq and its shift; the last axis is ordered x, y, z."""
    half = frequency_grid(n, pixel_size_A=1.7, ndim=ndim, dtype=F64)
    full = frequency_grid(n, pixel_size_A=1.7, ndim=ndim, layout="fft", dtype=F64)
    centred = frequency_grid(n, pixel_size_A=1.7, ndim=ndim, layout="centred", dtype=F64)
    assert half.shape == (*[n] * (ndim - 1), n // 2 + 1, ndim)
    x_of_half = half.reshape(-1, n // 2 + 1, ndim)[0, :, 0]
    torch.testing.assert_close(x_of_half, torch.fft.rfftfreq(n, d=1.7, dtype=F64))
    slowest = full.reshape(n, -1, ndim)[:, 0, ndim - 1]
    torch.testing.assert_close(slowest, torch.fft.fftfreq(n, d=1.7, dtype=F64))
    assert torch.equal(torch.fft.fftshift(full, dim=tuple(range(ndim))), centred)


@pytest.mark.parametrize("layout", ["half", "fft", "centred"])
@pytest.mark.parametrize("n", BOXES)
def test_radius_is_the_length_of_the_index(n, layout):
    """radius_grid = |index_grid|."""
    expected = index_grid(n, ndim=3, layout=layout, dtype=F64).norm(dim=-1)
    torch.testing.assert_close(radius_grid(n, ndim=3, layout=layout, dtype=F64), expected)


@pytest.mark.parametrize("n", BOXES)
def test_pixels_are_counted_from_the_origin(n):
    """The pixel at index n // 2 has position 0; x grows along the last array axis."""
    grid = pixel_grid(n, ndim=3)
    assert grid[n // 2, n // 2, n // 2].tolist() == [0, 0, 0]
    assert grid[n // 2 + 1, n // 2, n // 2 - 1].tolist() == [-1, 0, 1]


@pytest.mark.parametrize("n", BOXES)
@pytest.mark.parametrize("shift", [(2, 0), (0, -3), (1, 2)])
def test_phase_moves_content_by_plus_shift(n, shift):
    """Multiplying by shift_phase rolls the image by whole pixels, x first, in every layout."""
    image = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    shift_px = torch.tensor(shift, dtype=F64)
    moved = irfft_centred(rfft_centred(image, ndim=2) * shift_phase(shift_px, n=n), n=n, ndim=2)
    torch.testing.assert_close(moved, image.roll((shift[1], shift[0]), dims=(0, 1)))
    full = fft_centred(image, dims=(0, 1)) * shift_phase(shift_px, n=n, layout="centred")
    torch.testing.assert_close(full, fft_centred(moved, dims=(0, 1)))


@pytest.mark.parametrize("n", [15, 16])
def test_fractional_shift_of_a_gaussian(n):
    """A Gaussian moved by a phase is the Gaussian drawn there, sub-pixel, batched."""
    width = 1.4  # its transform is 4e-5 at Nyquist
    position = pixel_grid(n, ndim=2, dtype=F64)

    def drawn(at):
        return torch.exp(-0.5 * ((position - at) ** 2).sum(-1) / width**2)

    shifts = torch.tensor([[0.3, -0.7], [1.5, 0.5]], dtype=F64)
    start = rfft_centred(drawn(torch.zeros(2, dtype=F64)), ndim=2)
    moved = irfft_centred(start * shift_phase(shifts, n=n), n=n, ndim=2)
    torch.testing.assert_close(moved, torch.stack([drawn(s) for s in shifts]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("n", BOXES)
def test_shifted_real_images_stay_real(n):
    """The full transform of a shifted real image is Hermitian, Nyquist included."""
    image = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    phase = shift_phase(torch.tensor([0.3, 0.4], dtype=F64), n=n, layout="fft")
    moved = torch.fft.ifft2(torch.fft.fft2(image) * phase)
    assert moved.imag.abs().max() < 1e-12
