"""Absolute rotations from relative ones between pairs."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import nearest_rotation


def synchronise(
    relative: Float[Tensor, "edges 3 3"],
    edge: Int[Tensor, "edges 2"],
    *,
    n: int,
    weight: Float[Tensor, "edges"] | None = None,
) -> Float[Tensor, "n 3 3"]:
    """Rotations R_0 ... R_(n-1) with R_i R_j^T = relative for each edge (i, j), as nearly as may be.

    The three leading eigenvectors of the block matrix of relative rotations, scaled by the nodes' total weights, and
    each 3 x 3 block put on SO(3) (Singer 2011, Appl. Comput. Harmon. Anal. 30, 20; Arie-Nachimson et al. 2012). The
    answer is up to one rotation from the right; R_0 is the identity here. Uses: common lines, consensus of several
    sets of poses. Dense: memory grows as 72 n^2 bytes.

    Raises
    ------
    BadInput
        If an edge names a node outside 0 ... n - 1, weights are negative, or the edges do not join all nodes.
    """
    if not len(edge) or int(edge.min()) < 0 or int(edge.max()) >= n:
        raise BadInput(f"synchronise: edges must name nodes 0 ... {n - 1}, and there must be some.")
    w = relative.new_ones(len(edge), dtype=torch.float64) if weight is None else weight.double()
    if bool((w < 0).any()):
        raise BadInput("synchronise: weights must be at least 0.")
    i, j = edge.unbind(1)
    blocks = torch.zeros(n, n, 3, 3, dtype=torch.float64, device=relative.device)
    value = w[:, None, None] * relative.double()
    blocks.index_put_((i, j), value, accumulate=True)
    blocks.index_put_((j, i), value.mT, accumulate=True)
    degree = torch.zeros(n, dtype=torch.float64, device=relative.device)
    degree.index_add_(0, i, w).index_add_(0, j, w)
    if bool((degree <= 0).any()) or not _joined(i[w > 0], j[w > 0], n):
        raise BadInput("synchronise: the edges do not join all nodes. Leave out the nodes that stand apart.")
    root = degree.rsqrt()
    scaled = (
        (root[:, None, None, None] * root[None, :, None, None] * blocks).transpose(1, 2).reshape(3 * n, 3 * n)
    )
    top = torch.linalg.eigh(scaled).eigenvectors[:, -3:].reshape(n, 3, 3)
    if torch.linalg.det(top).sum() < 0:  # the eigenvectors' own hand is arbitrary
        top = top * top.new_tensor([1.0, 1.0, -1.0])
    rotation = nearest_rotation(top)
    return (rotation @ rotation[0].mT).to(relative)


def _joined(i: Tensor, j: Tensor, n: int) -> bool:
    """Whether a walk along edges reaches every node from node 0."""
    reached = torch.zeros(n, dtype=torch.bool, device=i.device)
    reached[0] = True
    while True:
        before = int(reached.sum())
        reached[j[reached[i]]] = True
        reached[i[reached[j]]] = True
        if int(reached.sum()) == before:
            return before == n
