"""How many times the potential in volts images or maps of an unknown grey scale are: closed form, from the density itself.

Protein is equally dense everywhere, so the mean of a map weighted by itself, sum V^2 / sum V, at a coarse resolution and
with the solvent at 0, is nearly one number for all proteins: no mass is needed. V^2 is taken as the product of two half
maps, whose noise is independent, so that noise does not add to it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid

PROTEIN_V = 4.2
"""sum V^2 / sum V at 12 A: median over 24 single chains of the PDB of 58 to 236 residues, where 16 of them lie within 6 %;
coiled coils and flat complexes down to 3.1. Procedural proteins are packed less densely: 3.8."""
AT_A = 12.0
"""Resolution that it is taken at."""


def fit_gain(
    first: Float[Tensor, "n n n"],
    second: Float[Tensor, "n n n"],
    *,
    voxel_size_A: float,
    resolution_A: float,
    radius_A: float,
) -> float:
    """Grey value per volt of two half maps.

    Parameters
    ----------
    resolution_A
        Low pass exp(-d^2 k^2) that the maps went through already; at most 12 A.
    radius_A
        Of the particle: the solvent's level is taken outside.

    Raises
    ------
    BadInput
        If the maps have no positive density that both share.
    """
    n = first.shape[-1]
    wave = radius_grid(n, ndim=3, device=first.device, dtype=torch.float64) / (n * voxel_size_A)
    more = torch.exp(-max(AT_A**2 - resolution_A**2, 0.0) * wave**2)
    smooth = torch.fft.irfftn(
        torch.fft.rfftn(torch.stack((first, second)).double(), dim=(1, 2, 3)) * more,
        s=(n,) * 3,
        dim=(1, 2, 3),
    )
    distance = radius_grid(n, ndim=3, layout="centred", device=first.device, dtype=torch.float64)
    inside = distance <= min(radius_A / voxel_size_A + 2, 0.45 * n)
    outside = ~inside & (distance <= 0.5 * n)
    above = smooth - smooth[:, outside].mean(1)[:, None, None, None]
    shared = float((above[0] * above[1])[inside].sum())
    total = float(above[:, inside].sum()) / 2
    if not (shared > 0 and total > 0 and math.isfinite(shared / total)):
        raise BadInput(
            "The halves share no positive density, so their grey scale cannot be told. Protein has to be light: dark images "
            "take --contrast dark, and dark half maps have to be multiplied by -1 first. Poses have to belong to the "
            "images. Else give --gain."
        )
    return shared / total / PROTEIN_V
