"""Radiation damage: what is left of each spatial frequency after some electrons, and how to weight frames for it.

Grant and Grigorieff 2015, eLife 4, e06980.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput

_AT_200_KV = 0.8
"""Electrons of 200 kV do the same damage with 0.8 of the exposure."""


def critical_dose(
    frequency_per_A: Float[Tensor, "*grid"], *, voltage_kV: float = 300.0
) -> Float[Tensor, "*grid"]:
    """Electrons per square angstrom after which the signal's power has fallen to 1/e: 0.245 k^-1.665 + 2.81 at 300 kV.

    Infinite at the origin; 0.8 of it at 200 kV.

    Raises
    ------
    BadInput
        If the voltage is neither 200 nor 300 kV, for which it was measured.

    >>> round(critical_dose(torch.tensor(0.1)).item(), 2)
    14.14
    """
    if voltage_kV not in (200.0, 300.0):
        raise BadInput(f"critical_dose: measured at 200 and 300 kV only, not at {voltage_kV:g} kV.")
    factor = 1.0 if voltage_kV == 300.0 else _AT_200_KV
    return factor * (0.245 * frequency_per_A**-1.665 + 2.81)


def dose_attenuation(
    frequency_per_A: Float[Tensor, "*grid"], dose: Float[Tensor, "frames"], *, voltage_kV: float = 300.0
) -> Float[Tensor, "frames *grid"]:
    """What is left of the amplitudes after each dose (e/A^2): exp(-N / (2 N_c))."""
    shape = (-1,) + (1,) * frequency_per_A.ndim
    return torch.exp(-0.5 * dose.reshape(shape) / critical_dose(frequency_per_A, voltage_kV=voltage_kV))


def dose_weights(
    frequency_per_A: Float[Tensor, "*grid"], dose: Float[Tensor, "frames"], *, voltage_kV: float = 300.0
) -> Float[Tensor, "frames *grid"]:
    """Weights of the frames' transforms, proportional to `dose_attenuation`, squares summing to 1.

    Proportional to the signal is the best signal-to-noise ratio, and with squares that sum to 1 white noise of the
    frames stays white noise of the same variance in the sum.
    """
    q = dose_attenuation(frequency_per_A, dose, voltage_kV=voltage_kV)
    return q / (q * q).sum(0).sqrt()
