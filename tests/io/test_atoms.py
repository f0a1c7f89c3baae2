import gzip

import numpy as np
import pytest
import torch

from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atoms import read_atoms, write_model_frames

PDB = """\
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000        5.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        0.00000
MODEL        1
ATOM      1  N   ALA A   1      11.104   6.134  -6.504  1.00 20.50           N
ATOM      2  CA AALA A   1      11.639   6.071  -5.147  0.60 21.00           C
ATOM      3  CA BALA A   1      11.700   6.100  -5.200  0.40 22.00           C
HETATM    4 ZN    ZN A 101       1.000   2.000   3.000  1.00 30.00          ZN
HETATM    5  O   HOH A 201       4.000   5.000   6.000  1.00 40.00           O
ENDMDL
MODEL        2
ATOM      1  N   ALA A   1      10.000   6.134  -6.504  1.00 20.50           N
ENDMDL
END
"""


@pytest.fixture
def pdb(tmp_path):
    path = tmp_path / "a.pdb.gz"
    path.write_bytes(gzip.compress(PDB.encode()))
    return path


def test_atoms_of_a_small_model(pdb):
    """Positions, elements, occupancies of both alternatives, B-factors, labels; waters left out."""
    atoms = read_atoms(pdb)
    assert atoms.atomic_number.tolist() == [7, 6, 6, 30]
    torch.testing.assert_close(atoms.position_A[0], torch.tensor([11.104, 6.134, -6.504]))
    np.testing.assert_allclose(atoms.occupancy, [1, 0.6, 0.4, 1])
    assert atoms.b_factor_A2.tolist() == [20.5, 21.0, 22.0, 30.0]
    assert atoms.chain.tolist() == ["A"] * 4
    assert atoms.residue_name.tolist() == ["ALA", "ALA", "ALA", "ZN"]
    assert atoms.atom_name.tolist() == ["N", "CA", "CA", "ZN"]
    assert atoms.residue_number.tolist() == [1, 1, 1, 101]
    assert len(read_atoms(pdb, waters="keep")) == 5
    assert read_atoms(pdb, model=2).position_A[0, 0] == 10.0


def test_the_biological_assembly(pdb):
    atoms = read_atoms(pdb, assembly="1")
    assert len(atoms) == 8
    assert len(set(atoms.chain.tolist())) == 2
    x, y, z = atoms.position_A[:4].unbind(-1)
    torch.testing.assert_close(atoms.position_A[4:], torch.stack((5 - x, -y, z), -1))


def test_models_that_cannot_be_read(pdb, tmp_path):
    with pytest.raises(BadFile, match=r"model 3 asked for, but it has 2"):
        read_atoms(pdb, model=3)
    with pytest.raises(BadFile, match=r"no assembly '2' \(found: 1\)"):
        read_atoms(pdb, assembly="2")
    for name, content, message in (
        ("a.bcif", b"", "not a readable BinaryCIF"),
        ("a.xyz", b"", "not the name of a model"),
        ("a.cif", b"hello", "not a readable model"),
        ("a.pdb", b"", "no model|no atoms"),
        ("b.pdb", b"HELLO\n", "no model|no atoms"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadFile, match=message):
            read_atoms(tmp_path / name)
    with pytest.raises(BadFile, match=r"cannot be read"):
        read_atoms(tmp_path / "none.pdb")


@pytest.mark.data
@pytest.mark.parametrize("entry", ["1aki", "1dix", "1l2y"])
def test_the_formats_agree(data_dir, entry):
    """The same entry from both formats, and from BinaryCIF in the order of mmCIF."""
    folder = data_dir / "structures" / "format_triplets"
    a, b = (
        read_atoms(folder / f"{entry}.pdb.gz", waters="keep"),
        read_atoms(folder / f"{entry}.cif.gz", waters="keep"),
    )
    assert len(a) == len(b)

    def rows(atoms):
        key = torch.cat([atoms.position_A, atoms.atomic_number[:, None], atoms.b_factor_A2[:, None]], 1)
        return key[np.lexsort(key.T.numpy())]

    torch.testing.assert_close(rows(a), rows(b), rtol=0, atol=1e-4)
    c = read_atoms(folder / f"{entry}.bcif.gz", waters="keep")
    for name in ("position_A", "atomic_number", "b_factor_A2", "occupancy"):
        assert torch.equal(getattr(c, name), getattr(b, name))
    for name in ("chain", "residue_name", "atom_name", "residue_number"):
        np.testing.assert_array_equal(getattr(c, name), getattr(b, name))


@pytest.mark.data
def test_large_real_models(data_dir):
    """A ribosome, and a ferritin subunit that its assembly makes a 24-mer."""
    assert len(read_atoms(data_dir / "structures" / "complexes" / "4v5a_copy1.cif.gz")) > 140_000
    ferritin = data_dir / "structures" / "proteins" / "4oyn.pdb.gz"
    assert len(read_atoms(ferritin, assembly="1")) == 24 * len(read_atoms(ferritin))


def test_names_of_molecular_dynamics_are_read_as_the_elements_they_mean(tmp_path):
    """Without an element column and one column early, CA of an amino acid is carbon, not calcium; an ion stays one."""
    lines = [
        f"ATOM  {i + 1:5d} {name:<4s} {residue:<4s} {i + 1:4d}    {i:8.3f}{0:8.3f}{0:8.3f}  1.00  0.00      4AKE"
        for i, (name, residue) in enumerate(
            [
                ("CA", "MET"),
                ("HB1", "MET"),
                ("HG", "SER"),
                ("ND1", "HSD"),
                ("SG", "CYS"),
                ("OE1", "GLU"),
                ("CA", "CA"),
            ]
        )
    ]
    path = tmp_path / "frames.pdb"
    path.write_text("\n".join(lines) + "\nEND\n")
    assert read_atoms(path).atomic_number.tolist() == [6, 1, 1, 7, 16, 8, 20]


@pytest.mark.parametrize("ending", [".pdb", ".cif"])
def test_frames_of_a_model_keep_all_but_the_places(pdb, tmp_path, ending):
    """One model per frame; atoms, waters, names and occupancies as in the source, places to the format's digits."""
    atoms = read_atoms(pdb, waters="keep")
    shifts = torch.tensor([[0.0, 0.0, 0.0], [1.5, -2.0, 0.25], [-20.0, 3.0, 7.0]])
    frames = atoms.position_A + shifts[:, None]
    target = tmp_path / f"moved{ending}"
    write_model_frames(pdb, target, frames)
    for number in range(3):
        back = read_atoms(target, model=number + 1, waters="keep")
        torch.testing.assert_close(back.position_A, frames[number], rtol=0, atol=6e-4)  # three decimals
        assert back.atom_name.tolist() == atoms.atom_name.tolist()
        assert back.atomic_number.tolist() == atoms.atomic_number.tolist()
        assert torch.equal(back.occupancy, atoms.occupancy)
    with pytest.raises(BadFile, match="model 4 asked for, but it has 3"):
        read_atoms(target, model=4)


def test_frames_that_do_not_fit_are_refused(pdb, tmp_path):
    atoms = read_atoms(pdb, waters="keep")
    with pytest.raises(BadInput, match="has 5 atoms"):
        write_model_frames(pdb, tmp_path / "a.pdb", atoms.position_A[None, :4])
    with pytest.raises(BadInput, match="does not fit"):
        write_model_frames(pdb, tmp_path / "a.pdb", atoms.position_A[None] + 2000)
    assert not (tmp_path / "a.pdb").exists()
