"""Which half set each particle belongs to."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cryorbit.data import ParticleStack
from cryorbit.data.expansion import SOURCE_COLUMNS
from cryorbit.errors import BadInput

LEAST_MICROGRAPHS = 4


def half_sets(stack: ParticleStack, *, generator: torch.Generator) -> Int[Tensor, "n"]:
    """0 or 1 per particle: the file's own halves, else whole micrographs, else at random, rows of one image together.

    Raises
    ------
    BadInput
        If the file puts some particles in half 1 or 2 and others in neither: to deal all out anew would mix its halves.
    """
    if has_half_sets(stack):
        assert stack.half_set is not None
        return stack.half_set.long() - 1
    if stack.micrograph is not None:
        index = _index_of(np.array([zlib.crc32(str(m).encode()) for m in stack.micrograph]))
        count = torch.bincount(index)
        if len(count) >= LEAST_MICROGRAPHS:
            return _balanced(count, generator=generator)[index]
    images = _index_of(_image_of_each(stack))
    n = int(images.max()) + 1
    return (torch.randperm(n, generator=generator) % 2).long()[images]


def has_half_sets(stack: ParticleStack) -> bool:
    """Whether the particles come in two halves.

    Raises
    ------
    BadInput
        See `half_sets`.
    """
    if stack.half_set is None:
        return False
    belongs = (stack.half_set == 1) | (stack.half_set == 2)
    if bool(belongs.any()) and not bool(belongs.all()):
        row = int(torch.nonzero(~belongs)[0, 0])
        raise BadInput(
            f"{stack.source}: row {row + 1}: half set {int(stack.half_set[row])}, wanted 1 or 2, as others have. Correct or "
            "remove such rows, or remove the column (rlnRandomSubset) to have all dealt out anew."
        )
    return set(stack.half_set.unique().tolist()) == {1, 2}


def _balanced(count: Int[Tensor, "m"], *, generator: torch.Generator) -> Int[Tensor, "m"]:
    """Micrographs of so many particles in two halves of nearly equal size: the largest first, each to the smaller half."""
    order = torch.randperm(len(count), generator=generator)
    order = order[count[order].argsort(descending=True, stable=True)]
    half, size = torch.zeros(len(count), dtype=torch.long), [0, 0]
    for m in order.tolist():
        smaller = int(size[1] < size[0])
        half[m] = smaller
        size[smaller] += int(count[m])
    return half


def _image_of_each(stack: ParticleStack) -> np.ndarray:
    """A name per row that rows of one image share: copies of a symmetry expansion, repeated particles."""
    table = stack.tables.get("particles")
    for name in SOURCE_COLUMNS:
        if table is not None and name in table:
            return table[name].to_numpy().astype(str)
    return np.array([str(name).split("#")[0] for name in stack.ids])


def _index_of(names: np.ndarray) -> Int[Tensor, "n"]:
    """Number of each name: in order of appearance if none repeats, else sorted."""
    unique, index = np.unique(names, return_inverse=True)
    return torch.arange(len(names)) if len(unique) == len(names) else torch.from_numpy(index.astype(np.int64))
