"""An electron wave through a thick specimen, slice by slice: the reference that projections approximate.

Cowley and Moodie 1957, Acta Cryst. 10, 609; Kirkland 2010, Advanced Computing in Electron Microscopy, chapter 6.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.physics.transfer import electron_wavelength_A

_REST_KEV = 510.99895


def interaction_rad_per_V_A(voltage_kV: float) -> float:
    """Phase per volt and angstrom of potential: sigma = 2 pi (mc^2 + eV) / (lambda V (2 mc^2 + eV)).

    >>> round(interaction_rad_per_V_A(300.0) * 1e4, 3)
    6.526
    """
    wavelength = float(electron_wavelength_A(torch.tensor(voltage_kV, dtype=torch.float64)))
    relativistic = (_REST_KEV + voltage_kV) / (2 * _REST_KEV + voltage_kV)
    return 2 * math.pi / (wavelength * voltage_kV * 1e3) * relativistic


def propagate(
    wave: Complex[Tensor, "*batch h w"], *, distance_A: float, pixel_size_A: float, voltage_kV: float = 300.0
) -> Complex[Tensor, "*batch h w"]:
    """The wave further down in vacuum (Fresnel): coefficients times exp(-i pi lambda z k^2), circular at the edges.

    Loses nothing. Of a thin weak phase object the image then shows what `ctf_values` gives for a defocus of z.
    """
    wavelength = float(electron_wavelength_A(torch.tensor(voltage_kV, dtype=torch.float64)))
    h, w = wave.shape[-2:]
    ky = torch.fft.fftfreq(h, d=pixel_size_A, device=wave.device, dtype=wave.real.dtype)
    kx = torch.fft.fftfreq(w, d=pixel_size_A, device=wave.device, dtype=wave.real.dtype)
    phase = -math.pi * wavelength * distance_A * (ky[:, None] ** 2 + kx**2)
    return torch.fft.ifft2(torch.fft.fft2(wave) * torch.polar(torch.ones_like(phase), phase))


def multislice(
    potential_V: Float[Tensor, "slices h w"],
    *,
    slice_thickness_A: float,
    pixel_size_A: float,
    voltage_kV: float = 300.0,
) -> Complex[Tensor, "h w"]:
    """Exit wave of a plane wave of amplitude 1 through slices of potential (volts), the first one first.

    In each slice the phase grows by sigma v dz, then the wave travels dz. The intensity |wave|^2 is conserved. Axis 0
    is the beam's; a map's values are in volts if `atoms_to_density` made them. Slices must be thin, sigma v dz << 1,
    and pixels fine enough for the scattered angles: frequencies beyond Nyquist fold back.

    Raises
    ------
    BadInput
        If a slice's phase exceeds 1 radian.
    """
    phase = interaction_rad_per_V_A(voltage_kV) * slice_thickness_A * potential_V
    if phase.numel() and float(phase.abs().amax()) > 1.0:
        raise BadInput(
            f"multislice: a slice shifts the phase by {float(phase.abs().amax()):.2f} rad. Use thinner slices."
        )
    wave = torch.ones(phase.shape[1:], dtype=phase.dtype.to_complex(), device=phase.device)
    for shift in phase:
        wave = propagate(
            wave * torch.polar(torch.ones_like(shift), shift),
            distance_A=slice_thickness_A,
            pixel_size_A=pixel_size_A,
            voltage_kV=voltage_kV,
        )
    return wave
