from __future__ import annotations

import math

import pytest
import torch

from cryorbit.data import Atoms, Volume
from cryorbit.errors import BadInput
from cryorbit.physics.scatter import VOLT_A2, atoms_to_density, map_of_model, scattering_factor_A
from physics_models import blob_atoms

SPREADING = 3e-5  # relative, kernel of width 6 on a grid of twice the density; measured 6e-6


def direct_sum(atoms: Atoms, *, box: int, pixel_size_A: float, b_factor_A2: float) -> torch.Tensor:
    """The plain twin: every atom's plane waves, frequency by frequency, Nyquist planes left out."""
    k = torch.fft.fftfreq(box, d=pixel_size_A, dtype=torch.float64)
    keep = (k * pixel_size_A * box).round().abs() * 2 < box
    position = atoms.position_A.double()
    waves = [torch.exp(-2j * math.pi * k[:, None] * position[:, j]) * keep[:, None] for j in (2, 1, 0)]
    k2 = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    total = torch.zeros((box,) * 3, dtype=torch.complex128)
    for z in torch.unique(atoms.atomic_number).tolist():
        weight = torch.where(atoms.atomic_number == z, atoms.occupancy, 0).to(torch.complex128)
        total += torch.einsum("n,an,bn,cn->abc", weight, *waves) * scattering_factor_A(z, k2)
    total *= torch.exp(-0.25 * b_factor_A2 * k2) * VOLT_A2 / pixel_size_A**3
    return torch.fft.fftshift(torch.fft.ifftn(total).real)


@pytest.mark.parametrize("box", [20, 21])
def test_density_is_the_band_limited_sum_over_atoms(box: int):
    """The fast transform equals the direct sum over atoms and frequencies."""
    atoms = blob_atoms(60, radius_A=30.0)
    atoms = Atoms(
        atoms.position_A, torch.tensor([6, 7, 8, 16]).repeat(15), atoms.b_factor_A2, atoms.occupancy
    )
    density = atoms_to_density(atoms, box=box, pixel_size_A=4.0, b_factor_A2=60.0, centre=False).values
    expected = direct_sum(atoms, box=box, pixel_size_A=4.0, b_factor_A2=60.0)
    assert ((density - expected).norm() / expected.norm()).item() < SPREADING


def test_volume_integral_is_the_forward_scattering():
    """The sum of the map times the voxel volume is 47.88 V A^2 times the sum of f(0)."""
    atoms = blob_atoms(100)
    volume = atoms_to_density(atoms, box=48, pixel_size_A=3.0, b_factor_A2=100.0)
    forward = 100 * VOLT_A2 * scattering_factor_A(6, torch.zeros(1, dtype=torch.float64)).item()
    assert abs(volume.values.double().sum().item() * 27.0 / forward - 1) < SPREADING


@pytest.mark.parametrize("box", [24, 25])
def test_origin_is_pixel_half_box(box: int):
    """One atom at the origin peaks at index box // 2; moved by two voxels in x it peaks two columns on."""
    for shift, x in ((0.0, 0), (8.0, 2)):
        position = torch.tensor([[shift, 0.0, 0.0]])
        atom = Atoms(position, torch.tensor([8]), torch.zeros(1), torch.ones(1))
        values = atoms_to_density(atom, box=box, pixel_size_A=4.0, b_factor_A2=200.0, centre=False).values
        peak = torch.unravel_index(values.argmax(), values.shape)
        assert tuple(int(i) for i in peak) == (box // 2, box // 2, box // 2 + x)


def test_centre_moves_the_mass_to_the_origin():
    """With centre=True the model's position does not matter."""
    atoms = blob_atoms(80)
    moved = Atoms(atoms.position_A + 500.0, atoms.atomic_number, atoms.b_factor_A2, atoms.occupancy)
    here, there = (
        atoms_to_density(a, box=32, pixel_size_A=4.0, b_factor_A2=100.0).values for a in (atoms, moved)
    )
    assert ((here - there).norm() / here.norm()).item() < 1e-4  # 500 A in float32 leaves 6e-5 A


def test_box_too_small_is_refused_with_the_size_that_fits():
    """An atom outside the box is an error that names a box large enough."""
    with pytest.raises(BadInput, match="at least"):
        atoms_to_density(blob_atoms(50), box=8, pixel_size_A=4.0)


def test_unknown_element_is_refused():
    """Atomic number 0 has no scattering factor."""
    atoms = Atoms(torch.zeros(1, 3), torch.tensor([0]), torch.zeros(1), torch.ones(1))
    with pytest.raises(BadInput, match="atomic number 0"):
        atoms_to_density(atoms, box=16, pixel_size_A=4.0, centre=False)


def test_no_atoms_is_refused():
    """An empty model is an error, not an empty map."""
    nothing = Atoms(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
    with pytest.raises(BadInput, match="no atoms"):
        atoms_to_density(nothing, box=16, pixel_size_A=4.0)


@pytest.mark.parametrize("box", [24, 25])
def test_the_map_of_a_model_lies_over_it(box: int):
    """Viewers show the densest voxel at the atom, inside the other map's cube and outside it."""
    like = Volume(torch.zeros(box, box, box), 3.0, (30.0, -12.0, 6.0))
    for x_A, same_grid in ((60.0, True), (300.0, False)):
        place = torch.tensor([[x_A, 15.0, 45.0]])
        atom = Atoms(place, torch.tensor([6]), torch.zeros(1), torch.ones(1))
        drawn = map_of_model(atom, resolution_A=9.0, like=like)
        assert (drawn.box == box) is same_grid
        z, y, x = torch.unravel_index(drawn.values.argmax(), drawn.values.shape)
        shown = torch.tensor(drawn.place_A) + 3.0 * torch.stack([x, y, z])
        torch.testing.assert_close(shown, place[0], rtol=0, atol=1e-3)
    with pytest.raises(BadInput, match="6 A or coarser"):
        map_of_model(atom, resolution_A=4.0, like=like)
