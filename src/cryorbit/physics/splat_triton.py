"""The inner loops of `physics.splat` on a GPU, in Triton: the counterpart of `splat_kernel`, used where it is asked for.

One program per image and Gaussian walks the patch in tiles of 8 x 16 pixels (`splat_triton_kernel`). Sums are added to
the grid atomically; gradients need no atomics, since each Gaussian owns its own. Nothing of the size of the patches is
written to memory, which is what plain torch must do.

Floor, by arithmetic and not by measurement, for 8,000 Gaussians in 32 images on grids of 160 pixels, patches of 12 x 12,
float32: 6 MB of fields and 3 MB of grids move once; 37 million pixels of patches at some ten operations each are 0.4 GFLOP.
Both are microseconds on a large GPU, so what the forward pass waits for should be its 37 million atomic additions, to
grids that stay in the second-level cache. Binning Gaussians by tile, one program per tile, would need no atomics and give
the same bits each run, but a million pairs of Gaussian and tile would have to be sorted for each set of poses, in several
launches that read and write all of them: the additions should cost less. Hence the last bits of a sum differ from run to
run, as those of `torch.index_add_` on a GPU do.

Torch's own CUDA builds bring Triton along, so there is no extra to install. With TRITON_INTERPRET=1 in the environment
before Triton is imported, its interpreter runs the same code on the CPU, slowly: so the tests check it without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache

import torch
from torch import Tensor

from cryorbit.physics.splat_torch import Cloud

MOST_REACH = 512.0
"""Half width of the widest patch, fine pixels: one warp walks it alone, so a Gaussian gone astray must not take minutes."""

_ROWS, _COLUMNS = 8, 16
"""Pixels of a tile, four for each thread of a warp: two rows of 64 bytes are touched at a time."""


def triton_ready(device: torch.device) -> bool:
    """Whether Triton is installed and can run on a device: a CUDA device, or the CPU where TRITON_INTERPRET=1 is set."""
    if not _installed():
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda"


def triton_holds(cloud: Cloud) -> bool:
    """Whether the kernel can draw these Gaussians where they are."""
    if not triton_ready(cloud.centre.device) or cloud.centre.dtype not in (torch.float32, torch.float64):
        return False
    return cloud.reach.numel() == 0 or float(cloud.reach.max()) < MOST_REACH


def triton_splat(cloud: Cloud, size: int) -> Tensor:
    """What `splat_torch.splat` returns, each patch as wide as its own reach; only where `triton_holds(cloud)`."""
    grid = cloud.centre.new_zeros((cloud.images, *(size,) * cloud.dim))
    nothing = grid.new_empty(0)
    _launch(cloud, grid, nothing, nothing, nothing, to_grid=True)
    return grid


def triton_gather(cloud: Cloud, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `splat_torch.gather` returns, each patch as wide as its own reach; only where `triton_holds(cloud)`."""
    b, n, d = cloud.centre.shape
    to_centre, to_weight = grid.new_empty((b, n, d)), grid.new_empty((b, n))
    to_precision = grid.new_empty((b, n) if cloud.isotropic else (b, n, d, d))
    _launch(cloud, grid.contiguous(), to_centre, to_weight, to_precision, to_grid=False)
    return to_centre, to_weight, to_precision


def _launch(cloud: Cloud, grid: Tensor, *gradients: Tensor, to_grid: bool) -> None:
    from cryorbit.physics.splat_triton_kernel import splat_patch  # imports Triton

    programs, size = cloud.centre.shape[0] * cloud.centre.shape[1], grid.shape[-1]
    if programs == 0:
        return
    fields = [t.contiguous() for t in (cloud.centre, cloud.weight, cloud.precision, cloud.reach)]
    steps = [0 if t.shape[0] == 1 else t[0].numel() for t in fields[1:]]
    # No tile is larger than the grid: a tile's pixels wrap around at most once.
    most = 1 << (size.bit_length() - 1)
    options = {
        "dim": cloud.dim,
        "isotropic": cloud.isotropic,
        "to_grid": to_grid,
        "rows": min(_ROWS, most),
        "columns": min(_COLUMNS, most),
        "num_warps": 1,
        "enable_fp_fusion": True,  # said, since Triton's default is changing
    }
    with torch.cuda.device_of(grid):
        splat_patch[(programs,)](*fields, grid, *gradients, cloud.centre.shape[1], size, *steps, **options)


@lru_cache(maxsize=1)
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
