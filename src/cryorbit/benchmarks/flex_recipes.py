"""Particles with several states, by recipe: from structure files that the user has, or from a made-up complex.

The first five follow the data sets of CryoBench (Jeon et al. 2024) in kind, not in number; each recipe says what it
does. `hinge`, `hinge-circle` and `lobes` need no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.benchmarks.flex_motion import Hinge
from cryorbit.data import Atoms
from cryorbit.errors import BadFile, BadInput
from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.geometry.superpose import kabsch
from cryorbit.io.atoms import read_atoms
from cryorbit.io.dcd import read_dcd
from cryorbit.physics.molecule import synthetic_complex
from cryorbit.physics.simulate_states import common_frame

Kind = Literal["circle", "path", "classes", "cloud"]


@dataclass(frozen=True, eq=False)
class States:
    """The states of a particle: one model each, all in one frame.

    Parameters
    ----------
    kind
        How the states lie: around a circle, along a path, apart from each other, or as a cloud.
    atoms
        One model per state.
    coordinate
        Shape (k,): the angle in radians on a circle, 0 to 1 along a path; None for classes and clouds.
    group
        Shape (k,): the composition. States of one group have the same atoms and differ by motion alone.
    population
        Shape (k,): how many images show each, relative to the others.
    width_A
        Edge of a box of which the particle fills about 60 %.
    """

    name: str
    kind: Kind
    atoms: tuple[Atoms, ...]
    coordinate: Float[Tensor, "k"] | None
    group: Int[Tensor, "k"]
    population: Float[Tensor, "k"]
    width_A: float


def states_of(name: str, *, structures: Path | None = None) -> States:
    """The states of one recipe.

    Parameters
    ----------
    structures
        Folder, searched with all that is in it, that holds the recipe's structure files; not needed by the made-up
        ones.

    Raises
    ------
    BadInput
        If there is no such recipe.
    BadFile
        If a structure file is missing.
    """
    if name not in RECIPES:
        raise BadInput(f"no data set {name!r}. Choose one of {', '.join(RECIPES)}.")
    return RECIPES[name](structures)


def _igg_1d(structures: Path | None) -> States:
    """Antibody 1IGT, one Fab turned through 360 degrees, 100 states.

    The Fab is the light chain A and the heavy chain B up to residue 230; the hinge is the C-alpha atom of the next
    residue. The axis goes through it in the direction that sweeps the Fab furthest without a clash.
    """
    hinge = _fab(structures)
    angle, models = _full_turn(hinge, 100)
    return _moving("igg-1d", "circle", models, angle, width_A=_IGG_WIDTH_A)


def _igg_rl(structures: Path | None) -> States:
    """The same Fab in 100 random positions: uniform rotations about the hinge, within 75 degrees, clash free."""
    hinge = _fab(structures)
    turns = hinge.random_turns(100, cone_deg=75.0, generator=torch.Generator().manual_seed(1))
    return _moving("igg-rl", "cloud", [hinge.turned(turn) for turn in turns], None, width_A=_IGG_WIDTH_A)


def _mixture(structures: Path | None) -> States:
    """The Fab at 24 angles of the full turn, in antibodies with the other Fab (3 of 5) and without it."""
    hinge = _fab(structures)
    angle, whole = _full_turn(hinge, 24)
    other = torch.from_numpy(_of_fab(hinge.atoms, "C", "D"))
    models = common_frame([*whole, *(model.select(~other) for model in whole)])
    group = torch.arange(48) // 24
    population = torch.where(group == 0, 3.0, 2.0)
    return States("mixture", "circle", tuple(models), angle.repeat(2), group, population, _IGG_WIDTH_A)


def _adk(structures: Path | None) -> States:
    """Adenylate kinase from closed to open: the 98 frames of a DIMS trajectory (adk_dims.dcd), core on core.

    The topology is adk_closed or adk_open. Every frame is laid on the first one by the C-alpha atoms of the core
    domain (residues 1-29, 60-121, 160-214), so that only the lid and the nucleotide-binding domain move. The
    coordinate is the frame's number over the last one's.
    """
    model = read_atoms(_file(structures, "adk_closed", "adk_open"))
    path = _file(structures, "adk_dims")
    frames = read_dcd(path).double()
    if frames.shape[1] != len(model):
        raise BadFile(
            f"{path}: {frames.shape[1]} atoms, but the model has {len(model)}. Give files of one set."
        )
    number, names = _labels(model)[1:]
    in_core = (number <= 29) | ((number >= 60) & (number <= 121)) | (number >= 160)
    core = torch.from_numpy(in_core & (names == "CA"))
    fixed = frames[0, core]
    laid = [kabsch(frame[core], fixed).apply(frame) for frame in frames]
    models = [replace(model, position_A=frame.to(model.position_A.dtype)) for frame in laid]
    return _moving("adk", "path", models, torch.linspace(0, 1, len(models)), width_A=104.0)


def _ribosembly(structures: Path | None) -> States:
    """Ribosome 4V5A in 16 states of assembly, with populations from 1 to 3.

    Chains are present or absent by module (`_MODULES`): a core of 23S RNA and the proteins that bind it first; then,
    in any order, the proteins at its base, the central protuberance with 5S RNA, and the late proteins; then the
    stalks; then the small subunit's 16S RNA with the proteins of its body, those of its head, and the factors
    between the subunits. The small subunit is there by itself too.
    """
    whole = read_atoms(_file(structures, "4v5a_copy1", "4v5a"))
    chain = _labels(whole)[0]
    models = []
    for modules in _ASSEMBLY:
        chains = [name for module in modules.split() for name in _MODULES[module].split()]
        models.append(whole.select(torch.from_numpy(np.isin(chain, chains))))
    k = len(models)
    # A fixed order in which neighbours in the list differ, so that no branch of the assembly is rare as a whole.
    population = 1 + 2 * ((7 * torch.arange(k)) % k) / (k - 1)
    return States(
        "ribosembly", "classes", tuple(common_frame(models)), None, torch.arange(k), population, 440.0
    )


def _hinge(structures: Path | None) -> States:
    """A made-up complex whose second lobe swings open by 60 degrees, 20 states."""
    hinge = _lobe("B")
    away = hinge.pivot_A - hinge.atoms.position_A.double().mean(0)
    axis = torch.nn.functional.normalize(torch.linalg.cross(hinge.arm(), away), dim=0)
    place = torch.linspace(0, 1, 20)
    models = [hinge.turned(rotvec_to_matrix(axis * float(at) * torch.pi / 3)) for at in place]
    return _moving("hinge", "path", models, place, width_A=_MADE_UP_WIDTH_A)


def _hinge_circle(structures: Path | None) -> States:
    """The same lobe led around a cone of 40 degrees (half angle) by a full turn about its hinge, 36 states."""
    hinge = _lobe("B")
    aside = torch.nn.functional.normalize(torch.linalg.cross(hinge.arm(), hinge.pivot_A), dim=0)
    axis = rotvec_to_matrix(aside * float(np.radians(40))) @ hinge.arm()
    angle, models = _full_turn(hinge, 36, axis=axis)
    return _moving("hinge-circle", "circle", models, angle, width_A=_MADE_UP_WIDTH_A)


def _lobes(structures: Path | None) -> States:
    """The made-up complex whole, without lobe C, without lobe D, and without both: populations 4, 3, 2, 1."""
    whole = synthetic_complex(generator=torch.Generator().manual_seed(0))
    chain = _labels(whole)[0]
    absent = ([], ["C"], ["D"], ["C", "D"])
    models = [whole.select(torch.from_numpy(~np.isin(chain, names))) for names in absent]
    population = torch.tensor([4.0, 3.0, 2.0, 1.0])
    return States(
        "lobes", "classes", tuple(common_frame(models)), None, torch.arange(4), population, _MADE_UP_WIDTH_A
    )


RECIPES: dict[str, Callable[[Path | None], States]] = {
    "igg-1d": _igg_1d,
    "igg-rl": _igg_rl,
    "adk": _adk,
    "ribosembly": _ribosembly,
    "mixture": _mixture,
    "hinge": _hinge,
    "hinge-circle": _hinge_circle,
    "lobes": _lobes,
}
"""Name -> recipe; the last three need no structure file."""

_IGG_WIDTH_A, _MADE_UP_WIDTH_A = 256.0, 288.0

_MODULES = {
    "core": "BA BE BF BN BU BV BW BX BY B2 B7 B3 B5",  # 23S; L3 L4 L13 L20 L21 L22 L23 L24 L29 L34 L30 L32
    "base": "BO BR BT BD",  # L14 L17 L19 L2
    "protuberance": "BB BG BS BZ B4",  # 5S; L5 L18 L25 L31
    "late": "BP BQ B0 B1 B6 B8",  # L15 L16 L27 L28 L33 L35
    "stalks": "BC BH BI",  # L1 L6 L9
    "body": "AA AD AE AF AH AK AL AO AP AQ AR AT",  # 16S; S4 S5 S6 S8 S11 S12 S15 S16 S17 S18 S20
    "head": "AB AC AG AI AJ AM AN AS AU",  # S2 S3 S7 S9 S10 S13 S14 S19 Thx
    "factors": "AV AW AX AY",  # messenger, transfer RNA, recycling factor
}
_LARGE = "core base protuberance late stalks"
_ASSEMBLY = (
    "core",
    "core base",
    "core protuberance",
    "core base protuberance",
    "core base late",
    "core base protuberance late",
    "core base protuberance stalks",
    _LARGE,
    "body",
    "body head",
    "core base protuberance late body",
    "core base protuberance late body head",
    f"{_LARGE} body",
    f"{_LARGE} body head",
    f"{_LARGE} body factors",
    f"{_LARGE} body head factors",
)


def _moving(
    name: str, kind: Kind, models: list[Atoms], coordinate: Tensor | None, *, width_A: float
) -> States:
    """States that have the same atoms and are equally populated."""
    k = len(models)
    none = torch.zeros(k, dtype=torch.long)
    return States(name, kind, tuple(common_frame(models)), coordinate, none, torch.ones(k), width_A)


def _full_turn(hinge: Hinge, k: int, *, axis: Tensor | None = None) -> tuple[Tensor, list[Atoms]]:
    axis = hinge.widest_free_axis() if axis is None else axis
    angle = torch.arange(k, dtype=torch.float64) * (2 * torch.pi / k)
    turns = rotvec_to_matrix(angle[:, None] * axis)
    return angle.float(), [hinge.turned(turn) for turn in turns]


def _fab(structures: Path | None) -> Hinge:
    atoms = read_atoms(_file(structures, "1igt"))
    chain, number, name = _labels(atoms)
    pivot = np.flatnonzero((chain == "B") & (number > _LAST_OF_FAB) & (name == "CA"))[0]
    return Hinge(atoms, torch.from_numpy(_of_fab(atoms, "A", "B")), atoms.position_A[pivot])


_LAST_OF_FAB = 230


def _of_fab(atoms: Atoms, light: str, heavy: str) -> np.ndarray:
    chain, number, _ = _labels(atoms)
    return (chain == light) | ((chain == heavy) & (number <= _LAST_OF_FAB))


def _lobe(name: str) -> Hinge:
    """A lobe of the made-up complex, hinged where it touches the rest: at the middle of the contact."""
    atoms = synthetic_complex(generator=torch.Generator().manual_seed(0))
    moving = torch.from_numpy(_labels(atoms)[0] == name)
    piece, rest = atoms.position_A[moving].double(), atoms.position_A[~moving].double()
    near = torch.cdist(piece[::5], rest[::5]).amin(1) < 8.0
    return Hinge(atoms, moving, piece[::5][near].mean(0))


def _labels(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chain, residue number and atom name of every atom; structure files and the made-up complex state them."""
    if atoms.chain is None or atoms.residue_number is None or atoms.atom_name is None:
        raise BadInput("the model has no chain, residue or atom names. Read it from a PDB or mmCIF file.")
    return np.asarray(atoms.chain), np.asarray(atoms.residue_number), np.asarray(atoms.atom_name)


def _file(structures: Path | None, *stems: str) -> Path:
    """The first file anywhere below the folder that has one of these names, whatever its ending."""
    if structures is None:
        raise BadInput(
            f"this data set is made from {stems[0]}. Give the folder that holds it: --structures DIR."
        )
    for stem in stems:
        found = sorted(path for path in Path(structures).rglob(f"{stem}.*") if path.is_file())
        if found:
            return found[0]
    raise BadFile(f"{structures}: no file {' or '.join(f'{s}.*' for s in stems)} in it. Put it there.")
