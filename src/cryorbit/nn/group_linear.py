"""Linear maps between kinds of features that C4 and D4 move: all of them, and no others.

Kinds of a feature's components, arrays (b, d, m) of m features with d components each:

    trivial   d = 1: unchanged
    regular   d = 4 or 8: permuted, (g f)(h) = f(g^-1 h)
    plane     d = 2: a vector of the image plane (x, y), such as a shift from the centre of the pixels
    pose      d = 3: a column of a pose's rotation, moved by rho(g) = [[g, 0], [0, det g]]
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.geometry.groups import PlaneGroup, multiplication_table, plane_matrices, pose_matrices

Kind = Literal["trivial", "regular", "plane", "pose"]


def representation(
    kind: Kind, group: PlaneGroup, *, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "g d d"]:
    """The matrix by which each element moves the components."""
    if kind == "plane":
        return plane_matrices(group, dtype=dtype)
    if kind == "pose":
        return pose_matrices(group, dtype=dtype)
    table = multiplication_table(group)
    g = len(table)
    if kind == "trivial":
        return torch.ones(g, 1, 1, dtype=dtype)
    if kind != "regular":
        raise BadInput(f"Kind of feature {kind!r} is not one of 'trivial', 'regular', 'plane', 'pose'.")
    out = torch.zeros(g, g, g, dtype=dtype)
    at = torch.arange(g)
    out[at[:, None], table, at] = 1  # e_h goes to e_{g h}
    return out


def intertwiners(kind_in: Kind, kind_out: Kind, group: PlaneGroup) -> Float[Tensor, "n o i"]:
    """A basis of the matrices B with rho_out(g) B = B rho_in(g) for every g; entries 0, 1, -1, supports disjoint.

    All representations here are signed permutations, so the average of an elementary matrix over the group is a
    signed orbit sum (or vanishes), and different orbits do not meet.
    """
    into, out = representation(kind_in, group), representation(kind_out, group)
    o, i = out.shape[1], into.shape[1]
    moved = torch.einsum("gap,gbq->pqab", out, into)  # sum over g of rho_out E_pq rho_in^-1
    basis: list[Tensor] = []
    for matrix in moved.reshape(-1, o, i):
        if matrix.abs().max() > 0.5 and not any(bool(((b != 0) & (matrix != 0)).any()) for b in basis):
            basis.append(matrix.sign())
    return torch.stack(basis) if basis else torch.zeros(0, o, i, dtype=torch.float64)


class EquivariantLinear(nn.Module):
    """`m_in` features of one kind to `m_out` of another; a bias only along what the group leaves alone."""

    def __init__(
        self, kind_in: Kind, m_in: int, kind_out: Kind, m_out: int, *, group: PlaneGroup, bias: bool = True
    ) -> None:
        super().__init__()
        basis = intertwiners(kind_in, kind_out, group)
        if len(basis) == 0:
            raise BadInput(
                f"No linear map from {kind_in!r} to {kind_out!r} features commutes with {group} but zero."
            )
        invariant = intertwiners("trivial", kind_out, group)[:, :, 0]
        self._components = basis.shape[2]
        mixing = basis.float().permute(1, 2, 0).flatten(1)
        self.register_buffer("_mixing", mixing.contiguous(), persistent=False)
        self.register_buffer("_invariant", invariant.float(), persistent=False)
        bound = 1 / math.sqrt(m_in * float(basis.abs().sum((0, 2)).max()))
        self.weight = nn.Parameter(torch.empty(len(basis), m_out, m_in).uniform_(-bound, bound))
        own_bias = bias and len(invariant) > 0
        self.bias = nn.Parameter(torch.zeros(len(invariant), m_out)) if own_bias else None

    _mixing: Tensor
    _invariant: Tensor

    def forward(self, features: Float[Tensor, "b i m"]) -> Float[Tensor, "b o n"]:
        """All components by all weights, then summed along the basis: no copy of the whole matrix is made."""
        i = self._components
        n, m_out, m_in = self.weight.shape
        if features.shape[1:] != (i, m_in):
            raise BadInput(f"This layer takes features (b, {i}, {m_in}), got {tuple(features.shape)}.")
        each = F.linear(features, self.weight.view(n * m_out, m_in)).view(-1, i * n, m_out)
        mixing = self._mixing.expand(len(each), -1, -1)
        if self.bias is None:
            return torch.bmm(mixing, each)
        return torch.baddbmm(self._invariant.T @ self.bias, mixing, each)
