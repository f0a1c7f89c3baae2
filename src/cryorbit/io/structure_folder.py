"""A folder of PDB, mmCIF and BinaryCIF files -> its protein chains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import torch

from cryorbit.data import Atoms, ProteinChain
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atoms import read_atoms

_MODELS = (".pdb", ".ent", ".cif", ".mmcif", ".bcif")
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_OF_DYNAMICS = {
    **dict.fromkeys(("HSD", "HSE", "HSP", "HID", "HIE", "HIP"), "H"),
    **{"CYX": "C", "ASH": "D", "GLH": "E", "LYN": "K"},
}
_UNLABELLED = "protein_chains: the atoms of {} have no labels. Read them from a model file."
_ONE_PLACE = 1.01
"""Occupancies of alternatives of one residue add up to at most 1, give or take rounding."""


@dataclass(frozen=True)
class StructureFolder:
    """What a folder held.

    Parameters
    ----------
    chains
        Sorted by name; names are unique.
    skipped
        Reason -> what was skipped for it: file names, with the chain where only that was.
    """

    chains: list[ProteinChain]
    skipped: dict[str, list[str]]

    def summary(self) -> str:
        """Chains kept, and how many files or chains were skipped for each reason."""
        counts = "; ".join(f"{len(what)} {reason}" for reason, what in sorted(self.skipped.items()))
        return f"{len(self.chains)} protein chains" + (f"; skipped: {counts}" if counts else "")


def read_structure_folder(
    folder: str | os.PathLike[str], *, shortest: int = 40, longest: int = 512, copies: bool = False
) -> StructureFolder:
    """Read the protein chains of every model file in a folder and below it, plain or compressed.

    The first model of each file as deposited, without waters. Reasons to skip: "unreadable" (each with its error),
    "without protein", "nucleic acid only", "shorter than ... residues", "longer than ... residues", "copy of another
    chain of its file", "file of the same entry read before" (by its name without endings; .cif goes before .bcif and
    that before .pdb).

    Parameters
    ----------
    shortest, longest
        Residues with a C-alpha that a chain must have.
    copies
        Keep chains with the sequence of an earlier chain of the same file.

    Raises
    ------
    BadInput
        If `longest` is below `shortest`, or either is not positive.
    BadFile
        If the folder is missing, has no model file, or none with a protein chain of such a length.
    """
    if not 0 < shortest <= longest:
        raise BadInput(
            f"read_structure_folder: residues from {shortest} to {longest}. Give 0 < shortest <= longest."
        )
    files = _model_files(Path(folder))
    chains: dict[str, ProteinChain] = {}
    skipped: dict[str, list[str]] = {}
    entries: set[str] = set()
    for path in files:
        entry = _stem(path)
        if entry in entries:
            skipped.setdefault("file of the same entry read before", []).append(str(path))
            continue
        try:
            atoms = read_atoms(path)
        except BadFile as error:
            skipped.setdefault("unreadable", []).append(str(error))
            continue
        entries.add(entry)
        for chain, reason in _sorted_out(atoms, entry, path, shortest, longest, copies):
            if isinstance(chain, ProteinChain):
                chains[chain.name] = chain
            else:
                skipped.setdefault(reason, []).append(chain)
    found = StructureFolder([chains[name] for name in sorted(chains)], skipped)
    if not chains:
        raise BadFile(f"{folder}: {found.summary()}. Give a folder with proteins, or other limits of length.")
    return found


def protein_chains(atoms: Atoms, entry: str) -> list[ProteinChain]:
    """The protein chains among the atoms of one file, in its order.

    Of a residue with alternatives the C-alpha of the highest occupancy counts, the first of equals; its atoms are all
    kept.

    Raises
    ------
    BadInput
        If the atoms have no labels.
    """
    if atoms.chain is None or atoms.residue_name is None:
        raise BadInput(_UNLABELLED.format(entry))
    letters = {name: _letter(str(name)) for name in set(atoms.residue_name.tolist())}
    protein = np.array([letters[name] is not None for name in atoms.residue_name], dtype=bool)
    chains = []
    for label in dict.fromkeys(atoms.chain[protein].tolist()):
        part = atoms.select(torch.from_numpy(protein & (atoms.chain == label)))
        chain = _chain_of(part, f"{entry}_{label}", letters)
        if chain is not None:
            chains.append(chain)
    return chains


def _chain_of(atoms: Atoms, name: str, letters: dict[str, str | None]) -> ProteinChain | None:
    kind, atom_name, number = atoms.residue_name, atoms.atom_name, atoms.residue_number
    if kind is None or atom_name is None or number is None:
        raise BadInput(_UNLABELLED.format(name))
    occupancy = atoms.occupancy.cpu().numpy()
    rows: list[int] = []
    total = 0.0
    for row in np.flatnonzero((atom_name == "CA") & (atoms.atomic_number.cpu().numpy() == 6)).tolist():
        same = bool(rows) and number[row] == number[rows[-1]]
        # Residues 52 and 52A share a number too, but each is there for the whole.
        if same and total + occupancy[row] <= _ONE_PLACE:
            total += float(occupancy[row])
            rows[-1] = row if occupancy[row] > occupancy[rows[-1]] else rows[-1]
        else:
            rows.append(row)
            total = float(occupancy[row])
    if not rows:
        return None
    kept = torch.from_numpy(np.isin(number, number[rows]))
    sequence = "".join(letters[residue] or "X" for residue in kind[rows])
    numbers = torch.from_numpy(number[rows].astype(np.int64))
    return ProteinChain(name, sequence, atoms.position_A[rows], numbers, atoms.select(kept))


def _sorted_out(
    atoms: Atoms, entry: str, path: Path, shortest: int, longest: int, copies: bool
) -> Iterator[tuple[ProteinChain | str, str]]:
    """Each chain to keep; each chain or file to leave out, with the reason."""
    found = protein_chains(atoms, entry)
    if not found:
        names = set() if atoms.residue_name is None else set(atoms.residue_name.tolist())
        nucleic = any(gemmi.find_tabulated_residue(str(n)).is_nucleic_acid() for n in names)
        yield str(path), "nucleic acid only" if nucleic else "without protein"
    seen: set[str] = set()
    for chain in found:
        label = f"{path} chain {chain.name.rpartition('_')[2]}"
        if len(chain) < shortest:
            yield label, f"shorter than {shortest} residues"
        elif len(chain) > longest:
            yield label, f"longer than {longest} residues"
        elif chain.sequence in seen and not copies:
            yield label, "copy of another chain of its file"
        else:
            yield chain, ""
        seen.add(chain.sequence)


def _letter(residue: str) -> str | None:
    """One-letter code of an amino acid, that of its parent where it is a modified one; None for anything else."""
    if residue in _OF_DYNAMICS:
        return _OF_DYNAMICS[residue]
    known = gemmi.find_tabulated_residue(residue)
    if not known.is_amino_acid():
        return None
    letter = known.one_letter_code.upper()
    return letter if letter.isalpha() else "X"


def _model_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadFile(f"{folder}: not a folder. Give a folder of PDB, mmCIF or BinaryCIF files.")
    files = [path for path in folder.rglob("*") if path.is_file() and _ending(path) in _MODELS]
    if not files:
        raise BadFile(
            f"{folder}: no .pdb, .ent, .cif, .mmcif or .bcif file in it. Give a folder of model files."
        )
    order = (".cif", ".mmcif", ".bcif", ".pdb", ".ent")
    return sorted(files, key=lambda path: (_stem(path), order.index(_ending(path)), str(path)))


def _plain_name(path: Path) -> str:
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return name


def _ending(path: Path) -> str:
    return os.path.splitext(_plain_name(path))[1]


def _stem(path: Path) -> str:
    return os.path.splitext(_plain_name(path))[0]
