"""What an encoder sees first: the image under five blurs, each of unit contrast. Commutes with D4 exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

VARIANCES_PX2 = (0.01, 0.1, 1.0, 10.0, 100.0)
"""cryoAI's filters; the first leaves the image as it is, the last is cut off by the kernel, close to a box."""
SIZE_PX = 11
MEAN, DEVIATION = 0.45, 0.226
"""Of each channel of each image afterwards; cryoAI's values, after ImageNet's."""
N_CHANNELS = len(VARIANCES_PX2)


def gaussian_kernels() -> Float[Tensor, "c k"]:
    """The one-dimensional filters, rows summing to 1; symmetric to the last bit."""
    x = torch.arange(SIZE_PX, dtype=torch.float64) - SIZE_PX // 2
    variances = torch.tensor(VARIANCES_PX2, dtype=torch.float64)[:, None]
    kernels = torch.exp(-0.5 * x**2 / variances)
    return kernels / kernels.sum(-1, keepdim=True)


class FilterBank(nn.Module):
    """Images (b, h, h) to (b, 5, h, h): blurred with reflected edges, then mean 0.45, deviation 0.226 per channel.

    So an encoder that begins here does not depend on the scale and offset of the images, as long as their deviation
    is well above 1e-6. Both passes of the separable blur are linear maps of the rows, done as products with a matrix
    that includes the reflection.
    """

    def __init__(self, box: int) -> None:
        super().__init__()
        kernels, half = gaussian_kernels(), SIZE_PX // 2
        edge = F.pad(torch.eye(box, dtype=torch.float64)[None], (half, half), mode="reflect")[0]
        matrix = torch.einsum("ck,yik->cyi", kernels, edge.unfold(1, SIZE_PX, 1))
        self.register_buffer("_blur", matrix.float(), persistent=False)

    _blur: Tensor

    def forward(self, images: Float[Tensor, "b h h"]) -> Float[Tensor, "b c h h"]:
        """Blur and normalise."""
        centred = images - images.mean((-2, -1), keepdim=True)
        blurred = self._blur.mT @ centred[:, None] @ self._blur
        return F.layer_norm(blurred, blurred.shape[-2:], eps=1e-12).mul_(DEVIATION).add_(MEAN)
