"""What an FSC between half maps says of the merged map: signal-to-noise per shell, and correlation with the truth.

Penczek 2010, Methods Enzymol. 482, 73; Rosenthal and Henderson 2003, J. Mol. Biol. 333, 721.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def ssnr(correlation: Float[Tensor, "*shells"], *, merged: bool = True) -> Float[Tensor, "*shells"]:
    """Spectral signal-to-noise ratio: 2 F / (1 - F) of the merged map, F / (1 - F) of either half.

    Infinite where F = 1; negative where F is.

    >>> ssnr(torch.tensor([0.5, 0.2])).tolist()
    [2.0, 0.5]
    """
    return (2.0 if merged else 1.0) * correlation / (1.0 - correlation)


def cref(correlation: Float[Tensor, "*shells"]) -> Float[Tensor, "*shells"]:
    """Expected correlation of the merged map with the noise-free one: sqrt(2 F / (1 + F)), 0 where F is below 0.

    F = 1 / 7 = 0.143 is where it is 0.5.

    >>> round(cref(torch.tensor(1 / 7)).item(), 6)
    0.5
    """
    positive = correlation.clamp_min(0.0)
    return torch.sqrt(2.0 * positive / (1.0 + positive))


def fsc_from_ssnr(ratio: Float[Tensor, "*shells"], *, merged: bool = True) -> Float[Tensor, "*shells"]:
    """Expected FSC between half maps of a signal-to-noise ratio: inverse of `ssnr`, S / (S + 1) per half."""
    half = ratio / 2.0 if merged else ratio
    return half / (half + 1.0)
