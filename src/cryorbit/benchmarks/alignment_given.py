"""Map alignment on maps that others made: a simulated map of 1AKE, and a crop of EMD-20026 with its fitted model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from cryorbit.analysis.align import align_map
from cryorbit.benchmarks.alignment import Pair, Trial, run_trial
from cryorbit.data import Atoms
from cryorbit.geometry.rotations import random_rotations
from cryorbit.io.atoms import read_atoms
from cryorbit.io.mrc import read_map
from cryorbit.physics.scatter import map_of_model

_1AKE_RESOLUTION_A = 6.0
_20026_RESOLUTION_A = 3.0


def given_cases(data: Path, *, trials: int) -> Iterator[tuple[str, list[Trial]]]:
    """Name and alignments of each case."""
    pairs = [known_turn(data, seed) for seed in range(trials)]
    yield "1AKE, known turn", [run_trial(pair, mode="auto", seed=i) for i, pair in enumerate(pairs)]
    yield "EMD-20026, its model", [run_trial(fitted_model(data), mode="auto", seed=0)]


def one_chain(atoms: Atoms) -> Atoms:
    """The first chain, about its own middle."""
    assert atoms.chain is not None
    keep = torch.from_numpy(atoms.chain == atoms.chain[0])
    position = atoms.position_A[keep]
    return Atoms(
        position_A=position - position.mean(0),
        atomic_number=atoms.atomic_number[keep],
        b_factor_A2=atoms.b_factor_A2[keep],
        occupancy=atoms.occupancy[keep],
    )


def known_turn(data: Path, seed: int) -> Pair:
    """The simulated map, and our map of 1AKE's first chain after a random turn and shift.

    Where the untouched chain lies in the simulated map is found once by alignment; the truth is the known motion
    after that one.
    """
    reference = replace(read_map(data / "maps" / "1ake_simulated.mrc"), origin_A=(0.0, 0.0, 0.0))
    middle = torch.tensor(reference.place_A) + reference.box // 2 * reference.pixel_size_A
    chain = one_chain(read_atoms(data / "structures" / "proteins" / "1ake.cif.gz"))

    def drawn(rotation: torch.Tensor, shift_A: torch.Tensor) -> Atoms:
        moved = chain.position_A.double() @ rotation.T + shift_A + middle
        return replace(chain, position_A=moved.float())

    still, none = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    first = map_of_model(drawn(still, none), resolution_A=_1AKE_RESOLUTION_A, like=reference)
    base = align_map(first, reference, hand="same")
    generator = torch.Generator().manual_seed(seed)
    turn = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    shift = 4.0 * torch.randn(3, generator=generator, dtype=torch.float64)
    moving = map_of_model(drawn(turn, shift), resolution_A=_1AKE_RESOLUTION_A, like=reference)
    return Pair(
        moving=moving,
        reference=reference,
        rotation=turn @ base.rotation.double(),
        shift_A=turn @ base.shift_A.double() + shift,
        hand=1,
    )


def fitted_model(data: Path) -> Pair:
    """The crop, which is no cube, and the map of its model where it was fitted: the truth is no motion."""
    reference = read_map(data / "maps" / "EMD-20026_prot.mrc.gz", to_cube="pad")
    model = read_atoms(data / "maps" / "3ajo_fitted_refined.pdb.gz")
    return Pair(
        moving=map_of_model(model, resolution_A=_20026_RESOLUTION_A, like=reference),
        reference=reference,
        rotation=torch.eye(3, dtype=torch.float64),
        shift_A=torch.zeros(3, dtype=torch.float64),
        hand=1,
    )
