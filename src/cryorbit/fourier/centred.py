"""Fourier transforms of arrays whose origin is the element with index N // 2, for odd and even N.

Two layouts of the transform:

* **centred**: zero frequency at index N // 2 of every axis (`fft_centred`, `ifft_centred`);
* **half**: the layout of `torch.fft.rfftn`, for real arrays: frequencies of every axis in `fftfreq` order,
  the last axis only 0 ... N // 2 (`rfft_centred`, `irfft_centred`). Phases are relative to index N // 2 all
  the same.

The forward transform is not normalised; the inverse divides by the number of elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float, Shaped
from torch import Tensor

from cryorbit.errors import BadInput


def fft_centred(x: Shaped[Tensor, "..."], dims: Sequence[int]) -> Complex[Tensor, "..."]:
    """Transform over `dims`, zero frequency at index N // 2."""
    shifted = torch.fft.fftn(torch.fft.ifftshift(x, dim=tuple(dims)), dim=tuple(dims))
    return torch.fft.fftshift(shifted, dim=tuple(dims))


def ifft_centred(x: Complex[Tensor, "..."], dims: Sequence[int]) -> Complex[Tensor, "..."]:
    """Inverse of `fft_centred`; complex, take `.real` where the array was real."""
    shifted = torch.fft.ifftn(torch.fft.ifftshift(x, dim=tuple(dims)), dim=tuple(dims))
    return torch.fft.fftshift(shifted, dim=tuple(dims))


def rfft_centred(x: Float[Tensor, "..."], *, ndim: int) -> Complex[Tensor, "..."]:
    """Half transform of the last `ndim` axes of a real array, layout of `torch.fft.rfftn`."""
    dims = tuple(range(-ndim, 0))
    return torch.fft.rfftn(torch.fft.ifftshift(x, dim=dims), dim=dims)


def irfft_centred(x: Complex[Tensor, "..."], *, n: int, ndim: int) -> Float[Tensor, "..."]:
    """Real array of edge `n` from its half transform; inverse of `rfft_centred`."""
    if x.shape[-1] != n // 2 + 1:
        raise BadInput(
            f"irfft_centred: the last axis has {x.shape[-1]} frequencies, an array of edge {n} has "
            f"{n // 2 + 1}. State the edge of the real array as n."
        )
    dims = tuple(range(-ndim, 0))
    return torch.fft.fftshift(torch.fft.irfftn(x, s=(n,) * ndim, dim=dims), dim=dims)
