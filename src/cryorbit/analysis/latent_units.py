"""Latents measured in standard errors of their posteriors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput


@dataclass(frozen=True, eq=False)
class ErrorUnits:
    """Coordinates in which the mean posterior of an image is a unit ball: y = z @ factor.

    Distances between y are distances between latents in posterior standard errors, sqrt((z - z')^T P (z - z')) with P the
    mean precision. A method's own units mean nothing: a direction that the images hardly show may be long in them.

    Parameters
    ----------
    factor
        Lower triangular L of P = L L^T, shape (d, d).
    """

    factor: Float[Tensor, "d d"]

    @classmethod
    def of(cls, precision: Float[Tensor, "n d d"]) -> ErrorUnits:
        """Of the mean of the images' precisions.

        Raises
        ------
        BadInput
            If a precision is not finite, or their mean is not positive definite.
        """
        mean = precision.detach().to("cpu", torch.float64).mean(0)
        factor, failed = torch.linalg.cholesky_ex(0.5 * (mean + mean.mT))
        if not bool(torch.isfinite(mean).all()) or int(failed):
            raise BadInput("ErrorUnits: the mean precision is not positive definite. Train the run again.")
        return cls(factor)

    def coordinates(self, latents: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Latents in standard errors."""
        return latents.detach().to(self.factor) @ self.factor

    def latents(self, coordinates: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Back to latents."""
        return torch.linalg.solve_triangular(
            self.factor.T, coordinates.to(self.factor).T, upper=True
        ).T.contiguous()
