"""From atoms to a density map: the potential of isolated atoms, limited to the map's own band."""

from __future__ import annotations

import math
from dataclasses import replace

import gemmi
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Atoms, Volume
from cryorbit.errors import BadInput

VOLT_A2 = 47.87801
"""h^2 / (2 pi m e): turns electron scattering length per volume (A / A^3) into volts."""

_WIDTH = 6
_STEEPNESS = 2.30 * _WIDTH


def atoms_to_density(
    atoms: Atoms, *, box: int, pixel_size_A: float, b_factor_A2: float = 0.0, centre: bool = True
) -> Volume:
    """The potential of `atoms` in volts on a grid of `box` voxels, every atom with the same B-factor.

    V^(k) = 47.878 sum_j occupancy_j f_j(k) exp(-B k^2 / 4) exp(-2 pi i k x_j) for all k inside the band, f_j
    the five Gaussians of International Tables C, table 4.3.2.2, for electrons. The sum is made by a
    non-uniform FFT (spreading on a grid of twice the density with the kernel of Barnett, Magland and
    Klinteberg 2019, relative error about 1e-5), so nothing beyond Nyquist folds back. The B-factors that
    stand with the atoms are not used.

    Parameters
    ----------
    b_factor_A2
        B of every atom. Without any the band edge rings; 4 (2 pixel_size_A)^2 damps it well.
    centre
        Move the centre of the scattering mass to the origin (pixel box // 2) first.

    Raises
    ------
    BadInput
        If an atom lies outside the box, or is of an element without a scattering factor.
    """
    position = atoms.position_A.to(torch.float64)
    if len(atoms) == 0:
        raise BadInput("atoms_to_density: the model has no atoms. Read one that has.")
    mass = atoms.occupancy.to(position) * atoms.atomic_number.to(position)
    if centre:
        position = position - (mass[:, None] * position).sum(0) / mass.sum()
    reach = float(position.abs().max()) / pixel_size_A
    if reach > box // 2 - 1:
        raise BadInput(
            f"atoms_to_density: an atom lies {reach:.1f} px from the centre of a box of {box} px. "
            f"Give a box of at least {2 * math.ceil(reach) + 4} px, or larger pixels."
        )
    frequency = torch.fft.fftfreq(box, d=pixel_size_A, dtype=torch.float64, device=position.device)
    half = frequency[: box // 2 + 1].abs()
    k2 = frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + half**2
    transform = torch.zeros(k2.shape, dtype=torch.complex128, device=position.device)
    for number in torch.unique(atoms.atomic_number).tolist():
        chosen = atoms.atomic_number == number
        structure = _structure_factor(
            position[chosen] / pixel_size_A, atoms.occupancy[chosen].to(position), box=box
        )
        transform += structure * scattering_factor_A(number, k2)
    if box % 2 == 0:
        # The Nyquist planes stand for both signs at once and belong to neither.
        transform[box // 2] = transform[:, box // 2] = transform[:, :, box // 2] = 0
    transform *= torch.exp(-0.25 * b_factor_A2 * k2) * (VOLT_A2 / pixel_size_A**3)
    density = torch.fft.fftshift(torch.fft.irfftn(transform, s=(box, box, box)))
    return Volume(density.to(atoms.position_A.dtype), pixel_size_A)


def map_of_model(atoms: Atoms, *, resolution_A: float, like: Volume) -> Volume:
    """A map of a model on voxels of the size of another map's, to be compared with it at a resolution.

    Where the atoms lie inside the other map's cube, as viewers show both, the grid is that cube; else it is a cube of
    its own about the atoms. The header says where, so that the map lies over the model. B = 4 d^2 damps the
    transform to exp(-1) at the resolution d.

    Raises
    ------
    BadInput
        If the resolution is finer than two voxels, or the model is empty.
    """
    pixel = like.pixel_size_A
    if not resolution_A >= 1.999 * pixel:
        raise BadInput(
            f"a model at {resolution_A} A cannot be drawn on voxels of {pixel:g} A. "
            f"Give a resolution of {2 * pixel:.3g} A or coarser."
        )
    position = atoms.position_A.to(torch.float64)
    if len(atoms) == 0:
        raise BadInput("map_of_model: the model has no atoms. Read one that has.")
    place = torch.tensor(like.place_A, dtype=torch.float64)
    middle, box = place + like.box // 2 * pixel, like.box
    if float((position - middle).abs().max()) / pixel > box // 2 - 1:
        low, high = position.amin(0), position.amax(0)
        box = 2 * math.ceil(0.65 * float((high - low).max()) / pixel + 4)
        middle = place + torch.round((0.5 * (low + high) - place) / pixel) * pixel
    inside = replace(atoms, position_A=(position - middle).to(atoms.position_A.dtype))
    drawn = atoms_to_density(
        inside, box=box, pixel_size_A=pixel, b_factor_A2=4.0 * resolution_A**2, centre=False
    )
    x, y, z = (middle - box // 2 * pixel).tolist()
    return Volume(drawn.values, pixel, (x, y, z))


def scattering_factor_A(atomic_number: int, k2_per_A2: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
    """Electron scattering factor in angstrom at squared spatial frequency k^2 (k = 2 sin(theta) / lambda).

    >>> scattering_factor_A(6, torch.zeros(1, dtype=torch.float64)).item()  # doctest: +ELLIPSIS
    2.508...
    """
    if not 1 <= atomic_number <= 98:
        raise BadInput(
            f"No electron scattering factor for atomic number {atomic_number}. Remove those atoms."
        )
    coefficients = gemmi.Element(atomic_number).c4322.get_coefs()
    total = torch.zeros_like(k2_per_A2)
    for a, b in zip(coefficients[:5], coefficients[5:], strict=True):
        total += a * torch.exp(-0.25 * b * k2_per_A2)
    return total


def _structure_factor(position_px: Tensor, weight: Tensor, *, box: int) -> Tensor:
    """sum_j w_j exp(-2 pi i k x_j / box) on the half grid of rfftn, by spreading on a grid of 2 box."""
    fine = 2 * box
    grid = torch.zeros(fine**3, dtype=position_px.dtype, device=position_px.device)
    reach = torch.arange(_WIDTH, device=grid.device)
    for part, w in zip(position_px.split(1 << 14), weight.split(1 << 14), strict=True):
        first = torch.ceil(2 * part - _WIDTH / 2)
        index = (first[:, :, None].long() + reach) % fine
        offset = (first[:, :, None] + reach - 2 * part[:, :, None]) * (2 / _WIDTH)
        kernel = torch.exp(_STEEPNESS * (torch.sqrt((1 - offset**2).clamp_min(0)) - 1))
        row = (index[:, 2, :, None] * fine + index[:, 1, None, :]) * fine
        amount = kernel[:, 2, :, None] * kernel[:, 1, None, :] * w[:, None, None]
        grid.index_add_(
            0,
            (row[..., None] + index[:, 0, None, None, :]).reshape(-1),
            (amount[..., None] * kernel[:, 0, None, None, :]).reshape(-1),
        )
    correction = 1 / _kernel_transform(box).to(grid)
    rows = torch.fft.fftfreq(box, d=1 / box).round().long().to(grid.device)
    part = (
        torch.fft.rfft(grid.view(fine, fine, fine), dim=2)[:, :, : box // 2 + 1] * correction[: box // 2 + 1]
    )
    part = torch.fft.fft(part, dim=1)[:, rows % fine] * correction[rows.abs(), None]
    return torch.fft.fft(part, dim=0)[rows % fine] * correction[rows.abs(), None, None]


def _kernel_transform(box: int) -> Tensor:
    """Fourier transform of the spreading kernel at k = 0 ... box // 2 of a grid of 2 box points."""
    node, weight = np.polynomial.legendre.leggauss(64)
    value = weight * np.exp(_STEEPNESS * (np.sqrt(1 - node**2) - 1))
    k = np.arange(box // 2 + 1)[:, None] / (2 * box)
    return torch.from_numpy((value * np.cos(math.pi * _WIDTH * k * node)).sum(1) * (_WIDTH / 2))
