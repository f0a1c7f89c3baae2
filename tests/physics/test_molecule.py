from __future__ import annotations

import pytest
import torch

from cryorbit.data import Atoms
from cryorbit.physics.molecule import molecular_weight_kDa, place_atom, synthetic_complex
from cryorbit.physics.scatter import atoms_to_density


@pytest.fixture(scope="module")
def model() -> Atoms:
    return synthetic_complex(generator=torch.Generator().manual_seed(0))


def backbone(model: Atoms, name: str) -> torch.Tensor:
    assert model.atom_name is not None
    return model.position_A[torch.from_numpy(model.atom_name == name)].double()


def test_it_is_large_enough_to_align(model: Atoms):
    """At least 400 kDa and about 200 A across."""
    assert 400 < molecular_weight_kDa(model) < 650
    extent = torch.cdist(model.position_A[::7], model.position_A[::7]).max().item()
    assert 160 < extent < 240


def test_same_seed_same_complex(model: Atoms):
    """The generator decides everything."""
    again = synthetic_complex(generator=torch.Generator().manual_seed(0))
    other = synthetic_complex(generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.position_A, again.position_A)
    assert model.position_A.shape != other.position_A.shape or not torch.equal(
        model.position_A, other.position_A
    )


def test_bonds_have_their_lengths(model: Atoms):
    """N-CA 1.458, CA-C 1.525, CA-CB 1.53 A in every residue."""
    n, ca, c, cb = (backbone(model, name) for name in ("N", "CA", "C", "CB"))
    for a, b, length in ((n, ca, 1.458), (ca, c, 1.525), (ca, cb, 1.53)):
        assert ((a - b).norm(dim=1) - length).abs().max().item() < 1e-3


def test_amino_acids_are_left_handed(model: Atoms):
    """Seen from CA, N, C and CB turn the way of L-amino acids: (N - CA) x (C - CA) . (CB - CA) > 0."""
    n, ca, c, cb = (backbone(model, name) for name in ("N", "CA", "C", "CB"))
    volume = (torch.linalg.cross(n - ca, c - ca) * (cb - ca)).sum(1)
    assert (volume > 0).all()


def test_helices_are_right_handed(model: Atoms):
    """Four CA atoms in a row have the torsion of an alpha helix, +50 degrees, in nearly all places."""
    ca = backbone(model, "CA")
    b = ca[1:] - ca[:-1]
    chained = (b.norm(dim=1) - 3.8).abs() < 0.1
    whole = chained[:-2] & chained[1:-1] & chained[2:]
    first, second = torch.linalg.cross(b[:-2], b[1:-1]), torch.linalg.cross(b[1:-1], b[2:])
    sine = (torch.nn.functional.normalize(b[1:-1], dim=1) * torch.linalg.cross(first, second)).sum(1)
    torsion = torch.rad2deg(torch.atan2(sine, (first * second).sum(1)))[whole]
    assert ((torsion - 50).abs() < 5).double().mean().item() > 0.99


def test_no_symmetry_and_no_mirror_at_20_A(model: Atoms):
    """No half turn or mirror about the principal axes maps the map onto itself: correlation below 0.9."""
    centred = model.position_A.double() - model.position_A.double().mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors
    axes = axes * torch.linalg.det(axes)
    turned = Atoms((centred @ axes).float(), model.atomic_number, model.b_factor_A2, model.occupancy)
    # B = 8 pi^2 u^2 with u = 8 A blurs to about 20 A; an odd box makes flips exact.
    values = atoms_to_density(turned, box=41, pixel_size_A=6.0, b_factor_A2=8 * 9.87 * 64.0).values
    values = values - values.mean()
    for flips in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        other = values.flip(flips)
        assert ((values * other).sum() / values.square().sum()).item() < 0.9, flips


def test_place_atom_has_the_geometry_it_was_asked_for():
    """Bond, angle and torsion of the new atom are those given."""
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in ((0.0, 1, 0), (0.0, 0, 0), (1.5, 0, 0.2)))
    d = place_atom(a, b, c, bond_A=1.4, angle_deg=110.0, torsion_deg=-65.0)
    u, v, w = b - a, c - b, d - c
    cosine = torch.dot(-v, w) / (v.norm() * w.norm())
    p, q = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    torsion = torch.atan2(v.norm() * torch.dot(u, q), torch.dot(p, q))
    measured = torch.stack((w.norm(), torch.rad2deg(torch.acos(cosine)), torch.rad2deg(torsion)))
    torch.testing.assert_close(
        measured, torch.tensor([1.4, 110.0, -65.0], dtype=torch.float64), rtol=0, atol=1e-9
    )
