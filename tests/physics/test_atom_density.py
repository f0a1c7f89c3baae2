"""Laws of densities of atoms: mass, rotation, low pass, agreement with independent sums."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cryorbit.data import Atoms
from cryorbit.errors import BadInput
from cryorbit.fourier.centred import rfft_centred
from cryorbit.fourier.grid import frequency_grid
from cryorbit.geometry.rotations import axis_rotation, random_rotations
from cryorbit.physics.atom_density import density_of_atoms
from cryorbit.physics.gaussian_atoms import atoms_to_gaussians
from cryorbit.physics.scatter import VOLT_A2, atoms_to_density, scattering_factor_A
from cryorbit.physics.splat_exact import exact_map_transform

SPLAT = 1e-4
"""Relative: what `physics.splat` promises."""

ONE_GAUSSIAN = 5e-3
"""Relative: one Gaussian per atom in place of five; 0.3 % at d = 5 A, less at coarser resolutions."""


def few_atoms(n: int = 60, seed: int = 0) -> Atoms:
    g = torch.Generator().manual_seed(seed)
    return Atoms(
        8.0 * torch.randn(n, 3, generator=g, dtype=torch.float64).clamp(-2, 2),
        torch.tensor([6, 7, 8, 16])[torch.randint(4, (n,), generator=g)],
        20 + 60 * torch.rand(n, generator=g, dtype=torch.float64),
        torch.rand(n, generator=g, dtype=torch.float64),
    )


@pytest.mark.parametrize("box", [23, 24])
def test_the_integral_is_the_scattering_mass(box: int):
    """Sum over voxels times their volume = 47.878 sum occupancy f(0), whatever the pose, resolution and voxel."""
    atoms = few_atoms()
    zero = torch.zeros(1, dtype=torch.float64)
    mass = sum(
        float(scattering_factor_A(int(z), zero)) * float(o)
        for z, o in zip(atoms.atomic_number, atoms.occupancy, strict=True)
    )
    turn = random_rotations(1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[0]
    for pixel, resolution in ((2.5, 6.0), (3.5, 10.0)):
        found = density_of_atoms(
            atoms, turn, torch.tensor([1.0, -2.0, 0.5]), box=box, pixel_size_A=pixel, resolution_A=resolution
        )
        total = float(found.values.sum()) * pixel**3
        assert abs(total / (VOLT_A2 * mass) - 1) < SPLAT


@pytest.mark.parametrize("box", [19, 20])
def test_it_is_the_exact_sum(box: int):
    """Every Fourier coefficient below Nyquist is the sum over atoms, each with its own B-factor, by its formula."""
    atoms = few_atoms()
    plain = atoms_to_gaussians(atoms, resolution_A=6.0, b_factor_A2=4 * 36.0)
    width = (plain.width_A**2 + atoms.b_factor_A2 / (8 * math.pi**2)).sqrt()
    wanted = exact_map_transform(replace(plain, width_A=width), box=box, pixel_size_A=2.5)
    found = rfft_centred(density_of_atoms(atoms, box=box, pixel_size_A=2.5, resolution_A=6.0).values, ndim=3)
    assert (found - wanted).norm() < SPLAT * wanted.norm()


@pytest.mark.parametrize("box", [25, 32])
def test_it_agrees_with_five_gaussians_per_atom(box: int):
    """With one B for all atoms it is `atoms_to_density`, but for the shape of the scattering factor."""
    atoms = replace(few_atoms(), b_factor_A2=torch.full((60,), 30.0, dtype=torch.float64))
    found = density_of_atoms(atoms, box=box, pixel_size_A=2.0, resolution_A=5.0)
    wanted = atoms_to_density(atoms, box=box, pixel_size_A=2.0, b_factor_A2=30.0 + 4 * 25.0)
    assert (found.values - wanted.values).norm() < ONE_GAUSSIAN * wanted.values.norm()


def test_the_low_pass_damps_as_it_says():
    """An isolated atom at two resolutions: the ratio of its transforms is exp(-(d1^2 - d2^2) k^2), nearly exp(-1) at d1."""
    atom = Atoms(
        torch.zeros(1, 3, dtype=torch.float64),
        torch.tensor([6]),
        torch.zeros(1, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
    )
    k2 = frequency_grid(32, pixel_size_A=1.5, ndim=3, dtype=torch.float64).square().sum(-1)
    inside = (k2.sqrt() < 1 / 8.0) & (k2 > 0)
    at_8, at_6 = (
        rfft_centred(density_of_atoms(atom, box=32, pixel_size_A=1.5, resolution_A=d).values, ndim=3).real
        for d in (8.0, 6.0)
    )
    wanted = torch.exp(-(64.0 - 36.0) * k2)
    assert ((at_8 / at_6 - wanted)[inside].abs()).max() < ONE_GAUSSIAN
    peak = float(at_8[0, 0, 0])
    shell = (k2.sqrt() - 1 / 8.0).abs() < 0.002
    factor = scattering_factor_A(6, k2) / scattering_factor_A(6, torch.zeros(1, dtype=torch.float64))
    assert ((at_8 / peak / factor)[shell] - torch.exp(-64.0 * k2[shell])).abs().max() < ONE_GAUSSIAN


def test_a_quarter_turn_of_atoms_turns_the_map():
    """Atoms turned by 90 degrees about z give the map turned by 90 degrees, voxel by voxel (odd box)."""
    atoms, quarter = few_atoms(), axis_rotation("z", torch.tensor(torch.pi / 2, dtype=torch.float64))
    grid = {"box": 25, "pixel_size_A": 2.5, "resolution_A": 6.0}
    still, turned = density_of_atoms(atoms, **grid).values, density_of_atoms(atoms, quarter, **grid).values
    # x' = -y, y' = x: what stood at index (y, x) stands at (x, -y).
    assert (turned - still.transpose(1, 2).flip(2)).norm() < SPLAT * still.norm()


def test_any_rotation_is_one_of_the_coordinates():
    """A pose given to the function, and the atoms moved beforehand, give the same map; a shift of one voxel rolls it."""
    atoms = few_atoms()
    turn = random_rotations(1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)[0]
    shift = torch.tensor([2.5, 0.0, -5.0], dtype=torch.float64)
    grid = {"box": 24, "pixel_size_A": 2.5, "resolution_A": 6.0, "centre": False}
    moved = replace(atoms, position_A=atoms.position_A @ turn.mT)
    there = density_of_atoms(moved, **grid).values
    for found, wanted in (
        (density_of_atoms(atoms, turn, **grid), there),
        (density_of_atoms(atoms, turn, shift, **grid), there.roll((-2, 0, 1), (0, 1, 2))),
    ):
        assert (found.values - wanted).norm() < SPLAT * wanted.norm()


def test_one_b_factor_stands_in_for_all():
    """Given, it counts for every atom as if the file had it."""
    atoms, grid = few_atoms(), {"box": 24, "pixel_size_A": 2.5, "resolution_A": 6.0}
    same = replace(atoms, b_factor_A2=torch.full((60,), 45.0, dtype=torch.float64))
    found = density_of_atoms(atoms, b_factor_A2=45.0, **grid).values
    assert torch.equal(found, density_of_atoms(same, **grid).values)
    assert not torch.equal(found, density_of_atoms(atoms, **grid).values)


def test_what_cannot_be_drawn_is_refused():
    atoms = few_atoms()
    with pytest.raises(BadInput, match=r"3 A cannot be drawn on voxels of 2 A. Give 4 A"):
        density_of_atoms(atoms, box=32, pixel_size_A=2.0, resolution_A=3.0)
    with pytest.raises(BadInput, match=r"px from the centre of a box of 8 px. Give a box of at least"):
        density_of_atoms(atoms, box=8, pixel_size_A=2.0, resolution_A=5.0)
