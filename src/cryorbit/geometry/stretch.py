"""The one way in which views can be wrong together that a map of them hardly shows: it is a little too long along one axis.

A slice of the map at (1 + A) x, A small and symmetric, through the plane normal to n is the slice of the map itself through
the plane normal to n - A n, but for a change of size within the plane that only fine detail feels. So all views n may be
wrong by n cross A n. Five numbers say it: a change of size as a whole, the trace of A, turns no view.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.geometry.rotations import matrix_to_rotvec, rotvec_to_matrix

_FREE = ((0, 0), (1, 1), (0, 1), (0, 2), (1, 2))
"""Elements of A that are fitted; the trace is zero."""
_DAMPING = 1e-9


def stretch_equations(
    before: Float[Tensor, "n 3 3"], after: Float[Tensor, "n 3 3"]
) -> tuple[Float[Tensor, "8 8"], Float[Tensor, "8"]]:
    """Normal matrix and right side of the stretch that takes rotations `before` to `after`; those of parts add up.

    The unknowns are five elements of A, then a rotation of all, radians, which is no part of the stretch.
    """
    turn = matrix_to_rotvec(before.double().mT @ after.double())
    view = before.double()[:, 2]
    columns = [torch.linalg.cross(view, view @ shape).flatten() for shape in _shapes()]
    columns += [axis.expand(len(view), 3).flatten() for axis in torch.eye(3, dtype=torch.float64)]
    matrix = torch.stack(columns, 1)
    return matrix.T @ matrix, matrix.T @ turn.flatten()


def stretch_of(
    normal: Float[Tensor, "8 8"], right: Float[Tensor, "8"], group: Float[Tensor, "g 3 3"]
) -> Float[Tensor, "3 3"]:
    """A, radians, that solves the equations, averaged over the point group: a cubic particle has none."""
    floor = _DAMPING * normal.diagonal().mean().clamp_min(1e-300)
    found = torch.linalg.solve(normal + floor * torch.eye(8, dtype=torch.float64), right)
    stretch = torch.einsum("k,kij->ij", found[: len(_FREE)], _shapes())
    g = group.double()
    return (g.mT @ stretch @ g).mean(0)


def stretched(rotation: Float[Tensor, "n 3 3"], stretch: Float[Tensor, "3 3"]) -> Float[Tensor, "n 3 3"]:
    """R exp([n cross A n]), n the view, the third row of R: views that follow a stretched map, in-plane angles kept."""
    view = rotation.double()[:, 2]
    turn = torch.linalg.cross(view, view @ stretch.double())
    return (rotation.double() @ rotvec_to_matrix(turn)).to(rotation)


def typical_turn(stretch: Float[Tensor, "3 3"]) -> float:
    """Root mean square angle by which a stretch turns views spread evenly, radians.

    |n x A n|^2 = |A n|^2 - (n.A n)^2, whose mean over the sphere is |A|^2 / 3 - 2 |A|^2 / 15 for a symmetric A of trace 0.

    >>> round(typical_turn(torch.diag(torch.tensor([1.0, 1.0, -2.0]))), 4)
    1.0954
    """
    return float(stretch.square().sum() / 5) ** 0.5


def _shapes() -> Float[Tensor, "5 3 3"]:
    """A basis of symmetric matrices without trace."""
    out = torch.zeros(len(_FREE), 3, 3, dtype=torch.float64)
    for shape, (i, j) in zip(out, _FREE, strict=True):
        shape[i, j] = shape[j, i] = 1
        if i == j:
            shape -= torch.eye(3, dtype=torch.float64) / 3
    return out
