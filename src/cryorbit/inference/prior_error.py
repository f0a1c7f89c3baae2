"""Room for what a learned prior gets wrong: the data correct a posterior map by as much as held-out data approve of.

Where data are good, a sampler believes the denoiser at levels of noise far below what it was taught to resolve. The map
is therefore taken as m + error, the error Gaussian with standard deviation S(r) = t sqrt(max(m(r), 0) / max m), in
proportion to the molecule's own noise-like detail and nil in the solvent, and

    v = m + S (1 + S W S)^-1 S (B - W m)

is the mean given the data. t is the one whose maps from one half of the data explain the other half best; 0 leaves m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.fourier.filters import low_pass
from cryorbit.inference.posterior_data import TwoVolumes

TRIED = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Values of t, in standard deviations of the prior's maps."""
_STEPS, _TOLERANCE = 60, 1e-3
_SMOOTH_VOXELS = 4.0
"""Resolution at which the molecule's own density is looked at, voxels."""


@dataclass(frozen=True, eq=False)
class ErrorModel:
    """S(r): where, and by how much, the prior's maps may be wrong."""

    deviation: Float[Tensor, "n n n"]

    @classmethod
    def of(cls, m: Float[Tensor, "n n n"], t: float) -> ErrorModel:
        """Around a map, of size t."""
        smooth = low_pass(m, resolution_A=_SMOOTH_VOXELS, pixel_size_A=1.0, ndim=3).clamp_min(0)
        return cls(t * (smooth / smooth.max().clamp_min(1e-30)).sqrt())

    def corrected(self, m: Float[Tensor, "*batch n n n"], data: TwoVolumes) -> Float[Tensor, "*batch n n n"]:
        """The mean of the map given the data, m being the prior's word."""
        return self._moved(m, data.gradient(m), data)

    def drawn(
        self, m: Float[Tensor, "*batch n n n"], data: TwoVolumes, *, generator: torch.Generator
    ) -> Float[Tensor, "*batch n n n"]:
        """A draw of the map given the data, m being a draw of the posterior: what the correction leaves open is in it.

        The data's noise is drawn with the diagonal of W, which is not all of W: slices fall between its points.
        """
        first, second = (torch.randn(m.shape, generator=generator).to(m) for _ in range(2))
        moved = m + self.deviation * first
        noise = data.filtered(second, data.weight.clamp_min(0).sqrt())
        return self._moved(moved, data.gradient(moved) + noise, data)

    def _moved(self, m: Tensor, slope: Tensor, data: TwoVolumes) -> Tensor:
        """The map plus S x, where (1 + S W S) x = S slope; conjugate gradients."""
        s = self.deviation
        if not bool((s > 0).any()):
            return m
        right = s * slope
        x, residual = torch.zeros_like(right), right
        step, size = residual, _dot(residual)
        target = _TOLERANCE**2 * size
        for _ in range(_STEPS):
            if not bool((size > target).any()):
                break
            moved = step + s * data.apply(s * step)
            length = size / (step * moved).sum((-3, -2, -1), keepdim=True).clamp_min(1e-30)
            x, residual = x + length * step, residual - length * moved
            before, size = size, _dot(residual)
            step = residual + size / before.clamp_min(1e-30) * step
        return m + s * x


def held_out_size(
    maps: Sequence[Float[Tensor, "n n n"]],
    data: Sequence[TwoVolumes],
    *,
    sizes: Sequence[float] = TRIED,
) -> tuple[float, dict[float, float]]:
    """The t whose corrected maps of either half explain the other half best, and the misfit of each that was tried.

    Parameters
    ----------
    maps, data
        Posterior maps of two halves of the data, and the halves.
    """
    (first, second), (one, two) = maps, data
    misfit = {
        t: float(two.chi_square(ErrorModel.of(first, t).corrected(first, one)))
        + float(one.chi_square(ErrorModel.of(second, t).corrected(second, two)))
        for t in sizes
    }
    return min(misfit, key=lambda t: misfit[t]), misfit


def _dot(a: Tensor) -> Tensor:
    return a.square().sum((-3, -2, -1), keepdim=True)
