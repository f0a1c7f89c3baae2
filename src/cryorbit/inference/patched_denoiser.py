"""A denoiser of small maps made into one of large maps: overlapping patches, blended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.models.score import Denoiser


@dataclass(frozen=True, eq=False)
class PatchedDenoiser:
    """Patches of `box` voxels that overlap by half or more, each denoised by itself, blended by cosine windows.

    A map of `box` voxels or fewer goes to the inner denoiser as it is. Cost and, where the molecule is larger than a patch,
    what the prior can know: a patch sees a piece of the molecule cut off by its window.
    """

    inner: Denoiser
    box: int

    @property
    def sigma_data(self) -> float:
        """Of the inner denoiser."""
        return self.inner.sigma_data

    def starts(self, n: int) -> list[int]:
        """First voxel of each patch along one axis of a map of n voxels."""
        if n <= self.box:
            return [0]
        steps = -(-(n - self.box) // (self.box // 2))
        return [round(i * (n - self.box) / steps) for i in range(steps + 1)]

    def __call__(
        self, x: Float[Tensor, "b 1 n n n"], sigma: Float[Tensor, "b"]
    ) -> Float[Tensor, "b 1 n n n"]:
        """Mean of the clean maps given the noisy ones."""
        n, box = x.shape[-1], self.box
        if n <= box:
            return self.inner(x, sigma)
        at = (torch.arange(box, device=x.device, dtype=x.dtype) + 0.5) / box
        ramp = torch.sin(torch.pi * at).square() + 1e-3
        window = ramp[:, None, None] * ramp[:, None] * ramp
        total, weight = torch.zeros_like(x), torch.zeros_like(x[:1])
        for z in self.starts(n):
            for y in self.starts(n):
                for w in self.starts(n):
                    place = (..., slice(z, z + box), slice(y, y + box), slice(w, w + box))
                    total[place] += window * self.inner(x[place], sigma)
                    weight[place] += window
        return total / weight
