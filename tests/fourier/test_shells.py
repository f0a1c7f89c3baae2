"""Laws of sums over Fourier shells."""

import pytest
import torch

from cryorbit.fourier.centred import fft_centred, rfft_centred
from cryorbit.fourier.shells import shell_count, shell_index, shell_mean, shell_sum, spread_shells

F64 = torch.float64
CASES = [(n, ndim) for n in (7, 8) for ndim in (2, 3)]


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize(("n", "ndim"), CASES)
def test_half_and_full_transform_agree(n, ndim):
    """Power per shell of the half transform is that of the full one."""
    x = _random(2, *[n] * ndim)
    half = shell_sum(rfft_centred(x, ndim=ndim).abs() ** 2, n=n, ndim=ndim)
    full_power = fft_centred(x, dims=tuple(range(-ndim, 0))).abs() ** 2
    full = shell_sum(full_power, n=n, ndim=ndim, layout="centred")
    torch.testing.assert_close(half, full)
    assert half.shape == (2, n // 2 + 1)


@pytest.mark.parametrize(("n", "ndim"), CASES)
def test_shells_are_relions(n, ndim):
    """Shell i holds |k| in [i - 1/2, i + 1/2), by brute force."""
    values = _random(*[n] * ndim)
    axes = torch.meshgrid(*[torch.arange(n) - n // 2] * ndim, indexing="ij")
    squared = sum(a**2 for a in axes)
    expected = torch.stack(
        [
            values[(4 * squared >= (2 * i - 1) ** 2 * (i > 0)) & (4 * squared < (2 * i + 1) ** 2)].sum()
            for i in range(n // 2 + 1)
        ]
    )
    torch.testing.assert_close(shell_sum(values, n=n, ndim=ndim, layout="centred"), expected)


@pytest.mark.parametrize(("n", "ndim"), CASES)
def test_count_and_mean(n, ndim):
    """Shell 0 is the origin alone; the mean of a constant is that constant; counts add up."""
    count = shell_count(n, ndim=ndim, dtype=F64)
    assert count[0] == 1
    index = shell_index(n, ndim=ndim, layout="fft")
    assert count.sum() == (index <= n // 2).sum()
    constant = torch.full((*[n] * (ndim - 1), n // 2 + 1), 3.0, dtype=F64)
    torch.testing.assert_close(shell_mean(constant, n=n, ndim=ndim), torch.full_like(count, 3.0))


@pytest.mark.parametrize(("n", "ndim"), CASES)
def test_spreading_is_the_adjoint_of_summing(n, ndim):
    """<sum v, c> = <v, spread c> in the full layouts, where every sample counts once."""
    values, coefficients = _random(*[n] * ndim), _random(n // 2 + 1)
    left = shell_sum(values, n=n, ndim=ndim, layout="fft") @ coefficients
    right = (values * spread_shells(coefficients, n=n, ndim=ndim, layout="fft")).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize(("n", "ndim"), CASES)
def test_mean_of_what_was_spread(n, ndim):
    """Spreading values over shells and averaging gives them back, on batches; corners get `outside`."""
    per_shell = _random(3, n // 2 + 1)
    spread = spread_shells(per_shell, n=n, ndim=ndim, outside=9.0)
    torch.testing.assert_close(shell_mean(spread, n=n, ndim=ndim), per_shell)
    corners = shell_index(n, ndim=ndim) > n // 2
    assert (spread[:, corners] == 9.0).all()
