"""Tables are as exact as the precision that they are cast to, wherever their module goes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cryorbit.nn.table import Table


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = Table(lambda: torch.arange(1, 6, dtype=torch.float64) / 7)
        self.weight = nn.Parameter(torch.ones(5))


@pytest.mark.parametrize("path", [["double"], ["half", "double"], ["bfloat16", "float", "double"]])
def test_a_cast_table_is_the_one_made_in_that_precision(path):
    """Whatever it went through, in float64 it is exact, in float32 rounded once; a copy's too."""
    net = _Scaled()
    exact = torch.arange(1, 6, dtype=torch.float64) / 7
    assert torch.equal(net.table(), exact.float())
    for name in path:
        getattr(net, name)()
    assert torch.equal(net.table(), exact)
    assert torch.equal(copy.deepcopy(net.float()).double().table(), exact)
    assert torch.equal(net.table(), exact.float())


def test_a_table_is_not_saved():
    """Weights alone make a checkpoint."""
    assert set(_Scaled().state_dict()) == {"weight"}
