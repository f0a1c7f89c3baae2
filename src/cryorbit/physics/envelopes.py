"""What partial coherence takes from high frequencies: factors of the CTF, 1 at the origin.

Frank 1973, Optik 38, 519; Reimer and Kohl 2008, chapter 6.4.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.physics.transfer import electron_wavelength_A


def temporal_envelope(
    frequency_per_A: Float[Tensor, "*grid"], *, focal_spread_A: float, voltage_kV: float = 300.0
) -> Float[Tensor, "*grid"]:
    """Of a Gaussian spread of defocus with this standard deviation: exp(-(pi lambda spread k^2)^2 / 2).

    The spread is Cc sqrt((dE / E)^2 + (2 dI / I)^2 + (dV / V)^2). It is the mean of exp(i pi lambda dz k^2) over dz.
    """
    phase = math.pi * _wavelength(voltage_kV) * focal_spread_A * frequency_per_A**2
    return torch.exp(-0.5 * phase**2)


def spatial_envelope(
    frequency_per_A: Float[Tensor, "*grid"],
    *,
    semi_angle_mrad: float,
    defocus_A: float,
    cs_mm: float = 2.7,
    voltage_kV: float = 300.0,
) -> Float[Tensor, "*grid"]:
    """Of a beam whose directions spread as exp(-(angle / alpha)^2): exp(-pi^2 a^2 (Cs lambda^3 k^3 - dz lambda k)^2).

    a = alpha / lambda. A tilted beam shifts each frequency's phase by the slope of chi there, so the envelope comes
    back to 1 where chi is flat. Underfocus is positive, as in `CTF`.
    """
    wavelength = _wavelength(voltage_kV)
    k = frequency_per_A
    slope = cs_mm * 1e7 * wavelength**3 * k**3 - defocus_A * wavelength * k
    return torch.exp(-((math.pi * semi_angle_mrad * 1e-3 / wavelength * slope) ** 2))


def ewald_depth_limit_A(thickness_A: float, *, voltage_kV: float = 300.0) -> float:
    """Resolution to which a particle's images are projections: d = sqrt(lambda t).

    The top and the bottom of the particle lie t / 2 from the focus of its middle; at d their CTF phase, pi lambda
    (t / 2) / d^2, is off by pi / 2 (DeRosier 2000, Ultramicroscopy 81, 83). Finer than that the Ewald sphere shows.

    >>> round(ewald_depth_limit_A(300.0), 2)
    2.43
    """
    return math.sqrt(_wavelength(voltage_kV) * thickness_A)


def _wavelength(voltage_kV: float) -> float:
    return float(electron_wavelength_A(torch.tensor(voltage_kV, dtype=torch.float64)))
