"""Atoms in any pose to a density at a resolution: fast enough to be drawn anew for every training step."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Atoms, Volume
from cryorbit.errors import BadInput
from cryorbit.physics.gaussian_atoms import atoms_to_gaussians
from cryorbit.physics.splat import gaussians_to_map

_B_OF_VARIANCE = 8 * math.pi**2


def density_of_atoms(
    atoms: Atoms,
    rotation: Float[Tensor, "3 3"] | None = None,
    shift_A: Float[Tensor, "3"] | None = None,
    *,
    box: int,
    pixel_size_A: float,
    resolution_A: float,
    b_factor_A2: float | None = None,
    centre: bool = True,
) -> Volume:
    """The potential in volts of atoms moved by x -> rotation @ x + shift_A, at a resolution; nothing is interpolated.

    V^(k) = 47.878 sum_j occupancy_j f_j(k) exp(-(B_j + 4 d^2) k^2 / 4) exp(-2 pi i k x_j) for all k inside the band, with
    the atoms' own B-factors and d the resolution, where the last factor is exp(-1): the low pass of `scatter.map_of_model`.
    f_j is the one Gaussian with the values of the electron scattering factor at k = 0 and 1 / d; the sum is that of
    `splat.gaussians_to_map`, to 1e-4. The sum over the voxels times their volume is 47.878 sum_j occupancy_j f_j(0), V A^3.

    Parameters
    ----------
    rotation, shift_A
        None: as the atoms stand.
    resolution_A
        At least two voxels.
    b_factor_A2
        B of every atom, in place of their own: models of predictions and of NMR have other things in that column.
    centre
        Move the centre of the scattering mass to the origin (voxel box // 2) before the rotation.

    Raises
    ------
    BadInput
        If the resolution is finer than two voxels, an atom lies outside the box, or there are no atoms.
    """
    if not resolution_A >= 1.999 * pixel_size_A:
        raise BadInput(
            f"density_of_atoms: a resolution of {resolution_A:g} A cannot be drawn on voxels of {pixel_size_A:g} A. "
            f"Give {2 * pixel_size_A:.3g} A or coarser, or smaller voxels."
        )
    round_ones = atoms_to_gaussians(
        atoms, resolution_A=resolution_A, b_factor_A2=4.0 * resolution_A**2, centre=centre
    )
    own = atoms.b_factor_A2 if b_factor_A2 is None else torch.full_like(atoms.b_factor_A2, b_factor_A2)
    variance = round_ones.width_A.square() + own.to(round_ones.width_A) / _B_OF_VARIANCE
    blurred = replace(round_ones, width_A=variance.clamp_min(1e-6).sqrt())
    eye, zero = torch.eye(3).to(variance), torch.zeros(3).to(variance)
    moved = blurred.moved(eye if rotation is None else rotation, zero if shift_A is None else shift_A)
    reach = float(moved.position_A.abs().max()) / pixel_size_A
    if reach > box / 2:
        raise BadInput(
            f"density_of_atoms: an atom lies {reach:.1f} px from the centre of a box of {box} px. "
            f"Give a box of at least {2 * math.ceil(reach) + 4} px, or larger voxels."
        )
    return gaussians_to_map(moved, box=box, pixel_size_A=pixel_size_A)
