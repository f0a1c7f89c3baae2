"""Sums and means over Fourier shells; shell i holds the samples with |k| rounded to i, as in RELION.

Shells run from 0 to N // 2; samples further out (the corners) belong to none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.fourier.grid import Layout, radius_grid


def shell_index(
    n: int, *, ndim: int, layout: Layout = "half", device: torch.device | str | None = None
) -> Int[Tensor, "..."]:
    """Shell of every Fourier sample: |k| rounded, halves upwards; corners have indices above n // 2.

    >>> shell_index(4, ndim=1).tolist()
    [0, 1, 2]
    """
    radius = radius_grid(n, ndim=ndim, layout=layout, device=device, dtype=torch.float64)
    return torch.floor(radius + 0.5).long()


def sample_weight(
    n: int,
    *,
    ndim: int,
    layout: Layout = "half",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """Samples of the full transform that each stored one stands for: 1 or 2 in the half layout."""
    if layout != "half":
        return torch.ones((n,) * ndim, device=device, dtype=dtype)
    column = torch.full((n // 2 + 1,), 2.0, device=device, dtype=dtype)
    column[0] = 1.0
    if n % 2 == 0:
        column[-1] = 1.0
    return column.expand(*(n,) * (ndim - 1), n // 2 + 1)


def shell_sum(
    values: Float[Tensor, "..."], *, n: int, ndim: int, layout: Layout = "half"
) -> Float[Tensor, "..."]:
    """Sum over each shell of the full transform (last `ndim` axes); shape (*batch, n // 2 + 1)."""
    weight = sample_weight(n, ndim=ndim, layout=layout, device=values.device, dtype=values.dtype)
    index = shell_index(n, ndim=ndim, layout=layout, device=values.device).flatten().clamp_max(n // 2 + 1)
    flat = (values * weight).flatten(-ndim)
    out = flat.new_zeros(*flat.shape[:-1], n // 2 + 2)
    return out.index_add(-1, index, flat)[..., :-1]


def shell_count(
    n: int, *, ndim: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "shells"]:
    """Number of samples of the full transform in each shell, n // 2 + 1 of them."""
    ones = torch.ones((), device=device, dtype=dtype).expand(*(n,) * (ndim - 1), n // 2 + 1)
    return shell_sum(ones, n=n, ndim=ndim)


def shell_mean(
    values: Float[Tensor, "..."], *, n: int, ndim: int, layout: Layout = "half"
) -> Float[Tensor, "..."]:
    """Mean over each shell of the last `ndim` axes; shape (*batch, n // 2 + 1)."""
    count = shell_count(n, ndim=ndim, device=values.device, dtype=values.dtype)
    return shell_sum(values, n=n, ndim=ndim, layout=layout) / count


def spread_shells(
    per_shell: Float[Tensor, "*batch shells"],
    *,
    n: int,
    ndim: int,
    layout: Layout = "half",
    outside: float = 0.0,
) -> Float[Tensor, "..."]:
    """Each sample given its shell's value, `outside` in the corners; shape (*batch, ...) in `layout`."""
    index = shell_index(n, ndim=ndim, layout=layout, device=per_shell.device).clamp_max(per_shell.shape[-1])
    padded = torch.nn.functional.pad(per_shell, (0, 1), value=outside)
    return padded[..., index]
