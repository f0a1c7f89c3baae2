"""S6: the poster's training signals, replicated: few clean projections, a map of 1 / MSE and its mask of the top 5 %."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.benchmarks import pose_tasks as t
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.models.pose_encoder import make_encoder
from cryorbit.models.so3_losses import cell_of

SIZES = (50, 100, 200, 400)
EPOCHS = 200
TARGETS = ("1/MSE", "top 5 % of 1/MSE", "cell of the truth (NLL)")
MASK_SHARE = 0.05


def inverse_mse(images: Float[Tensor, "n h w"], templates: Float[Tensor, "c p"]) -> Float[Tensor, "n c"]:
    """1 / mean squared difference between images and projections, normalised to sum 1."""
    flat = images.flatten(1)
    squared = flat.square().sum(1)[:, None] + templates.square().sum(1) - 2 * flat @ templates.mT
    inverse = 1 / (squared / flat.shape[1]).clamp_min(1e-9 * float(squared.mean()))
    return inverse / inverse.sum(1, keepdim=True)


def top_mask(soft: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The same for the largest 5 % of cells, 0 elsewhere; sums to 1."""
    keep = round(MASK_SHARE * soft.shape[1])
    return torch.zeros_like(soft).scatter_(1, soft.topk(keep, 1).indices, 1 / keep)


def s6_poster(path: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Image2Sphere of degree 4 as in the poster, Adam at 1e-3, 200 epochs, on 50 to 400 stored clean projections."""
    noisy, order = t.specimen_of_atoms(path), 2
    clean = t.Specimen(noisy.volume, noisy.prepared, 0.0)
    grid = so3_grid(order).reshape(-1, 3, 3)
    templates = clean.project(grid).flatten(1)
    test = clean.draw(300, torch.Generator().manual_seed(77_000 + seed))
    for n in SIZES:
        drawn = clean.draw(n, torch.Generator().manual_seed(seed))
        soft = inverse_mse(drawn.images, templates)
        cell = cell_of(drawn.rotation, order=order)
        sharp = torch.zeros_like(soft).scatter_(1, cell[:, None], 1.0)
        for name, target in zip(TARGETS, (soft, top_mask(soft), sharp), strict=True):
            generator = torch.Generator().manual_seed(seed)
            encoder = make_encoder("i2s", box=t.BOX, order=order, l_max=4, width=0.5, generator=generator)
            start = time.process_time()
            _fit(encoder, drawn.images, target, generator)
            seconds = round(time.process_time() - start, 1)
            logits = t.predict(encoder, test.images)
            entropy = -(target * target.clamp_min(1e-30).log()).sum(1).mean()
            extra = {"images": n, "target_entropy": float(entropy), "seconds": seconds}
            yield {"method": f"{n} images, {name}", **t.scores(logits, test.rotation, order=order), **extra}
    chance = t.chance_scores(300, order=order, generator=torch.Generator().manual_seed(seed))
    yield {"method": "chance", **chance, "seconds": 0.0}


def _fit(
    encoder: torch.nn.Module,
    images: Float[Tensor, "n h w"],
    target: Float[Tensor, "n c"],
    generator: torch.Generator,
) -> None:
    """Cross-entropy against the target, batches of 50."""
    optimiser = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=generator).split(50):
            log_p = encoder(images[rows]).logits.log_softmax(1)
            optimiser.zero_grad()
            (-(target[rows] * log_p).sum(1).mean()).backward()
            optimiser.step()
