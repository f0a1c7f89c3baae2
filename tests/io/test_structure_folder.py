"""Laws of reading a folder of structures."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cryorbit.data import Atoms
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atoms import write_atoms
from cryorbit.io.structure_folder import protein_chains, read_structure_folder
from cryorbit.physics.procedural_protein import procedural_protein

ONE = {"ALA": "A", "ARG": "R", "ASN": "N", "ASP": "D", "CYS": "C", "GLN": "Q", "GLU": "E", "GLY": "G"}
ONE |= {"HIS": "H", "ILE": "I", "LEU": "L", "LYS": "K", "MET": "M", "PHE": "F", "PRO": "P", "SER": "S"}
ONE |= {"THR": "T", "TRP": "W", "TYR": "Y", "VAL": "V"}
DECIMALS = 6e-4  # a model file keeps three of them


def line(serial: int, name: str, alt: str, residue: str, number: str, x: float, occupancy: float) -> str:
    element = name[0]
    return (
        f"ATOM  {serial:5d}  {name:<3s}{alt}{residue} A{number:>5s}   {x:8.3f}{0:8.3f}{0:8.3f}"
        f"{occupancy:6.2f}{20:6.2f}          {element:>2s}"
    )


@pytest.fixture(scope="module")
def made() -> Atoms:
    return procedural_protein(45, 1)


@pytest.fixture
def folder(tmp_path: Path, made: Atoms) -> Path:
    write_atoms(tmp_path / "one.pdb", made)
    (tmp_path / "below").mkdir()
    write_atoms(tmp_path / "below" / "two.cif", procedural_protein(50, 2))
    return tmp_path


def test_a_chain_is_read_as_it_was_written(folder: Path, made: Atoms):
    """Name, sequence, C-alphas, numbers and all atoms of both formats, in folders below too, sorted by name."""
    found = read_structure_folder(folder)
    assert [c.name for c in found.chains] == ["one_A", "two_A"]
    assert found.chains[0].entry == "one"
    assert not found.skipped
    chain = found.chains[0]
    assert made.atom_name is not None
    assert made.residue_name is not None
    ca = made.atom_name == "CA"
    assert chain.sequence == "".join(ONE[k] for k in made.residue_name[ca])
    torch.testing.assert_close(chain.ca_A, made.position_A[torch.from_numpy(ca)], rtol=0, atol=DECIMALS)
    assert chain.residue_number.tolist() == list(range(1, 46))
    assert len(chain.atoms) == len(made)


def test_whatever_is_left_out_is_counted_with_its_reason(folder: Path, made: Atoms):
    """Unreadable files are named; short and long chains, copies, nucleic acids, ions and second files are counted."""
    (folder / "broken.cif").write_text("hello")
    (folder / "binary.bcif").write_bytes(b"")
    write_atoms(folder / "short.pdb", procedural_protein(20, 0))
    write_atoms(folder / "long.pdb", procedural_protein(70, 0))
    shutil.copy(folder / "one.pdb", folder / "below" / "ONE.pdb")
    (folder / "rna.pdb").write_text(line(1, "P", " ", "  A", "1 ", 0.0, 1.0) + "\n")
    (folder / "ion.pdb").write_text(line(1, "O", " ", "SO4", "1 ", 0.0, 1.0) + "\n")
    (folder / "note.txt").write_text("not a model")
    twice = Atoms(
        torch.cat((made.position_A, made.position_A + 50)),
        made.atomic_number.repeat(2),
        made.b_factor_A2.repeat(2),
        made.occupancy.repeat(2),
        chain=np.repeat(np.array(["A", "B"], dtype=object), len(made)),
        residue_name=np.tile(made.residue_name, 2),  # pyright: ignore[reportArgumentType, reportCallIssue]
        atom_name=np.tile(made.atom_name, 2),  # pyright: ignore[reportArgumentType, reportCallIssue]
        residue_number=np.tile(made.residue_number, 2),  # pyright: ignore[reportArgumentType, reportCallIssue]
    )
    write_atoms(folder / "dimer.pdb", twice)
    found = read_structure_folder(folder, shortest=30, longest=60)
    assert [c.name for c in found.chains] == ["dimer_A", "one_A", "two_A"]
    assert {reason: len(what) for reason, what in found.skipped.items()} == {
        "unreadable": 2,
        "shorter than 30 residues": 1,
        "longer than 60 residues": 1,
        "file of the same entry read before": 1,
        "nucleic acid only": 1,
        "without protein": 1,
        "copy of another chain of its file": 1,
    }
    assert all("broken.cif" in text or "binary.bcif" in text for text in found.skipped["unreadable"])
    assert "1 longer than 60 residues" in found.summary()
    both = read_structure_folder(folder, shortest=30, longest=60, copies=True)
    assert [c.name for c in both.chains][:2] == ["dimer_A", "dimer_B"]


def test_alternatives_are_one_residue_and_inserted_residues_are_two(tmp_path: Path):
    """The C-alpha with the higher occupancy counts; 2 and 2A are two residues; a calcium is none."""
    lines = [
        line(1, "CA", "A", "ALA", "1 ", 0.0, 0.3),
        line(2, "CA", "B", "ALA", "1 ", 1.0, 0.7),
        line(3, "CA", " ", "GLY", "2 ", 3.8, 1.0),
        line(4, "CA", " ", "TRP", "2A", 7.6, 1.0),
        line(5, "CA", "A", "SER", "3 ", 11.4, 0.5),
        line(6, "CA", "B", "THR", "3 ", 11.5, 0.5),
        "HETATM    7 CA    CA A   9      20.000   0.000   0.000  1.00 20.00          CA",
    ]
    (tmp_path / "alt.pdb.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    (chain,) = read_structure_folder(tmp_path, shortest=1).chains
    assert chain.sequence == "AGWS"
    torch.testing.assert_close(chain.ca_A[:, 0], torch.tensor([1.0, 3.8, 7.6, 11.4]))
    assert len(chain.atoms) == 6


def test_bad_folders_are_refused(tmp_path: Path):
    with pytest.raises(BadFile, match=r"not a folder"):
        read_structure_folder(tmp_path / "none")
    with pytest.raises(BadFile, match=r"no .pdb, .ent, .cif, .mmcif or .bcif file"):
        read_structure_folder(tmp_path)
    write_atoms(tmp_path / "short.pdb", procedural_protein(20, 0))
    with pytest.raises(BadFile, match=r"0 protein chains; skipped: 1 shorter than 40 residues"):
        read_structure_folder(tmp_path)
    with pytest.raises(BadInput, match=r"0 < shortest <= longest"):
        read_structure_folder(tmp_path, shortest=9, longest=8)
    bare = Atoms(torch.zeros(1, 3), torch.tensor([6]), torch.zeros(1), torch.ones(1))
    with pytest.raises(BadInput, match=r"no labels"):
        protein_chains(bare, "bare")


@pytest.mark.data
def test_real_entries(data_dir: Path, tmp_path: Path):
    """Lysozyme has 129 residues, myoglobin (sperm whale, with a methionine before) 154."""
    for entry in ("6lyz.pdb.gz", "4lzt.cif.gz", "101m.pdb.gz"):
        shutil.copy(data_dir / "structures" / "proteins" / entry, tmp_path / entry)
    found = {c.name: c for c in read_structure_folder(tmp_path).chains}
    assert {name: len(c) for name, c in found.items()} == {"101m_A": 154, "4lzt_A": 129, "6lyz_A": 129}
    assert found["6lyz_A"].sequence == found["4lzt_A"].sequence
    assert found["6lyz_A"].sequence.startswith("KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNT")
