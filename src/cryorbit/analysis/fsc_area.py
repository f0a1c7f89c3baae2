"""Area under the Fourier shell correlation: one number for how well a map is known at all resolutions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.fourier.shells import shell_sum

PERFECT = 0.5
"""Of a map with itself: the correlation is 1 from 0 to Nyquist, 0.5 cycles per pixel."""

_AT_A_TIME = 32


def fsc_area(
    maps: Float[Tensor, "m n n n"],
    truth: Float[Tensor, "..."],
    *,
    mask: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "m"]:
    """Area under the FSC of each pair of maps against frequency in cycles per pixel, 0 to Nyquist; perfect is 0.5.

    As CryoBench scores decoded volumes (Jeon et al. 2024). The trapezium rule over shells 1 to n // 2, scaled so that a
    correlation of 1 gives 0.5 for odd boxes as for even ones: the origin's shell is one number whose sign is all it
    tells. A shell without power in either map counts as 0. Scale and grey level of the maps do not enter; their frame
    does.

    Parameters
    ----------
    mask
        Multiplied onto both maps. It correlates them by itself, so compare areas under one mask only.

    Raises
    ------
    BadInput
        If the shapes differ.
    """
    if maps.shape != truth.shape or maps.ndim != 4 or (mask is not None and mask.shape != maps.shape[1:]):
        raise BadInput(
            f"fsc_area: maps {tuple(maps.shape)} and {tuple(truth.shape)}"
            f"{'' if mask is None else f', mask {tuple(mask.shape)}'}. Give pairs of maps on one grid."
        )
    curves = [
        shell_correlations(a, b, mask=mask)
        for a, b in zip(maps.split(_AT_A_TIME), truth.split(_AT_A_TIME), strict=True)
    ]
    correlation = torch.cat(curves)[:, 1:]
    weight = torch.ones_like(correlation[0])
    if len(weight) > 1:
        weight[0] = weight[-1] = 0.5
    return PERFECT * (correlation @ weight) / weight.sum()


def shell_correlations(
    maps: Float[Tensor, "m n n n"],
    truth: Float[Tensor, "m n n n"],
    *,
    mask: Float[Tensor, "n n n"] | None = None,
) -> Float[Tensor, "m shells"]:
    """FSC of each pair of maps, shells 0 to n // 2, as `analysis.fsc` has it for one pair."""
    n = maps.shape[-1]
    if mask is not None:
        maps, truth = maps * mask, truth * mask
    f, g = (torch.fft.rfftn(x, dim=(-3, -2, -1)) for x in (maps, truth))

    def total(values: Tensor) -> Tensor:
        return shell_sum(values.double(), n=n, ndim=3)

    cross = total(f.real * g.real + f.imag * g.imag)
    power = (total(f.abs() ** 2) * total(g.abs() ** 2)).sqrt()
    return torch.where(power > 0, cross / power.clamp_min(torch.finfo(power.dtype).tiny), 0.0)
