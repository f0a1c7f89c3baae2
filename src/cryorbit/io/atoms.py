"""Molecular models: PDB, mmCIF and BinaryCIF files -> `Atoms`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import gemmi
import numpy as np
import torch

from cryorbit.data.atoms import Atoms
from cryorbit.errors import BadFile, BadInput
from cryorbit.io.atomic import atomic_path
from cryorbit.io.bcif import read_bcif_block
from cryorbit.io.compressed import read_plain

_FORMATS = {
    ".pdb": gemmi.CoorFormat.Pdb,
    ".ent": gemmi.CoorFormat.Pdb,
    ".cif": gemmi.CoorFormat.Mmcif,
    ".mmcif": gemmi.CoorFormat.Mmcif,
}
_OF_PROTEINS = (1, 6, 7, 8, 16)
_MD_RESIDUES = ("HSD", "HSE", "HSP", "HID", "HIE", "HIP", "CYX")


def read_atoms(
    path: str | os.PathLike[str],
    *,
    assembly: str | None = None,
    model: int = 1,
    waters: Literal["drop", "keep"] = "drop",
) -> Atoms:
    """Read a model from a PDB, mmCIF or BinaryCIF file, plain or compressed.

    Alternative positions are all kept, each with its occupancy.

    Parameters
    ----------
    path
        The model file.
    assembly
        Name of a biological assembly to build ("1"); None: the atoms as deposited.
    model
        Which model of an ensemble, from 1.
    waters
        Ordered waters of a crystal do not stand in a cryo-EM sample; "drop" leaves them out.

    Raises
    ------
    BadFile
        If the file cannot be read, or has no such model or assembly.
    """
    structure = _read_structure(path)
    if not 1 <= model <= len(structure):
        raise BadFile(f"{path}: model {model} asked for, but it has {len(structure)}. Choose one of those.")
    chosen = structure[model - 1]
    if assembly is not None:
        names = [a.name for a in structure.assemblies]
        if assembly not in names:
            raise BadFile(
                f"{path}: no assembly {assembly!r} (found: {', '.join(names) or 'none'}). Choose one of "
                "those."
            )
        built = structure.assemblies[names.index(assembly)]
        chosen = gemmi.make_assembly(built, chosen, gemmi.HowToNameCopiedChain.AddNumber)
    atoms = _to_atoms(chosen, keep_waters=waters == "keep")
    if len(atoms) == 0:
        raise BadFile(f"{path}: no atoms in model {model}. Give a file with coordinates.")
    return atoms


def write_atoms(path: str | os.PathLike[str], atoms: Atoms) -> None:
    """Write atoms as a PDB or mmCIF file; labels that are missing become chain A, residues 1, 2, ... of GLY, atom CA.

    Raises
    ------
    BadInput
        If a number does not fit the columns of a PDB file.
    BadFile
        If the ending is unknown, or the disk refuses.
    """
    n = len(atoms)
    chain = atoms.chain if atoms.chain is not None else np.array(["A"] * n, dtype=object)
    residue = atoms.residue_name if atoms.residue_name is not None else np.array(["GLY"] * n, dtype=object)
    name = atoms.atom_name if atoms.atom_name is not None else np.array(["CA"] * n, dtype=object)
    number = atoms.residue_number if atoms.residue_number is not None else np.arange(n) + 1
    if os.path.splitext(os.fspath(path))[1].lower() in (".pdb", ".ent"):
        _check_columns(atoms, number)
    model = gemmi.Model(1)
    last: tuple[str, int, str] | None = None
    position = atoms.position_A.detach().cpu().double().tolist()
    b_factor, occupancy = (t.detach().cpu().tolist() for t in (atoms.b_factor_A2, atoms.occupancy))
    for i, element in enumerate(atoms.atomic_number.tolist()):
        key = (str(chain[i]), int(number[i]), str(residue[i]))
        if last is None or key[0] != last[0]:
            model.add_chain(gemmi.Chain(key[0]))
        if key != last:
            one = gemmi.Residue()
            one.name, one.seqid = key[2], gemmi.SeqId(key[1], " ")
            model[-1].add_residue(one)
        atom = gemmi.Atom()
        atom.name, atom.element = str(name[i]), gemmi.Element(element)
        atom.pos, atom.b_iso, atom.occ = gemmi.Position(*position[i]), b_factor[i], occupancy[i]
        model[-1][-1].add_atom(atom)
        last = key
    structure = gemmi.Structure()
    structure.add_model(model)
    structure.setup_entities()
    structure.assign_serial_numbers()
    _write_structure(path, structure)


def _check_columns(atoms: Atoms, number: np.ndarray) -> None:
    """Refuse what would run over its columns in a PDB file."""
    position = atoms.position_A.detach().cpu()
    limits = (
        ("position", (position.abs() >= 999.9995).any(1) if len(atoms) else position.new_zeros(0).bool()),
        ("B-factor", atoms.b_factor_A2.detach().cpu().abs() >= 999.995),
        ("residue number", torch.from_numpy(np.asarray(number) > 9999)),
    )
    for what, bad in limits:
        if bool(bad.any()):
            row = int(torch.nonzero(bad)[0, 0])
            raise BadInput(
                f"the {what} of atom {row} does not fit the columns of a PDB file. Write a .cif file."
            )


def write_moved_model(
    source: str | os.PathLike[str], target: str | os.PathLike[str], matrix: Sequence[Sequence[float]]
) -> None:
    """Write a model file with every atom moved; all else that the format holds is kept.

    Parameters
    ----------
    matrix
        Three rows of four: x -> M x + t in angstrom, M a rotation.

    Raises
    ------
    BadFile
        If the source cannot be read, the target's ending is unknown, or the disk refuses.
    """
    structure = _read_structure(source)
    numbers = np.asarray(matrix, dtype=float)
    move = gemmi.Transform(gemmi.Mat33(numbers[:, :3].tolist()), gemmi.Vec3(*numbers[:, 3].tolist()))
    for model in structure:
        model.transform_pos_and_adp(move)
    _write_structure(target, structure)


def write_model_frames(
    source: str | os.PathLike[str], target: str | os.PathLike[str], position_A: torch.Tensor
) -> None:
    """Write a model file with its atoms at other places, one model per frame; all else that the format holds is kept.

    Parameters
    ----------
    position_A
        Shape (frames, n, 3), atoms in the order of `read_atoms(source, waters="keep")`.

    Raises
    ------
    BadInput
        If the number of atoms differs, or a place does not fit the columns of a PDB file.
    BadFile
        If the source cannot be read, the target's ending is unknown, or the disk refuses.
    """
    structure = _read_structure(source)
    frames = position_A.detach().cpu().double()
    n = sum(len(residue) for chain in structure[0] for residue in chain)
    if frames.shape[1:] != (n, 3):
        raise BadInput(
            f"{source}: has {n} atoms, positions have shape {tuple(frames.shape)}. Keep the waters."
        )
    if os.path.splitext(os.fspath(target))[1].lower() != ".cif" and bool((frames.abs() >= 999.9995).any()):
        raise BadInput(
            f"{target}: an atom's place does not fit the columns of a PDB file. Write a .cif file."
        )
    first = structure[0].clone()
    while len(structure):
        del structure[0]
    for number, places in enumerate(frames.tolist()):
        model = first.clone()
        model.num = number + 1
        atoms = (atom for chain in model for residue in chain for atom in residue)
        for atom, place in zip(atoms, places, strict=True):
            atom.pos = gemmi.Position(*place)
        structure.add_model(model)
    _write_structure(target, structure)


def _write_structure(target: str | os.PathLike[str], structure: gemmi.Structure) -> None:
    kind = _FORMATS.get(os.path.splitext(os.fspath(target))[1].lower())
    if kind is None:
        raise BadFile(f"{target}: not the name of a model file. Give a .pdb or .cif file.")
    if kind == gemmi.CoorFormat.Pdb:
        text = structure.make_pdb_string()
    else:
        text = structure.make_mmcif_document().as_string()
    with atomic_path(target) as part:
        part.write_text(text)


def _read_structure(path: str | os.PathLike[str]) -> gemmi.Structure:
    name = os.fspath(path).lower()
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        name = name.removesuffix(suffix)
    suffix = os.path.splitext(name)[1]
    if suffix not in (*_FORMATS, ".bcif"):
        raise BadFile(f"{path}: not the name of a model file. Give a .pdb, .ent, .cif, .mmcif or .bcif file.")
    try:
        if suffix == ".bcif":
            structure = gemmi.make_structure_from_block(read_bcif_block(path))
        else:
            text = read_plain(path).decode("utf-8", errors="replace")
            structure = gemmi.read_structure_string(text, format=_FORMATS[suffix])
    except (ValueError, RuntimeError) as error:
        raise BadFile(f"{path}: not a readable model file ({error}). Download it again.") from error
    if len(structure) == 0:
        raise BadFile(f"{path}: no model in it. Give a file with coordinates.")
    return structure


def _element(atom: gemmi.Atom, residue: str) -> int:
    """Atomic number; in a standard amino acid that of the name's first letter, where the file's own cannot be.

    Files of molecular dynamics state no element and begin the name one column early, so that by the rules of the
    format "CA  " is calcium and "HG  " mercury.
    """
    number = atom.element.atomic_number
    if number in _OF_PROTEINS:
        return number
    known = gemmi.find_tabulated_residue(residue)
    standard = residue in _MD_RESIDUES or (known.is_amino_acid() and known.is_standard())
    letter = atom.name.lstrip("0123456789'")[:1]
    return gemmi.Element(letter).atomic_number if standard and letter in tuple("HCNOS") else number


def _to_atoms(model: gemmi.Model, *, keep_waters: bool) -> Atoms:
    rows = []
    names: dict[str, str] = {}
    for chain in model:
        for residue in chain:
            if not keep_waters and residue.is_water():
                continue
            label = names.setdefault(residue.name, residue.name)
            number = residue.seqid.num
            for atom in residue:
                x, y, z = atom.pos.tolist()
                name = names.setdefault(atom.name, atom.name)
                element = _element(atom, residue.name)
                rows.append((x, y, z, element, atom.b_iso, atom.occ, chain.name, label, name, number))
    columns = list(zip(*rows, strict=True)) or [()] * 10
    position = np.array(columns[:3], np.float32).T.reshape(-1, 3)
    return Atoms(
        position_A=torch.from_numpy(np.ascontiguousarray(position)),
        atomic_number=torch.tensor(columns[3], dtype=torch.int64),
        b_factor_A2=torch.tensor(columns[4], dtype=torch.float32),
        occupancy=torch.tensor(columns[5], dtype=torch.float32),
        chain=np.array(columns[6], dtype=object),
        residue_name=np.array(columns[7], dtype=object),
        atom_name=np.array(columns[8], dtype=object),
        residue_number=np.array([n if n is not None else 0 for n in columns[9]], dtype=np.int64),
    )
