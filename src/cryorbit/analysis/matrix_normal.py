"""The matrix-normal distribution: rows that correlate alike in every column, columns alike in every row.

X ~ MN(M, U, V) if vec(X) ~ N(vec M, V kron U), vec stacking columns. Coordinates of n atoms, each with its own
spread and the same in x, y and z, are U = diag(sigma^2), V = I: the model behind `superpose_bayes`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


def matrix_normal_log_prob(
    x: Float[Tensor, "*batch n p"],
    mean: Float[Tensor, "n p"],
    rows: Float[Tensor, "n n"],
    columns: Float[Tensor, "p p"],
) -> Float[Tensor, "*batch"]:
    """Log density, nats, with row covariance U = `rows` and column covariance V = `columns`.

    -tr(V^-1 (X - M)^T U^-1 (X - M)) / 2 - (np log 2 pi + p log |U| + n log |V|) / 2. U and V are known up to a factor,
    U -> c U, V -> V / c.

    Raises
    ------
    BadInput
        If a covariance is not positive definite.
    """
    n, p = mean.shape
    lower_u, lower_v = _cholesky(rows, "rows"), _cholesky(columns, "columns")
    white = torch.linalg.solve_triangular(lower_u, x - mean, upper=False)
    white = torch.linalg.solve_triangular(lower_v, white.mT, upper=False)
    log_u, log_v = lower_u.diagonal().log().sum(), lower_v.diagonal().log().sum()
    return -0.5 * (white**2).sum((-2, -1)) - 0.5 * n * p * math.log(2 * math.pi) - p * log_u - n * log_v


def matrix_normal_sample(
    count: int,
    mean: Float[Tensor, "n p"],
    rows: Float[Tensor, "n n"],
    columns: Float[Tensor, "p p"],
    *,
    generator: torch.Generator,
) -> Float[Tensor, "count n p"]:
    """Draws M + A Z B^T with U = A A^T, V = B B^T, Z white."""
    white = torch.randn(count, *mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
    return mean + _cholesky(rows, "rows") @ white.to(mean) @ _cholesky(columns, "columns").mT


def matrix_normal_parameters(n: int, p: int) -> int:
    """Numbers in U and V: n (n + 1) / 2 + p (p + 1) / 2, one of which (their scale) is not determined.

    >>> matrix_normal_parameters(100, 3)
    5056
    """
    return n * (n + 1) // 2 + p * (p + 1) // 2


def _cholesky(covariance: Tensor, name: str) -> Tensor:
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        raise BadInput(f"matrix normal: the covariance of the {name} is not positive definite.")
    return lower
