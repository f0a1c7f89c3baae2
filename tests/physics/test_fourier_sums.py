"""Sums of plane waves on a grid against the same sums term by term."""

from __future__ import annotations

import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.physics.fourier_sums import WaveSums, transform_at, wave_sums

KERNEL = {4: 2e-3, 6: 2e-5, 8: 2e-7, 10: 2e-9}
"""Relative error of the sums, root mean square, for kernels of so many points: what the module's text says, doubled."""


def waves(n: int, box: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(box)
    frequency = box * (torch.rand(n, 3, generator=g, dtype=torch.float64) - 0.5)
    return frequency, torch.randn(n, 2, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("width", KERNEL)
@pytest.mark.parametrize(("box", "edge"), [(11, 11), (12, 12), (11, 22), (12, 24)])
@pytest.mark.parametrize("oriented", [True, False])
def test_gridded_sums_equal_direct_ones(width, box, edge, oriented):
    """Spreading, transforming and dividing gives the sum over waves, to the error of the kernel."""
    frequency, pair = waves(300, box)
    value = torch.view_as_complex(pair) if oriented else pair[:, 0].contiguous()
    sums = WaveSums(box, edge, oriented=oriented, width=width)
    sums.add(frequency[:100], value[:100])
    rest = WaveSums(box, edge, oriented=oriented, width=width)
    rest.add(frequency[100:], value[100:])
    sums += rest
    wanted = wave_sums(frequency, value, box=box, edge=edge)
    assert float((sums.values() - wanted).norm() / wanted.norm()) < KERNEL[width]


@pytest.mark.parametrize("n", [7, 8])
def test_transform_is_that_of_fft_at_whole_frequencies(n):
    """At whole frequencies below Nyquist, slicing term by term is the discrete transform."""
    values = torch.randn(n, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = torch.fft.fftn(torch.fft.ifftshift(values))
    frequency = torch.tensor([[1.0, -2.0, 3.0], [0.0, 3.0, -1.0]], dtype=torch.float64)
    found = transform_at(values, frequency)
    torch.testing.assert_close(found, torch.stack([whole[3, -2, 1], whole[-1, 3, 0]]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [7, 8])
def test_sums_are_the_adjoint_of_slicing(n):
    """Re <V^(k), c> = <V, f>, term by term."""
    frequency, pair = waves(50, n)
    value = torch.view_as_complex(pair)
    values = torch.randn(n, n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left = (transform_at(values, frequency).conj() * value).sum().real
    right = (values * wave_sums(frequency, value, box=n, edge=n)).sum()
    torch.testing.assert_close(left, right, rtol=1e-11, atol=0)


def test_values_of_the_wrong_kind_are_refused():
    with pytest.raises(BadInput, match="oriented"):
        WaveSums(8, 8, oriented=True).add(torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(BadInput, match="2 to 14"):
        WaveSums(8, 8, oriented=True, width=20)
