"""Atoms to Gaussians (one per term, atom, residue or bead), and Gaussians to pseudo-atoms."""

from __future__ import annotations

import math
from typing import Literal

import gemmi
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import Atoms, Gaussians
from cryorbit.errors import BadInput
from cryorbit.physics.scatter import VOLT_A2, scattering_factor_A

Grain = Literal["term", "atom", "residue", "bead"]
Shape = Literal["round", "long"]

_B_OF_VARIANCE = 8 * math.pi**2
"""B = 8 pi^2 sigma^2."""


def atoms_to_gaussians(
    atoms: Atoms,
    *,
    per: Grain = "atom",
    shape: Shape = "round",
    resolution_A: float = 4.0,
    b_factor_A2: float = 0.0,
    residues_per_bead: int = 4,
    centre: bool = True,
) -> Gaussians:
    """The potential of `atoms` in volts as Gaussians; the amplitude is 47.878 sum of occupancy f(0), in V A^3.

    Electron scattering factors are those of `atoms_to_density`, sum_i a_i exp(-b_i k^2 / 4), so sigma^2 = (b_i + B) / (8
    pi^2). The B-factors that stand with the atoms are not used.

    Parameters
    ----------
    per
        "term": the five of each atom, exact. "atom": one, equal to the five at k = 0 and k = 1 / resolution_A.
        "residue", "bead": one for the atoms of a residue, or of `residues_per_bead` consecutive residues of a chain, with
        their integral, centre and second moment. No bead has atoms of two chains.
    shape
        Of residues and beads: "round", or "long" with the whole covariance.
    b_factor_A2
        B of every atom: 4 d^2 blurs to a resolution d.
    centre
        Move the centre of the scattering mass to the origin first, as `atoms_to_density` does.

    Raises
    ------
    BadInput
        If there are no atoms, an element has no scattering factor, or residues are asked for and not labelled.
    """
    if len(atoms) == 0:
        raise BadInput("atoms_to_gaussians: the model has no atoms. Read one that has.")
    position = atoms.position_A.to(torch.float64)
    occupancy = atoms.occupancy.to(position)
    if centre:
        mass = occupancy * atoms.atomic_number.to(position)
        position = position - (mass[:, None] * position).sum(0) / mass.sum()
    if per == "term":
        height, b = _terms(atoms.atomic_number)
        amplitude = (VOLT_A2 * occupancy[:, None] * height).reshape(-1)
        sigma = ((b + b_factor_A2) / _B_OF_VARIANCE).sqrt().reshape(-1)
        return Gaussians(position.repeat_interleave(5, 0), amplitude, sigma).to(atoms.position_A)
    amplitude, variance = _single(atoms.atomic_number, resolution_A)
    amplitude, variance = VOLT_A2 * occupancy * amplitude, variance + b_factor_A2 / _B_OF_VARIANCE
    if per == "atom":
        return Gaussians(position, amplitude, variance.sqrt()).to(atoms.position_A)
    if per not in ("residue", "bead"):
        raise BadInput(f"atoms_to_gaussians: per={per!r} is not one of 'term', 'atom', 'residue', 'bead'.")
    group = _groups(atoms, residues_per_bead if per == "bead" else 1)
    return _moments(position, amplitude, variance, group, shape).to(atoms.position_A)


def gaussians_to_atoms(gaussians: Gaussians) -> Atoms:
    """Pseudo-atoms, a CA of its own residue for each Gaussian: occupancy amplitude / largest, B = 8 pi^2 sigma^2.

    The variance of an anisotropic Gaussian is the mean over the three axes. Chains A, B, ... of at most 9999 residues, which
    is what a PDB file can number.

    Raises
    ------
    BadInput
        If the Gaussians have several conformations, or none has a positive amplitude.
    """
    if gaussians.conformations not in (None, 1):
        raise BadInput(f"gaussians_to_atoms: {gaussians.conformations} conformations. Choose one of them.")
    n = len(gaussians)
    amplitude = gaussians.amplitude.detach().reshape(n)
    largest = float(amplitude.max()) if n else 0.0
    if not largest > 0:
        raise BadInput("gaussians_to_atoms: no amplitude is positive. Give Gaussians of a particle.")
    variance = gaussians.covariance_A2().detach().reshape(n, 3, 3).diagonal(dim1=-2, dim2=-1).mean(-1)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return Atoms(
        position_A=gaussians.position_A.detach().reshape(n, 3),
        atomic_number=torch.full((n,), 6),
        b_factor_A2=_B_OF_VARIANCE * variance,
        occupancy=amplitude / largest,
        chain=np.array([letters[i // 9999 % len(letters)] for i in range(n)], dtype=object),
        residue_name=np.array(["GLY"] * n, dtype=object),
        atom_name=np.array(["CA"] * n, dtype=object),
        residue_number=np.arange(n) % 9999 + 1,
    )


def _terms(atomic_number: Int[Tensor, "n"]) -> tuple[Float[Tensor, "n 5"], Float[Tensor, "n 5"]]:
    """a_i (A) and b_i (A^2) of each atom."""
    a = torch.zeros(len(atomic_number), 5, dtype=torch.float64)
    b = torch.zeros_like(a)
    for number in torch.unique(atomic_number).tolist():
        scattering_factor_A(number, torch.zeros(1, dtype=torch.float64))  # refuses elements that have none
        known = torch.tensor(gemmi.Element(number).c4322.get_coefs(), dtype=torch.float64)
        rows = atomic_number.cpu() == number
        a[rows], b[rows] = known[:5], known[5:]
    return a.to(atomic_number.device), b.to(atomic_number.device)


def _single(atomic_number: Int[Tensor, "n"], resolution_A: float) -> tuple[Tensor, Tensor]:
    """f(0) and the variance of the Gaussian with the same values at 0 and at 1 / resolution."""
    if not resolution_A > 0:
        raise BadInput(f"atoms_to_gaussians: resolution {resolution_A} A is not positive.")
    a, b = _terms(atomic_number)
    k2 = 1 / resolution_A**2
    zero, there = a.sum(-1), (a * torch.exp(-0.25 * b * k2)).sum(-1)
    return zero, torch.log(zero / there) / (2 * math.pi**2 * k2)


def _groups(atoms: Atoms, residues: int) -> Int[Tensor, "n"]:
    """Number of the run of residues that each atom belongs to."""
    if atoms.chain is None or atoms.residue_number is None or atoms.residue_name is None:
        raise BadInput("atoms_to_gaussians: the atoms have no residue labels. Use per='atom'.")
    if residues < 1:
        raise BadInput(f"atoms_to_gaussians: {residues} residues per bead. Give at least 1.")
    keys = zip(atoms.chain.tolist(), atoms.residue_number.tolist(), atoms.residue_name.tolist(), strict=True)
    group, chain, last, count, found = -1, None, None, 0, []
    for key in keys:
        if key[0] != chain:
            chain, count = key[0], -1
        if key != last:
            last, count = key, count + 1
            group += count % residues == 0
        found.append(group)
    return torch.tensor(found, device=atoms.position_A.device)


def _moments(position: Tensor, amplitude: Tensor, variance: Tensor, group: Tensor, shape: Shape) -> Gaussians:
    """One Gaussian per group; groups without scattering are left out."""
    kept = amplitude > 0
    position, amplitude, variance = position[kept], amplitude[kept], variance[kept]
    group = torch.unique(group[kept], return_inverse=True)[1]
    count = int(group.max()) + 1 if len(group) else 0

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(count, *values.shape[1:]).index_add_(0, group, values)

    sums = total(amplitude)
    middle = total(amplitude[:, None] * position) / sums[:, None]
    away = position - middle[group]
    eye = torch.eye(3, dtype=position.dtype, device=position.device)
    own = away[:, :, None] * away[:, None] + variance[:, None, None] * eye
    covariance = total(amplitude[:, None, None] * own) / sums[:, None, None]
    if shape == "long":
        return Gaussians(middle, sums, torch.linalg.cholesky(covariance))
    if shape != "round":
        raise BadInput(f"atoms_to_gaussians: shape {shape!r} is not one of 'round', 'long'.")
    return Gaussians(middle, sums, (covariance.diagonal(dim1=-2, dim2=-1).mean(-1)).sqrt())
