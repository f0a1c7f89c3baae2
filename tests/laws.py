"""Named tolerances, each with its reason, and the strategies that laws are tested with. Append only."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

ROUND_OFF = {torch.float64: 1e-12, torch.float32: 1e-5}
"""A few hundred ulp: arithmetic only."""

HALF_DIGITS = 1e-7
"""Float64, where a quantity enters squared (an angle read off a cosine): half of the digits."""


def _unit(values: tuple[float, ...]) -> Tensor:
    vector = torch.tensor(values, dtype=torch.float64)
    return vector / vector.norm()


_component = st.floats(-1.0, 1.0, allow_nan=False)


def unit_vectors(dim: int = 3) -> st.SearchStrategy[Tensor]:
    """Unit vectors in float64, the coordinate axes among them."""
    anywhere = st.tuples(*[_component] * dim).filter(lambda v: sum(c * c for c in v) > 1e-4).map(_unit)
    axes = [tuple(float(i == j) for j in range(dim)) for i in range(dim)]
    return st.one_of(st.sampled_from(axes).map(_unit), anywhere)


def angles() -> st.SearchStrategy[float]:
    """Angles of rotation in radians, 0 to pi, with both ends and their neighbourhoods."""
    near = [0.0, 1e-300, 1e-12, 1e-8, 1e-4, math.pi / 2, math.pi - 1e-4, math.pi - 1e-8, math.pi]
    return st.one_of(st.sampled_from(near), st.floats(0.0, math.pi, allow_nan=False))


def _rodrigues(axis: Tensor, angle: float) -> Tensor:
    x, y, z = axis.tolist()
    k = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + math.sin(angle) * k + (1 - math.cos(angle)) * (k @ k)


def rotations() -> st.SearchStrategy[Tensor]:
    """Rotation matrices (3, 3) in float64, identity, half turns and their neighbourhoods among them."""
    return st.builds(_rodrigues, unit_vectors(), angles())
