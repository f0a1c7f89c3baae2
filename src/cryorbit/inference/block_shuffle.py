"""The order in which a training reads images that lie on disk: at random, yet mostly one after the other."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from cryorbit.errors import BadInput


def block_shuffled(n: int, *, block: int, together: int, generator: torch.Generator) -> Int[Tensor, "n"]:
    """Every row once: blocks of neighbouring rows in random order, `together` of them at a time shuffled with each other.

    A disk that is read in this order reads `block` images at a stretch, and a batch is drawn from `together` places of
    the file. With `together` = 1 order is random within blocks only; with block = 1 the whole order is random.

    Parameters
    ----------
    n
        Rows.
    block
        Neighbouring rows that are read together; the last block may be shorter.
    together
        Blocks that are shuffled with each other.

    Raises
    ------
    BadInput
        If a number is not positive.

    >>> order = block_shuffled(10, block=3, together=2, generator=torch.Generator().manual_seed(0))
    >>> order.sort().values.tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if n < 0 or block < 1 or together < 1:
        raise BadInput(
            f"block_shuffled: {n} rows in blocks of {block}, {together} at a time; give 1 or more."
        )
    blocks = torch.arange(n).split(block)
    order = torch.randperm(len(blocks), generator=generator).tolist()
    parts: list[Tensor] = []
    for start in range(0, len(order), together):
        rows = torch.cat([blocks[i] for i in order[start : start + together]])
        parts.append(rows[torch.randperm(len(rows), generator=generator)])
    return torch.cat(parts)
