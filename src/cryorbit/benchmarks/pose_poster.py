"""S6: the poster's training signals, replicated: few clean projections, a map of 1 / MSE and its mask of the top 5 %.

The same stored projections, epochs and step size for every row. The poster's two targets use the known map at every cell;
the likelihood uses the true rotation alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.benchmarks import pose_tasks as t
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.models.pose_encoder import PoseEncoder, make_encoder, seeded
from cryorbit.models.slice_encoder import SliceEncoder, SliceSettings
from cryorbit.models.so3_losses import cell_nll, cell_of, exact_nll

SIZES = (50, 100, 200, 400)
EPOCHS = 200
MASK_SHARE = 0.05
FRESH_NOISE = 0.5
"""Of the table's noise, drawn anew in every epoch."""


@dataclass(frozen=True)
class Recipe:
    """A network and what it is trained on."""

    network: Literal["i2s", "slice"]
    target: Literal["1/MSE", "mask", "cell", "exact"]

    @property
    def name(self) -> str:
        """As in the table.

        >>> Recipe("i2s", "mask").name
        'Image2Sphere, top 5 % of 1/MSE'
        """
        network = {"i2s": "Image2Sphere", "slice": "slice"}[self.network]
        said = {"mask": "top 5 % of 1/MSE", "cell": "NLL of the cell", "exact": "NLL at exact R, fresh noise"}
        return f"{network}, {said.get(self.target, self.target)}"


RECIPES = (
    Recipe("i2s", "1/MSE"),
    Recipe("i2s", "mask"),
    Recipe("i2s", "cell"),
    Recipe("i2s", "exact"),
    Recipe("slice", "1/MSE"),
    Recipe("slice", "mask"),
    Recipe("slice", "exact"),
)


def inverse_mse(images: Float[Tensor, "n h w"], templates: Float[Tensor, "c p"]) -> Float[Tensor, "n c"]:
    """1 / mean squared difference between images and projections, normalised to sum 1."""
    flat = images.flatten(1)
    squared = flat.square().sum(1)[:, None] + templates.square().sum(1) - 2 * flat @ templates.mT
    inverse = 1 / squared.clamp_min(1e-9 * float(squared.mean()))
    return inverse / inverse.sum(1, keepdim=True)


def top_mask(soft: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The same for the largest 5 % of cells, 0 elsewhere; sums to 1."""
    keep = round(MASK_SHARE * soft.shape[1])
    return torch.zeros_like(soft).scatter_(1, soft.topk(keep, 1).indices, 1 / keep)


def s6_poster(path: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Degree 4 and Adam at 1e-3 as in the poster, 200 epochs, 50 to 400 stored clean projections; unseen clean tests."""
    noisy, order = t.specimen_of_atoms(path), 2
    clean = t.Specimen(noisy.volume, noisy.prepared, 0.0)
    templates = clean.project(so3_grid(order).reshape(-1, 3, 3)).flatten(1)
    test = clean.draw(300, torch.Generator().manual_seed(77_000 + seed))
    for n in SIZES:
        drawn = clean.draw(n, torch.Generator().manual_seed(seed))
        soft = inverse_mse(drawn.images, templates)
        targets = {"1/MSE": soft, "mask": top_mask(soft)}
        for recipe in RECIPES:
            target = targets.get(recipe.target)
            encoder, start = _network(recipe, noisy, seed), time.process_time()
            _fit(encoder, recipe, drawn, target, noise=FRESH_NOISE * noisy.sigma, seed=seed)
            extra: dict[str, Any] = {"images": n, "seconds": round(time.process_time() - start, 1)}
            if target is not None:
                extra["target_entropy"] = float(-(target * target.clamp_min(1e-30).log()).sum(1).mean())
            scores = t.scores(t.predict(encoder, test.images), test.rotation, order=order)
            yield {"method": f"{n}: {recipe.name}", **scores, **extra}
    chance = t.chance_scores(300, order=order, generator=torch.Generator().manual_seed(seed))
    yield {"method": "chance", **chance, "seconds": 0.0}


def _network(recipe: Recipe, specimen: t.Specimen, seed: int) -> PoseEncoder:
    generator = torch.Generator().manual_seed(seed)
    if recipe.network == "i2s":
        return make_encoder("i2s", box=t.BOX, order=2, l_max=4, width=0.5, generator=generator)
    with seeded(generator):
        encoder = SliceEncoder(
            SliceSettings(box=t.BOX, order=2, max_radius=t.MAX_RADIUS, depth=0, l_max=8, fine=0)
        )
    encoder.set_noise(specimen.noise_power())
    return encoder


def _fit(
    encoder: PoseEncoder, recipe: Recipe, drawn: t.Drawn, target: Tensor | None, *, noise: float, seed: int
) -> None:
    """Cross-entropy against the target, or the likelihood; batches of 50."""
    generator, order = torch.Generator().manual_seed(seed), 2
    grid, cell = so3_grid(order).reshape(-1, 3, 3), cell_of(drawn.rotation, order=order)
    # The linear network has no layers to scale its steps.
    optimiser = torch.optim.Adam(encoder.parameters(), lr=1e-3 if recipe.network == "i2s" else 3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(cell), generator=generator).split(50):
            images = drawn.images[rows]
            if recipe.target == "exact":
                images = images + noise * torch.randn(images.shape, generator=generator)
            logits = encoder(images).logits
            if target is not None:
                loss = -(target[rows] * logits.log_softmax(1)).sum(1)
            elif recipe.target == "exact":
                loss = exact_nll(logits, drawn.rotation[rows], grid=grid, order=order)
            else:
                loss = cell_nll(logits, cell[rows])
            optimiser.zero_grad()
            loss.mean().backward()
            optimiser.step()
