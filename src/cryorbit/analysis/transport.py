"""Optimal transport: how far mass must move to turn one distribution into another.

Closed forms on the line and between Gaussians, slices through point sets, and Sinkhorn's iteration for any cost (Peyre
and Cuturi 2019, Found. Trends Mach. Learn. 11, 355). Costs are squared distances, results W_2^2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


def bures_squared(
    mean_a: Float[Tensor, "*batch d"],
    cov_a: Float[Tensor, "*batch d d"],
    mean_b: Float[Tensor, "*batch d"],
    cov_b: Float[Tensor, "*batch d d"],
) -> Float[Tensor, "*batch"]:
    """W_2^2 between Gaussians: |dm|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    >>> eye, zero = torch.eye(2), torch.zeros(2)
    >>> round(bures_squared(zero, eye, zero, 4 * eye).item(), 4)
    2.0
    """
    value, vector = torch.linalg.eigh(cov_a)
    root = (vector * value.clamp_min(0).sqrt()[..., None, :]) @ vector.mT
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum(-1)
    traces = cov_a.diagonal(dim1=-2, dim2=-1).sum(-1) + cov_b.diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((mean_a - mean_b) ** 2).sum(-1) + (traces - 2 * cross).clamp_min(0)


def wasserstein_line(
    x: Float[Tensor, "*batch n"],
    y: Float[Tensor, "*batch m"],
    *,
    weight_x: Float[Tensor, "*batch n"] | None = None,
    weight_y: Float[Tensor, "*batch m"] | None = None,
) -> Float[Tensor, "*batch"]:
    """W_2^2 between weighted points on a line: the integral of (Q_x(u) - Q_y(u))^2 over quantiles u.

    For as many points of equal weight on either side it is the mean square of the sorted differences.

    Raises
    ------
    BadInput
        If there are no points, or weights are negative or all 0.
    """
    (x, cdf_x), (y, cdf_y) = _sorted(x, weight_x), _sorted(y, weight_y)
    steps = torch.cat([cdf_x, cdf_y], -1).sort(dim=-1).values
    width = steps.diff(dim=-1, prepend=torch.zeros_like(steps[..., :1]))
    middle = steps - 0.5 * width
    at_x = torch.searchsorted(cdf_x, middle).clamp_max(x.shape[-1] - 1)
    at_y = torch.searchsorted(cdf_y, middle).clamp_max(y.shape[-1] - 1)
    return (width * (x.gather(-1, at_x) - y.gather(-1, at_y)) ** 2).sum(-1)


def sliced_wasserstein(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    directions: Float[Tensor, "k d"],
    *,
    weight_x: Float[Tensor, "n"] | None = None,
    weight_y: Float[Tensor, "m"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over directions (unit vectors) of `wasserstein_line` of the projected points.

    At most W_2^2 / d for even directions, and equal to it for a translation. Directions: `fibonacci_directions`.
    """
    k = len(directions)
    both = (x @ directions.mT).mT.contiguous(), (y @ directions.mT).mT.contiguous()
    weights = [None if w is None else w.expand(k, -1) for w in (weight_x, weight_y)]
    return wasserstein_line(*both, weight_x=weights[0], weight_y=weights[1]).mean()


def sinkhorn(
    cost: Float[Tensor, "n m"],
    *,
    weight_x: Float[Tensor, "n"] | None = None,
    weight_y: Float[Tensor, "m"] | None = None,
    epsilon: float,
    iterations: int = 500,
) -> Float[Tensor, "n m"]:
    """Transport plan P >= 0 with the given marginals that minimises sum P cost - epsilon entropy(P).

    In logarithms, so that small epsilon (unit of the cost) does not underflow; it then needs more iterations. The
    transport cost is (P * cost).sum(), which tends to the least possible from above as epsilon goes to 0.

    Raises
    ------
    BadInput
        If epsilon is not above 0, or weights are negative or all 0.
    """
    if not epsilon > 0:
        raise BadInput(f"sinkhorn: epsilon must be above 0, got {epsilon}. Try a hundredth of the mean cost.")
    log_a = _normalised(cost[:, 0], weight_x).log()
    log_b = _normalised(cost[0], weight_y).log()
    kernel = -cost / epsilon
    g = torch.zeros_like(log_b)
    f = log_a - torch.logsumexp(kernel + g, 1)
    for _ in range(iterations):
        g = log_b - torch.logsumexp(kernel + f[:, None], 0)
        f = log_a - torch.logsumexp(kernel + g, 1)
    return (kernel + f[:, None] + g).exp()


def mixture_wasserstein(
    mean_a: Float[Tensor, "n d"],
    cov_a: Float[Tensor, "n d d"],
    mean_b: Float[Tensor, "m d"],
    cov_b: Float[Tensor, "m d d"],
    *,
    weight_a: Float[Tensor, "n"] | None = None,
    weight_b: Float[Tensor, "m"] | None = None,
    epsilon: float,
) -> Float[Tensor, ""]:
    """W_2^2 between Gaussian mixtures when mass moves Gaussian to Gaussian: `sinkhorn` on `bures_squared` costs.

    An upper bound of the W_2^2 of the densities (Delon and Desolneux 2020, SIAM J. Imaging Sci. 13, 936).
    """
    n, m = len(mean_a), len(mean_b)
    cost = bures_squared(
        mean_a[:, None].expand(n, m, -1),
        cov_a[:, None].expand(n, m, -1, -1),
        mean_b.expand(n, m, -1),
        cov_b.expand(n, m, -1, -1),
    )
    return (sinkhorn(cost, weight_x=weight_a, weight_y=weight_b, epsilon=epsilon) * cost).sum()


def _sorted(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Points in order and their cumulative weights, which end at 1."""
    w = _normalised(x, weight)
    x, order = x.sort(dim=-1)
    return x, w.gather(-1, order).cumsum(-1)


def _normalised(like: Tensor, weight: Tensor | None) -> Tensor:
    if not like.shape[-1]:
        raise BadInput("Optimal transport: there are no points. Give at least one on either side.")
    if weight is None:
        return torch.full_like(like, 1.0 / like.shape[-1])
    if bool((weight < 0).any()) or not bool((weight.sum(-1) > 0).all()):
        raise BadInput("Optimal transport: weights must be at least 0, and not all 0.")
    return weight / weight.sum(-1, keepdim=True)
