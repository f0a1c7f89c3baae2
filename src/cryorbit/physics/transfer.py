"""The contrast transfer function: what the microscope does to each spatial frequency.

RELION's sign: CTF(0) = +amplitude contrast, so that protein is light in the images.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.data import CTF
from cryorbit.errors import BadInput


def electron_wavelength_A(voltage_kV: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Relativistic wavelength of the electron, angstrom.

    lambda = 12.2643247 / sqrt(V (1 + 0.978466e-6 V)) with V in volts (Reimer and Kohl 2008, eq. 2.1).

    >>> round(electron_wavelength_A(torch.tensor(300.0, dtype=torch.float64)).item(), 5)
    0.01969
    """
    volts = voltage_kV * 1e3
    return 12.2643247 / torch.sqrt(volts * (1 + 0.978466e-6 * volts))


def ctf_phase(ctf: CTF, frequency_per_A: Float[Tensor, "*grid 2"]) -> Float[Tensor, "n *grid"]:
    """Phase chi of each particle at each frequency, radians: CTF = scale sin(chi) exp(-B s^2 / 4).

    chi = pi lambda dz s^2 - pi/2 Cs lambda^3 s^4 + phase shift + asin(w),
    dz = (U + V + (U - V) cos 2(alpha - alpha0)) / 2 (Mindell and Grigorieff 2003). Even Zernike terms follow
    RELION, whose phase is -chi: they are subtracted, so that a positive term acts like a larger Cs.
    A magnification matrix M moves each frequency k to M k first.

    Parameters
    ----------
    frequency_per_A
        (kx, ky) in 1/angstrom.
    """
    shape = (-1,) + (1,) * (frequency_per_A.ndim - 1)
    kx, ky = _magnified(ctf, frequency_per_A)
    s2 = kx * kx + ky * ky
    wavelength = electron_wavelength_A(ctf.voltage_kV).to(s2).reshape(shape)
    mean = (0.5 * (ctf.defocus_u_A + ctf.defocus_v_A)).to(s2).reshape(shape)
    half_difference = (0.5 * (ctf.defocus_u_A - ctf.defocus_v_A)).to(s2)
    twice_angle = torch.deg2rad(2 * ctf.astigmatism_angle_deg).to(s2)
    along = (half_difference * torch.cos(twice_angle)).reshape(shape)
    across = (half_difference * torch.sin(twice_angle)).reshape(shape)
    # s^2 cos 2(alpha - alpha0), written without an arc tangent.
    defocus_s2 = mean * s2 + along * (kx * kx - ky * ky) + across * (2 * kx * ky)
    spherical = (0.5 * math.pi * 1e7 * ctf.cs_mm).to(s2).reshape(shape) * wavelength**3
    constant = torch.deg2rad(ctf.phase_shift_deg) + torch.asin(ctf.amplitude_contrast)
    chi = math.pi * wavelength * defocus_s2 - spherical * s2 * s2 + constant.to(s2).reshape(shape)
    if ctf.even_zernike is not None:
        chi = chi - _zernike_sum(ctf.even_zernike, kx, ky, parity=0)
    return chi


def ctf_values(ctf: CTF, frequency_per_A: Float[Tensor, "*grid 2"]) -> Float[Tensor, "n *grid"]:
    """CTF of each particle at each frequency (kx, ky) in 1/angstrom, positive at the origin.

    >>> row = CTF.uniform(1, defocus_A=15000.0)
    >>> ctf_values(row, torch.tensor([[0.05, 0.0]], dtype=torch.float64)).item()  # doctest: +ELLIPSIS
    0.6624...
    """
    value = torch.sin(ctf_phase(ctf, frequency_per_A))
    shape = (-1,) + (1,) * (frequency_per_A.ndim - 1)
    if bool((ctf.b_factor_A2 != 0).any()):
        kx, ky = _magnified(ctf, frequency_per_A)
        value = value * torch.exp(-0.25 * ctf.b_factor_A2.to(value).reshape(shape) * (kx * kx + ky * ky))
    if bool((ctf.scale != 1).any()):
        value = value * ctf.scale.to(value).reshape(shape)
    return value


def ctf_image(
    ctf: CTF, box: int, *, pixel_size_A: float, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n box half"]:
    """CTF on the half plane of `torch.fft.rfft2`: shape (n, box, box // 2 + 1), on the device of `ctf`."""
    frequency = half_plane_frequency_per_A(
        box, pixel_size_A=pixel_size_A, device=ctf.defocus_u_A.device, dtype=dtype
    )
    return ctf_values(ctf, frequency)


def odd_phase(ctf: CTF, frequency_per_A: Float[Tensor, "*grid 2"]) -> Complex[Tensor, "n *grid"] | None:
    """exp(i phi) of the odd aberrations (beam tilt and odd Zernike terms), or None where the CTF has none.

    The forward model multiplies by it, observed data are multiplied by its conjugate. Beam tilt t (mrad)
    enters the RELION list through q = -(2e4 pi Cs lambda^2 / 3) t, Cs in mm: 2q on the linear terms, q on the
    coma terms.
    """
    if ctf.beam_tilt_mrad is None and ctf.odd_zernike is None:
        return None
    kx, ky = _magnified(ctf, frequency_per_A)
    n = len(ctf)
    length = 6 if ctf.odd_zernike is None else max(6, ctf.odd_zernike.shape[1])
    terms = torch.zeros(n, length, dtype=kx.dtype, device=kx.device)
    if ctf.odd_zernike is not None:
        terms[:, : ctf.odd_zernike.shape[1]] += ctf.odd_zernike.to(terms)
    if ctf.beam_tilt_mrad is not None:
        wavelength = electron_wavelength_A(ctf.voltage_kV)
        q = -(2e4 * math.pi / 3) * (ctf.cs_mm * wavelength**2)[:, None] * ctf.beam_tilt_mrad
        q = q.to(terms)
        terms[:, 1] += 2 * q[:, 0]
        terms[:, 0] += 2 * q[:, 1]
        terms[:, 4] += q[:, 0]
        terms[:, 3] += q[:, 1]
    phi = _zernike_sum(terms, kx, ky, parity=1)
    return torch.polar(torch.ones_like(phi), phi)


def half_plane_frequency_per_A(
    box: int, *, pixel_size_A: float, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "box half 2"]:
    """(kx, ky) of each coefficient of `torch.fft.rfft2`, 1/angstrom."""
    kx = torch.fft.rfftfreq(box, d=pixel_size_A, device=device, dtype=dtype)
    ky = torch.fft.fftfreq(box, d=pixel_size_A, device=device, dtype=dtype)
    return torch.stack((kx.expand(box, -1), ky[:, None].expand(-1, kx.shape[0])), dim=-1)


def _magnified(ctf: CTF, frequency_per_A: Tensor) -> tuple[Tensor, Tensor]:
    """(kx, ky) of each particle after its magnification matrix; a leading axis of 1 where it has none."""
    kx, ky = frequency_per_A[None, ..., 0], frequency_per_A[None, ..., 1]
    if ctf.magnification is None:
        return kx, ky
    m = ctf.magnification.to(frequency_per_A).reshape((-1, 2, 2) + (1,) * (frequency_per_A.ndim - 1))
    return m[:, 0, 0] * kx + m[:, 0, 1] * ky, m[:, 1, 0] * kx + m[:, 1, 1] * ky


def _zernike_sum(coefficients: Tensor, kx: Tensor, ky: Tensor, *, parity: int) -> Tensor:
    """Sum of c_i Z_i(kx, ky) over RELION's list.

    Orders n = parity, parity + 2, ..., each with m = -n, -n + 2, ..., n; cosines for m >= 0, sines below.
    The radius is the frequency in 1/angstrom itself, not a fraction of an aperture.
    """
    if not torch.is_floating_point(coefficients):
        raise BadInput(f"Zernike coefficients have type {coefficients.dtype}, wanted floating point.")
    rho2 = kx * kx + ky * ky
    z = torch.complex(kx, ky)
    total = torch.zeros((coefficients.shape[0], *kx.shape[1:]), dtype=kx.dtype, device=kx.device)
    order, m = parity, -parity
    for column in coefficients.to(kx).T:
        if bool((column != 0).any()):
            power = z ** abs(m)  # rho^|m| exp(i |m| phi)
            angular = power.real if m >= 0 else power.imag
            total = total + column.reshape((-1,) + (1,) * (kx.ndim - 1)) * angular * _radial(
                order, abs(m), rho2
            )
        m += 2
        if m > order:
            order += 2
            m = -order
    return total


def _radial(n: int, m: int, rho2: Tensor) -> Tensor:
    """R_n^m(rho) / rho^m as a polynomial in rho^2 (Born and Wolf, section 9.2)."""
    total = torch.zeros_like(rho2)
    for k in range((n - m) // 2 + 1):
        weight = (-1) ** k * math.comb(n - k, k) * math.comb(n - 2 * k, (n - m) // 2 - k)
        total = total + weight * rho2 ** ((n - m) // 2 - k)
    return total
