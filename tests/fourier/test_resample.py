"""Laws of Fourier crop and pad, for every pair of parities."""

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.fourier.centred import fft_centred
from cryorbit.fourier.filters import low_pass
from cryorbit.fourier.grid import pixel_grid
from cryorbit.fourier.resample import (
    box_crop,
    box_pad,
    fourier_crop,
    fourier_pad,
    fourier_resample,
    resample_transform,
)

F64 = torch.float64
PAIRS = [(small, large) for small in (9, 10) for large in (10, 13, 14) if large > small]
EVERY = [*PAIRS, *[(b, a) for a, b in PAIRS]]


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def _close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(("small", "large"), PAIRS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_crop_after_pad_is_the_identity(small, large, ndim):
    """Going up and down again gives back every value, Nyquist included."""
    x = _random(2, *[small] * ndim)
    _close(fourier_crop(fourier_pad(x, large, ndim=ndim), small, ndim=ndim), x)


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_pad_after_crop_is_a_projection(small, large):
    """Down and up is a low-pass: doing it twice changes nothing more."""

    def low(x):
        return fourier_pad(fourier_crop(x, small, ndim=2), large, ndim=2)

    once = low(_random(2, large, large))
    _close(low(once), once)


@pytest.mark.parametrize(("old", "new"), EVERY)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_constants_and_the_mean_are_kept(old, new, ndim):
    """A constant stays that constant, and the mean of anything its mean."""
    x = _random(*[old] * ndim)
    _close(fourier_resample(x, new, ndim=ndim).mean(), x.mean())
    constant = torch.full_like(x, 2.5)
    _close(fourier_resample(constant, new, ndim=ndim), torch.full([new] * ndim, 2.5, dtype=F64))


@pytest.mark.parametrize(("old", "new"), EVERY)
def test_waves_are_resampled_exactly(old, new):
    """A wave below both Nyquists, about n // 2, is the same wave on the new grid: values are kept."""
    shortest = min(old, new)
    for kx, ky in ((1, 0), (2, -3), ((shortest - 1) // 2, (shortest - 1) // 2)):

        def wave(n, kx=kx, ky=ky):
            x = pixel_grid(n, ndim=2, dtype=F64) / n
            return torch.cos(2 * torch.pi * (kx * x[..., 0] + ky * x[..., 1]) + 0.7)

        _close(fourier_resample(wave(old), new, ndim=2), wave(new))


@pytest.mark.parametrize("large", [13, 14])
def test_new_nyquist_is_sampled(large):
    """A cosine at the new Nyquist comes out as +1, -1, ...; a sine there vanishes, as all beyond."""
    n, x = 10, (torch.arange(large, dtype=F64) - large // 2) / large
    sign = torch.where((torch.arange(n) - n // 2) % 2 == 0, 1.0, -1.0).to(F64)
    _close(fourier_crop(torch.cos(2 * torch.pi * 5 * x), n, ndim=1), sign)
    _close(fourier_crop(torch.sin(2 * torch.pi * 5 * x), n, ndim=1), torch.zeros(n, dtype=F64))
    _close(fourier_crop(torch.cos(2 * torch.pi * 6 * x), n, ndim=1), torch.zeros(n, dtype=F64))


@pytest.mark.parametrize(("old", "new"), EVERY)
def test_origin_stays_the_origin(old, new):
    """Even functions about n // 2 stay even about the new n // 2."""
    x = _random(old, old)
    flipped = torch.fft.ifftshift(x).flip((0, 1)).roll((1, 1), (0, 1))
    even = x + torch.fft.fftshift(flipped)
    out = torch.fft.ifftshift(fourier_resample(even, new, ndim=2))
    _close(out, out.flip((0, 1)).roll((1, 1), (0, 1)))


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_central_block_of_the_transform_is_kept(small, large):
    """Below Nyquist, the centred transforms agree sample by sample, up to (n / N)^ndim."""
    x = _random(large, large)
    big = fft_centred(x, dims=(0, 1)) / large**2
    little = fft_centred(fourier_crop(x, small, ndim=2), dims=(0, 1)) / small**2
    m = (small - 1) // 2
    inner_big = big[large // 2 - m : large // 2 + m + 1, large // 2 - m : large // 2 + m + 1]
    inner_little = little[small // 2 - m : small // 2 + m + 1, small // 2 - m : small // 2 + m + 1]
    _close(inner_big, inner_little)


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_parseval_for_padding(small, large):
    """Without Nyquist content, mean square is kept by padding."""
    x = low_pass(_random(small, small), resolution_A=2.6, pixel_size_A=1.0, ndim=2, edge_shells=0.0)
    _close((fourier_pad(x, large, ndim=2) ** 2).mean(), (x**2).mean())


@pytest.mark.parametrize(("old", "new"), EVERY)
def test_transform_to_transform(old, new):
    """`resample_transform` on half transforms is `fourier_resample` on arrays."""
    x = _random(2, old, old)
    half = torch.fft.rfft2(x)
    moved = resample_transform(half, old, new, ndim=2) * (new / old) ** 2
    _close(moved, torch.fft.rfft2(fourier_resample(x, new, ndim=2)), 1e-10)


def test_gradients_flow():
    """Resampling is linear: its gradient is its adjoint, checked by finite differences."""
    x = _random(6, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: fourier_resample(v, 5, ndim=2), (x,))
    assert torch.autograd.gradcheck(lambda v: fourier_resample(v, 9, ndim=2), (x,))


def test_float32_stays_float32():
    """Device and dtype follow the input; the same box is returned untouched."""
    x = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0))
    assert fourier_crop(x, 8, ndim=2).dtype == torch.float32
    assert fourier_crop(x, 12, ndim=2) is x


@pytest.mark.parametrize(("old", "new"), EVERY)
@pytest.mark.parametrize("ndim", [2, 3])
def test_box_pad_and_crop_keep_the_origin(old, new, ndim):
    """Index N // 2 goes to n // 2; crop undoes pad and is its adjoint."""
    small, large = min(old, new), max(old, new)
    x, y = _random(*[small] * ndim), _random(*[large] * ndim)
    padded = box_pad(x, large, ndim=ndim)
    assert padded[(large // 2,) * ndim] == x[(small // 2,) * ndim]
    assert torch.equal(box_crop(padded, small, ndim=ndim), x)
    _close((padded * y).sum(), (x * box_crop(y, small, ndim=ndim)).sum())


def test_wrong_direction_is_refused():
    """Each error names the other function."""
    x = torch.zeros(8, 8)
    for function, n, remedy in (
        (fourier_crop, 9, "fourier_pad"),
        (fourier_pad, 7, "fourier_crop"),
        (box_crop, 9, "box_pad"),
        (box_pad, 7, "box_crop"),
    ):
        with pytest.raises(BadInput, match=f"Use {remedy}"):
            function(x, n, ndim=2)
    with pytest.raises(BadInput, match="not positive"):
        fourier_resample(x, 0, ndim=2)
    with pytest.raises(BadInput, match="2 equal axes"):
        fourier_resample(torch.zeros(8, 9), 4, ndim=2)
