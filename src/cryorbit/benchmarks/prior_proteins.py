"""Proteins of the prior benchmark: none that a prior was trained on, nor a relative of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.sequence_split import cluster_sequences
from cryorbit.data import Atoms
from cryorbit.errors import BadInput
from cryorbit.io.structure_folder import read_structure_folder
from cryorbit.physics.atom_density import density_of_atoms
from cryorbit.physics.procedural_protein import procedural_protein

PROTEINS = {
    "101m": "myoglobin: helices only",
    "6lyz": "lysozyme of hen egg: helices and a small sheet; the one other work reports",
    "1ubq": "ubiquitin: the smallest, a sheet around a helix; in that work's training set",
    "1cbs": "retinoic acid binding protein: a barrel of strands with a cavity",
    "9rsa": "ribonuclease A: a long bent sheet",
    "3lzm": "lysozyme of phage T4, no relative of 6lyz: two lobes joined by a long helix",
    "1rx1": "dihydrofolate reductase: a sheet between helices",
    "1f4p": "flavodoxin: the same order of strands and helices, denser",
    "1ake": "adenylate kinase, closed: the largest, three domains",
    "1g4i": "phospholipase A2: helices held by seven disulfides, little regular besides",
}
"""Entries and why: single chains, compact, 76 to 214 residues, crystal structures, of ten sequence clusters."""

FIRST_SEED = 1_000_000
"""Of procedural proteins in place of structures; training counts its seeds from 0, its validation from 500,000."""

_LENGTHS = (154, 129, 76, 137, 124, 164, 159, 147, 214, 123)
_SHORTEST, _LONGEST = 40, 400


@dataclass(frozen=True, eq=False)
class Protein:
    """One protein of the benchmark."""

    name: str
    residues: int
    atoms: Atoms
    ca_A: Float[Tensor, "n 3"]
    sequence: str | None = None


@dataclass(frozen=True, kw_only=True)
class MapGrid:
    """What the maps are drawn on."""

    box: int = 32
    """Edge of the maps and images, voxels."""
    voxel_size_A: float = 3.0
    """Edge of a voxel, angstrom."""
    resolution_A: float = 8.0
    """Low pass of the true maps, angstrom."""

    def map_of(self, atoms: Atoms, rotation: Tensor | None = None) -> Float[Tensor, "n n n"]:
        """Density of the atoms with their centre at the box's, volts, float32."""
        drawn = density_of_atoms(
            atoms,
            None if rotation is None else rotation.to(atoms.position_A),
            box=self.box,
            pixel_size_A=self.voxel_size_A,
            resolution_A=self.resolution_A,
        )
        return drawn.values.to(torch.float32)


def benchmark_proteins(
    folder: Path | None, names: Sequence[str], *, seen: Sequence[str] = ()
) -> list[Protein]:
    """The proteins of these names, in their order; procedural ones, named by their length, without a folder.

    Parameters
    ----------
    names
        Entries, such as 6lyz, or chains, such as 1kip_A. All of `PROTEINS` if empty.
    seen
        Names of what a prior was trained on, see `refuse_seen`.

    Raises
    ------
    BadInput
        If a name is not in the folder, or the prior has seen it.
    """
    if folder is None:
        return made_up(names)
    found = read_structure_folder(folder, shortest=_SHORTEST, longest=_LONGEST).chains
    proteins = []
    for name in names or tuple(PROTEINS):
        chain = next((c for c in found if name in (c.name, c.entry)), None)
        if chain is None:
            raise BadInput(
                f"--proteins {name}: no chain of {_SHORTEST} to {_LONGEST} residues of that entry in {folder}. "
                "Correct the name, or give another folder."
            )
        proteins.append(Protein(name, len(chain), chain.atoms, chain.ca_A, chain.sequence))
    refuse_seen(proteins, seen, sequences={c.name: c.sequence for c in found})
    return proteins


def made_up(names: Sequence[str]) -> list[Protein]:
    """Procedural proteins: names are numbers of residues, those of `PROTEINS`' ten unless given."""
    lengths = [_length(name) for name in names] or list(_LENGTHS)
    out = []
    for i, n in enumerate(lengths):
        atoms = procedural_protein(n, FIRST_SEED + i)
        if atoms.atom_name is None:
            raise BadInput("procedural_protein: atoms without names.")
        ca = atoms.position_A[torch.from_numpy(atoms.atom_name == "CA")]
        out.append(Protein(f"procedural-{n}-{i}", n, atoms, ca))
    return out


def _length(name: str) -> int:
    if not name.isdigit():
        raise BadInput(
            f"--proteins {name}: without --structures proteins are made up; give numbers of residues, or the folder."
        )
    return int(name)


def refuse_seen(proteins: Sequence[Protein], seen: Sequence[str], *, sequences: dict[str, str]) -> None:
    """Refuse a protein that a prior was trained on, or whose sequence is like one that it was trained on.

    Parameters
    ----------
    seen
        Names of entries or chains, in any case.
    sequences
        Of the chains of the folder, by name: relatives are looked for among those that were seen. A relative whose
        file is not there cannot be found.

    Raises
    ------
    BadInput
        If there is one.
    """
    listed = {name.lower() for name in seen}
    entries = {name.partition("_")[0] for name in listed}
    known = {f"seen {name}": s for name, s in sequences.items() if _names_of(name) & listed}
    for protein in proteins if listed else ():
        if _names_of(protein.name) & listed or protein.name.lower() in entries:
            raise BadInput(
                f"--proteins {protein.name}: the prior was trained on it. Leave it out, or give another prior."
            )
        if protein.sequence is None:
            continue
        cluster = cluster_sequences({**known, "this": protein.sequence})
        relatives = [k for k, number in cluster.items() if number == cluster["this"] and k != "this"]
        if relatives:
            raise BadInput(
                f"--proteins {protein.name}: the prior was trained on a relative of it "
                f"({relatives[0].removeprefix('seen ')}). Leave it out, or give another prior."
            )


def _names_of(name: str) -> set[str]:
    """The name, and its entry's if it is that of a chain."""
    return {name.lower(), name.lower().partition("_")[0]}
