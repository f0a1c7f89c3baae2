"""Constants of a network: computed in float64, held in the precision of the network that uses them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Table(nn.Module):
    """A constant table that is right to the last bit of whatever precision its module is cast to.

    A plain buffer made in float32 stays a rounded one after `.double()`, and a law that holds to round-off in float32
    then holds to float32's round-off for ever. This one is made anew whenever its precision changes. It is no part of
    the state that is saved.

    Parameters
    ----------
    make
        Computes the table in float64, from nothing that changes.
    dtype
        Of the table at first.
    """

    values: Tensor

    def __init__(self, make: Callable[[], Tensor], *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._make = make
        self.register_buffer("values", make().to(dtype), persistent=False)

    def forward(self) -> Float[Tensor, "..."]:
        """The table, in the precision and on the device of the module."""
        return self.values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Table:
        before = self.values.dtype
        super()._apply(fn, recurse)
        if self.values.dtype != before:
            self.values = self._make().to(self.values)
        return self
