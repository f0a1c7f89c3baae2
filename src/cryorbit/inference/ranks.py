"""Several processes on one run: blocks of images are dealt out, sums are added up, tables of poses are shared.

Every process reads the same particles and does the same cheap things alike; the images' own work is dealt out block by
block, and nothing depends on who does a block but the order in which sums are added. With one process nothing happens
here at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Bool, Int
from torch import Tensor

from cryorbit.errors import CryorbitError

Value = TypeVar("Value")

MEET_EVERY_S = 8.0
"""Seconds between moments at which all processes can agree to stop or to save; launchers kill 30 s after asking."""


class PeerLost(CryorbitError):
    """Another process of the run has ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run as one of them sees them.

    >>> alone = Ranks()
    >>> values = torch.ones(3)
    >>> alone.sum_(values)
    >>> alone.first, alone.any(True), values.tolist()
    (True, True, [1.0, 1.0, 1.0])

    Parameters
    ----------
    rank
        Number of this process, from 0.
    size
        Processes in all. More than one need `torch.distributed` set up before.
    neighbours
        Processes on this machine, which share its memory.
    """

    rank: int = 0
    size: int = 1
    neighbours: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, the same bits in each.

        Raises
        ------
        PeerLost
            If another process has ended; so for all that follow.
        """
        if self.size == 1:
            return
        for tensor in tensors:
            flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            with _lost_peers_named():
                dist.all_reduce(flat)

    def share_rows(self, columns: Sequence[Tensor], rows: Int[Tensor, "m"], mine: Bool[Tensor, "m"]) -> None:
        """Give every process all `rows` of the columns, in place; each row comes from the one process where it is `mine`."""
        if self.size == 1 or len(rows) == 0:
            return
        for column in columns:
            part = torch.zeros_like(column[rows])
            part[mine] = column[rows[mine]]
            self.sum_(part)
            column[rows] = part

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag))
        self.sum_(count)
        return bool(count)

    def agree(self, value: Value) -> Value:
        """The value that the first process has: a plain one that pickles."""
        if self.size == 1:
            return value
        box = [value]
        with _lost_peers_named():
            dist.broadcast_object_list(box)
        return box[0]


@contextmanager
def _lost_peers_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(
            "another process of this run has ended, and none goes on alone. See what it said (out of memory?), then go on "
            "with --resume."
        ) from error


@dataclass(frozen=True, eq=False)
class Hand:
    """What is done at one time: a block for each process."""

    mine: Int[Tensor, "m"]
    """Rows of this process; the last hand may leave it none."""
    every: Int[Tensor, "k"]
    """Rows of all processes."""
    done: int
    """Blocks that are done after this hand."""
    meets: bool
    """Whether all processes meet after it, so that they can save or stop together."""


class Deal:
    """Blocks of rows dealt out in turn; iterate over the `Hand`s, and make each one's record with `kept`.

    Parameters
    ----------
    ranks
        The processes.
    blocks
        Rows, the same in every process.
    begin
        Blocks that are done already.
    columns
        Per-particle tensors of which each process fills the rows it is dealt.
    sums
        By their name in the state: sums that each process adds to. They hold the sums of all once the last hand is kept.
    """

    def __init__(
        self,
        ranks: Ranks,
        blocks: Sequence[Tensor],
        begin: int,
        *,
        columns: Sequence[Tensor],
        sums: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.ranks, self.blocks, self.begin = ranks, blocks, begin
        self.columns, self.sums = columns, dict(sums or {})
        if not ranks.first and 0 < begin < len(blocks):
            for (
                total
            ) in self.sums.values():  # a saved state has those of all; the first process goes on with them
                total.zero_()

    def __iter__(self) -> Iterator[Hand]:
        size, count = self.ranks.size, len(self.blocks)
        apart, since, start = 1, 0, time.monotonic()
        for i in range(self.begin, count, size):
            dealt = self.blocks[i : i + size]
            mine = dealt[self.ranks.rank] if self.ranks.rank < len(dealt) else dealt[0][:0]
            every = dealt[0] if size == 1 else torch.cat(tuple(dealt))
            since += 1
            meets = since >= apart or i + size >= count
            yield Hand(mine, every, min(i + size, count), meets)
            if meets and size > 1:
                now = time.monotonic()
                apart = self.ranks.agree(max(1, round(MEET_EVERY_S * since / max(now - start, 1e-3))))
                since, start = 0, now

    def kept(self, hand: Hand, state: dict[str, Any]) -> dict[str, Any]:
        """`state` and `whole` of the progress record after a hand; after the last one columns and sums are everyone's."""
        if self.ranks.size == 1:
            return {"state": dict(state)}
        if hand.done == len(self.blocks):
            self._share(hand.done)
            self.ranks.sum_(*self.sums.values())
            return {"state": dict(state), "whole": lambda: dict(state)}
        return {"whole": (lambda: self._whole(hand.done, state)) if hand.meets else None}

    def _whole(self, done: int, state: dict[str, Any]) -> dict[str, Any]:
        self._share(done)
        totals = {name: total.clone() for name, total in self.sums.items()}
        self.ranks.sum_(*totals.values())
        return {**state, **totals}

    def _share(self, done: int) -> None:
        dealt = self.blocks[self.begin : done]
        owner = torch.cat([torch.full((len(b),), i % self.ranks.size) for i, b in enumerate(dealt)])
        self.ranks.share_rows(self.columns, torch.cat(tuple(dealt)), owner == self.ranks.rank)


def even_count(count: int, ranks: Ranks) -> int:
    """`count` raised so that every process is dealt as many blocks.

    >>> even_count(5, Ranks()), even_count(5, Ranks(0, 2))
    (5, 6)
    """
    return -(-count // ranks.size) * ranks.size
