from __future__ import annotations

import numpy as np
import pytest
import torch

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.data import Atoms, Gaussians
from cryorbit.errors import BadInput
from cryorbit.io.atoms import read_atoms, write_atoms
from cryorbit.physics.gaussian_atoms import atoms_to_gaussians, gaussians_to_atoms
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.scatter import VOLT_A2, atoms_to_density, scattering_factor_A
from cryorbit.physics.splat import gaussians_to_map
from physics_models import blob_atoms, uniform_rotations

SAME_MAP = 2e-4  # relative, two approximations of 1e-4 and 3e-5 to the same sum
PDB_DIGITS = 6e-3  # what a PDB file rounds B and occupancy to, and positions to less


def protein() -> Atoms:
    """Two chains of a made-up protein."""
    atoms = synthetic_complex(generator=torch.Generator().manual_seed(0))
    n = 900
    names = {f: getattr(atoms, f)[:n] for f in ("residue_name", "atom_name", "residue_number")}
    chain = np.array(["A"] * 500 + ["B"] * 400, dtype=object)
    return Atoms(
        atoms.position_A[:n].double(), atoms.atomic_number[:n], torch.zeros(n), torch.ones(n), chain, **names
    )


@pytest.mark.parametrize("box", [20, 21])
def test_five_gaussians_per_atom_are_its_scattering_factor(box):
    """Their map is that of `atoms_to_density`, made another way; with B-factor and centring."""
    atoms = blob_atoms(60, radius_A=25.0)
    frame = {"box": box, "pixel_size_A": 4.0}
    expected = atoms_to_density(atoms, b_factor_A2=60.0, **frame).values
    cloud = atoms_to_gaussians(atoms, per="term", b_factor_A2=60.0)
    assert len(cloud) == 300
    found = gaussians_to_map(cloud, **frame).values
    assert float((found - expected).norm() / expected.norm()) < SAME_MAP


def test_one_gaussian_per_atom_meets_the_factor_at_two_frequencies():
    """The same forward scattering and the same value at the resolution; between, close to it."""
    atoms = Atoms(torch.zeros(3, 3).double(), torch.tensor([6, 8, 16]), torch.zeros(3), torch.ones(3))
    cloud = atoms_to_gaussians(atoms, resolution_A=3.0, centre=False)
    k2 = torch.tensor([0.0, 1 / 36, 1 / 9], dtype=torch.float64)
    for row, number in enumerate((6, 8, 16)):
        wanted = VOLT_A2 * scattering_factor_A(number, k2)
        mine = cloud.amplitude[row] * torch.exp(-2 * torch.pi**2 * cloud.width_A[row] ** 2 * k2)
        torch.testing.assert_close(mine[[0, 2]], wanted[[0, 2]], rtol=1e-10, atol=0)
        assert abs(float(mine[1] / wanted[1]) - 1) < 0.05


@pytest.mark.parametrize("per", ["residue", "bead"])
@pytest.mark.parametrize("shape", ["round", "long"])
def test_groups_keep_integral_centre_and_spread(per, shape):
    """What the atoms of a molecule have, its residues have together."""
    atoms = protein()
    fine = atoms_to_gaussians(atoms)
    coarse = atoms_to_gaussians(atoms, per=per, shape=shape)
    assert len(coarse) < len(fine) / (4 if per == "residue" else 15)

    def moments(cloud: Gaussians) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, x = cloud.amplitude[:, None], cloud.position_A
        spread = (a[..., None] * (x[:, :, None] * x[:, None] + cloud.covariance_A2())).sum(0)
        return cloud.amplitude.sum(), (a * x).sum(0), spread if shape == "long" else spread.trace()

    for mine, theirs in zip(moments(coarse), moments(fine), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-4)


def test_residues_look_like_the_molecule_at_their_resolution():
    """A map of residues against that of all atoms: the same to 12 A, and not to 4 A."""
    atoms = protein()
    frame = {"box": 48, "pixel_size_A": 2.0}
    full = gaussians_to_map(atoms_to_gaussians(atoms, per="term"), **frame)
    coarse = gaussians_to_map(atoms_to_gaussians(atoms, per="residue", shape="long"), **frame)
    curve = fourier_shell_correlation(full, coarse)
    assert float(curve.correlation[1:8].min()) > 0.99
    assert float(curve.correlation[-1]) < 0.9


def test_no_bead_reaches_over_two_chains():
    atoms = protein()
    alone = [
        len(atoms_to_gaussians(part, per="bead", residues_per_bead=7))
        for part in (_rows(atoms, slice(0, 500)), _rows(atoms, slice(500, 900)))
    ]
    assert len(atoms_to_gaussians(atoms, per="bead", residues_per_bead=7)) == sum(alone)


def _rows(a: Atoms, rows: slice) -> Atoms:
    fields = ("position_A", "atomic_number", "b_factor_A2", "occupancy", "chain", "residue_name", "atom_name")
    return Atoms(*(getattr(a, f)[rows] for f in (*fields, "residue_number")))


def test_moving_the_atoms_moves_the_gaussians():
    atoms, q = protein(), uniform_rotations(1)[0]
    t = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    moved = _rows(atoms, slice(None))
    moved = Atoms(
        moved.position_A @ q.mT + t,
        *(getattr(moved, f) for f in ("atomic_number", "b_factor_A2", "occupancy", "chain")),
        residue_name=moved.residue_name,
        residue_number=moved.residue_number,
    )
    there = atoms_to_gaussians(moved, per="residue", shape="long", centre=False)
    expected = atoms_to_gaussians(atoms, per="residue", shape="long", centre=False).moved(q, t)
    torch.testing.assert_close(there.position_A, expected.position_A, rtol=0, atol=1e-9)
    torch.testing.assert_close(there.covariance_A2(), expected.covariance_A2(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("ending", [".pdb", ".cif"])
def test_pseudo_atoms_survive_a_file(tmp_path, ending):
    """Position, relative amplitude and B = 8 pi^2 sigma^2 come back."""
    cloud = atoms_to_gaussians(protein(), per="residue")
    pseudo = gaussians_to_atoms(cloud)
    write_atoms(tmp_path / f"a{ending}", pseudo)
    back = read_atoms(tmp_path / f"a{ending}")
    torch.testing.assert_close(back.position_A.double(), cloud.position_A, rtol=0, atol=PDB_DIGITS)
    torch.testing.assert_close(
        back.b_factor_A2.double(), 8 * torch.pi**2 * cloud.width_A**2, rtol=0, atol=PDB_DIGITS
    )
    share = cloud.amplitude / cloud.amplitude.max()
    torch.testing.assert_close(back.occupancy.double(), share, rtol=0, atol=PDB_DIGITS)
    assert set(back.atom_name.tolist()) == {"CA"}


def test_what_a_pdb_file_cannot_hold_is_refused(tmp_path):
    wide = Gaussians(torch.zeros(2, 3), torch.ones(2), torch.tensor([1.0, 5.0]))
    with pytest.raises(BadInput, match=r"B-factor of atom 1 .* \.cif"):
        write_atoms(tmp_path / "a.pdb", gaussians_to_atoms(wide))
    write_atoms(tmp_path / "a.cif", gaussians_to_atoms(wide))


def test_bad_requests_are_refused():
    atoms = blob_atoms(5)
    with pytest.raises(BadInput, match="residue labels"):
        atoms_to_gaussians(atoms, per="residue")
    with pytest.raises(BadInput, match="no atoms"):
        atoms_to_gaussians(
            Atoms(*(f[:0] for f in (atoms.position_A, atoms.atomic_number, atoms.occupancy, atoms.occupancy)))
        )
    with pytest.raises(BadInput, match="resolution"):
        atoms_to_gaussians(atoms, resolution_A=0.0)
    with pytest.raises(BadInput, match="per bead"):
        atoms_to_gaussians(protein(), per="bead", residues_per_bead=0)
    with pytest.raises(BadInput, match="positive"):
        gaussians_to_atoms(Gaussians(torch.zeros(1, 3), -torch.ones(1), torch.ones(1)))
