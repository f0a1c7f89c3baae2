"""Solving with, and drawing from, a Gaussian whose precision W + a I can only be applied and whose diagonal is known.

Both work on A' = M^-1/2 (W + a I) M^-1/2 with M = weight + a, which is near the identity where slices lie dense or a is
large. Batches run together, each with its own coefficients.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

_DIMS = (-3, -2, -1)


@runtime_checkable
class Precision(Protocol):
    """What is known of W."""

    @property
    def weight(self) -> Tensor:
        """Its diagonal in the transform of the box, layout of `rfftn`."""
        ...

    @property
    def point_spread(self) -> Tensor | None:
        """None where the diagonal is all there is."""
        ...

    def apply(self, v: Tensor) -> Tensor:
        """W v."""
        ...

    def filtered(self, v: Tensor, transfer: Tensor) -> Tensor:
        """The transform of v times a real function of the box's frequencies."""
        ...


def solve_precision(
    of: Precision,
    right: Float[Tensor, "*batch n n n"],
    extra: float | Tensor,
    *,
    tolerance: float,
    steps: int,
    start: Float[Tensor, "*batch n n n"] | None = None,
    floor: float = 0.0,
) -> Float[Tensor, "*batch n n n"]:
    """(W + extra)^-1 right by conjugate gradients preconditioned by the diagonal; at once where that is all there is.

    Parameters
    ----------
    extra
        A number, or a real function of the box's frequencies (a prior's spectrum), positive.
    tolerance
        Of the residual against `right`, in the preconditioner's measure.
    start
        Where to begin; zero if None.
    floor
        Stops as well where the error is about so many standard deviations of the Gaussian per voxel.
    """
    inverse = 1 / (of.weight + extra)
    smooth = of.filtered(right, inverse)
    if of.point_spread is None:
        return smooth
    target = (tolerance**2 * _dot(right, smooth)).clamp_min(floor**2 * right.shape[-1] ** 3)
    solution, residual = torch.zeros_like(right), right
    if start is not None:
        solution, residual = start, right - of.apply(start) - _plus(of, start, extra)
        smooth = of.filtered(residual, inverse)
    step, size = smooth, _dot(residual, smooth)
    for _ in range(steps):
        if not bool((size > target).any()):
            break
        moved = of.apply(step) + _plus(of, step, extra)
        length = size / _dot(step, moved).clamp_min(torch.finfo(right.dtype).tiny)
        solution = solution + length * step
        residual = residual - length * moved
        smooth = of.filtered(residual, inverse)
        before, size = size, _dot(residual, smooth)
        step = smooth + (size / before.clamp_min(torch.finfo(right.dtype).tiny)) * step
    return solution


def draw_precision(
    of: Precision,
    white: Float[Tensor, "*batch n n n"],
    extra: float | Tensor,
    *,
    tolerance: float,
    steps: int,
) -> Float[Tensor, "*batch n n n"]:
    """A linear map of white noise with covariance (W + extra)^-1.

    M^-1/2 A'^-1/2 white: the Lanczos process from `white` gives A' = Q T Q^T on the space it spans, and A'^-1/2 white =
    |white| Q T^-1/2 e_1 (Chow & Saad 2014). Its vectors are kept orthogonal in full.
    """
    root = (of.weight + extra).rsqrt()
    if of.point_spread is None:
        return of.filtered(white, root)
    size = _dot(white, white).sqrt()
    basis, along, across = [white / size], [], []
    share = torch.ones_like(size)[..., None]
    for _ in range(steps):
        scaled = of.filtered(basis[-1], root)
        new = of.filtered(of.apply(scaled) + _plus(of, scaled, extra), root)
        along.append(_dot(new, basis[-1]).flatten())
        for q in basis:
            new = new - _dot(new, q) * q
        across.append(_dot(new, new).sqrt().flatten())
        share = _first_column(along, across[:-1])
        small = share[:, -1].abs() <= tolerance * share.norm(dim=1)
        if bool((small | (across[-1] < 1e-6)).all()):
            break
        basis.append(new / across[-1].view_as(size).clamp_min(1e-20))
    total = torch.zeros_like(white)
    for j in range(share.shape[1]):
        total = total + share[:, j].view_as(size) * basis[j]
    return of.filtered(total * size, root)


def _first_column(along: list[Tensor], across: list[Tensor]) -> Float[Tensor, "b k"]:
    """T^-1/2 e_1 of each tridiagonal matrix."""
    matrix = torch.diag_embed(torch.stack(along, 1).double())
    if across:
        side = torch.diag_embed(torch.stack(across, 1).double(), offset=1)
        matrix = matrix + side + side.mT
    value, vector = torch.linalg.eigh(matrix)
    inverse = value.clamp_min(1e-12 * float(value.abs().max())).rsqrt()
    return torch.einsum("bij,bj,bj->bi", vector, inverse, vector[:, 0]).to(along[0])


def _plus(of: Precision, v: Tensor, extra: float | Tensor) -> Tensor:
    return of.filtered(v, extra) if isinstance(extra, Tensor) else v * extra


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Per member of the batch, kept as (*batch, 1, 1, 1)."""
    return (a * b).sum(_DIMS, keepdim=True)
