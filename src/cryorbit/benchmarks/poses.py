"""The pose benchmark, S1 to S3: what encoders know about the orientation of unseen images, against Bayes and chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryorbit.benchmarks import pose_tasks as t
from cryorbit.errors import BadInput
from cryorbit.geometry.harmonics import in_plane_series
from cryorbit.geometry.rotations import axis_rotation
from cryorbit.geometry.so3_grid import n_in_plane
from cryorbit.models.pose_encoder import PoseEncoder, make_encoder, seeded
from cryorbit.models.slice_encoder import SliceEncoder, SliceSettings
from cryorbit.models.so3_losses import entropy_nats, n_cells

Row = dict[str, Any]
TEST_IMAGES = 1000

I2S_BATCH: Row = {"batch": 32, "copies": 1}

BAYES = "Bayes, grid points"
"""Exhaustive posterior at the grid's points: the published table's reference row."""

BAYES_CELLS = "Bayes, cells"
"""The same, summed over 64 (15 degrees) or 8 (7.5 degrees) points per cell: the posterior of the cells themselves."""

PUBLISHED: tuple[Row, ...] = (
    {
        "task": "S2",
        "method": "note: Bayes, grid points",
        "median_deg": 13.5,
        "within_15deg": 0.60,
        "nll": 2.72,
    }
    | {"entropy": 1.48, "seconds": 0.4},
    {
        "task": "S2",
        "method": "note: induced net, lmax 8",
        "median_deg": 17.5,
        "within_15deg": 0.43,
        "nll": 3.22,
    }
    | {"entropy": 3.08, "seconds": 17.0},
    {
        "task": "S2",
        "method": "note: Image2Sphere style",
        "median_deg": 24.2,
        "within_15deg": 0.33,
        "nll": 3.90,
    }
    | {"entropy": 4.11, "seconds": 216.0},
    {
        "task": "S3",
        "method": "note: Bayes, grid points",
        "median_deg": 10.1,
        "within_15deg": 0.71,
        "nll": 3.83,
    }
    | {"entropy": 3.25, "seconds": 2.0},
)
"""Measured earlier on another machine, one seed, 300 images, blur of the map not stated."""


def published_rows() -> list[Row]:
    """Rows of others, marked so."""
    return [{"seed": None, "coverage95": None, "published": True, **row} for row in PUBLISHED]


def slice_encoder(specimen: t.Specimen, *, order: int, seed: int, **options: Any) -> SliceEncoder:
    """A learned slice encoder, told the noise but not the map; linear with harmonics to degree 10 unless told."""
    options = {"depth": 0, "l_max": 10, "fine": 0} | options
    settings = SliceSettings(box=t.BOX, order=order, max_radius=t.MAX_RADIUS, **options)
    with seeded(torch.Generator().manual_seed(1000 + seed)):
        encoder = SliceEncoder(settings)
    encoder.set_noise(specimen.noise_power() or 1.0)
    return encoder


def unseen(specimen: t.Specimen, seed: int, n: int = TEST_IMAGES) -> t.Drawn:
    """Images that no training sees: a generator of their own."""
    return specimen.draw(n, torch.Generator().manual_seed(77_000 + seed))


def training_chance(seed: int) -> torch.Generator:
    """Draws training images."""
    return torch.Generator().manual_seed(seed)


def s1_equivariance(path: Path, seed: int) -> Iterator[Row]:
    """Turns of the image by 90 and 17 degrees, and the poster's measure beside the entropy."""
    specimen, order = t.specimen_of_atoms(path), 2
    drawn = unseen(specimen, seed, 200)
    encoders: dict[str, tuple[PoseEncoder, float]] = {
        "slice, map": (t.encoder_with_map(specimen, order=order, fine=1), 0.0),
        "slice, learned linear": (slice_encoder(specimen, order=order, seed=seed), 8.0),
        "slice, learned depth 2": (slice_encoder(specimen, order=order, seed=seed, depth=2, l_max=8), 15.0),
        "Image2Sphere": (make_encoder("i2s", box=t.BOX, order=order, generator=training_chance(seed)), 30.0),
    }
    for method, (encoder, seconds) in encoders.items():
        spent: Row = {"seconds": 0.0}
        if seconds:
            plan = t.Training(seconds=seconds, rate=2e-3, **(I2S_BATCH if method == "Image2Sphere" else {}))
            spent = t.train(encoder, specimen, plan, order=order, generator=training_chance(seed))
        logits = t.predict(encoder, drawn.images)
        extra = _turn_by_90(encoder, drawn.images, logits, order)
        if isinstance(encoder, SliceEncoder) and encoder.learned is not None:
            extra["turn17_kl"] = _turn_by_17(encoder, specimen, drawn.rotation, order)
        yield {"method": method, **t.scores(logits, drawn.rotation, order=order), **spent, **extra}
    uniform = torch.zeros(200, n_cells(order))
    zero = {"turn90_relative": None, "turn90_mse_mean": 0.0, "turn90_mse_min": 0.0, "turn90_mse_max": 0.0}
    chance = {"median_deg": None, "within_15deg": None, "nll": math.log(n_cells(order)), "coverage95": None}
    yield {
        "method": "uniform prediction",
        **chance,
        "entropy": float(entropy_nats(uniform).mean()),
        "seconds": 0.0,
    } | zero


def _turn_by_90(encoder: PoseEncoder, images: Tensor, logits: Tensor, order: int) -> Row:
    """Predictions of turned images against turned predictions: relative error of log p, and MSE of probability maps."""
    turned = torch.rot90(images, 1, (-1, -2)).roll(1, -1)  # about pixel box // 2, from x towards y
    quarter = n_in_plane(order) // 4
    after = t.predict(encoder, turned).log_softmax(1).unflatten(1, (-1, n_in_plane(order)))
    # R at psi becomes Rz(90) R at psi - 90.
    after = after.roll(quarter, 2).flatten(1)
    before = logits.log_softmax(1)
    mse = (after.exp() - before.exp()).square().mean(1)
    return {
        "turn90_relative": float((after - before).norm() / before.norm()),
        "turn90_mse_mean": float(mse.mean()),
        "turn90_mse_min": float(mse.min()),
        "turn90_mse_max": float(mse.max()),
    }


def _turn_by_17(encoder: SliceEncoder, specimen: t.Specimen, rotation: Tensor, order: int) -> float:
    """KL between the prediction turned by 17 degrees and that of the clean image at the turned pose, nats."""
    angle, n = math.radians(17), n_in_plane(order)
    about_z = axis_rotation("z", torch.tensor(angle, dtype=torch.float64)).float()
    learned = encoder.learned
    if learned is None:
        raise BadInput("The turn by 17 degrees is measured on the learned branch; this encoder has none.")
    log_p = []
    with torch.no_grad():
        for pose, ahead in ((rotation, angle), (about_z @ rotation, 0.0)):
            circle = encoder.whitened(encoder.rings(specimen.project(pose)))
            start = math.pi / n + ahead
            values = in_plane_series(learned.harmonics(circle), n, start_rad=start)
            level = 0.5 * (learned.bias + learned.bias[learned.pairs.partner])
            log_p.append((values + level[:, None]).flatten(1).log_softmax(1))
    return float((log_p[0].exp() * (log_p[0] - log_p[1])).sum(1).mean())


def s2_supervised(path: Path, seed: int) -> Iterator[Row]:
    """Unseen noisy images, 15-degree grid, at most 20 s of training on one core."""
    specimen, order = t.specimen_of_atoms(path), 2
    drawn = unseen(specimen, seed)

    def row(method: str, logits: Tensor, **more: Any) -> Row:
        return {"method": method, **t.scores(logits, drawn.rotation, order=order), **more}

    yield {
        "method": "chance",
        **t.chance_scores(TEST_IMAGES, order=order, generator=training_chance(seed)),
        "seconds": 0.0,
    }
    logits, seconds = t.timed(lambda: t.grid_posterior(specimen, drawn.images, order=order))
    yield row(BAYES, logits, seconds=seconds)
    exact = t.encoder_with_map(specimen, order=order, fine=2)
    logits, seconds = t.timed(lambda: t.predict(exact, drawn.images))
    yield row(BAYES_CELLS, logits, seconds=seconds)
    for method, fine in (("slice, map", 1), ("slice, map, fine", 2)):
        encoder, seconds = _timed_map(specimen, order, fine)
        yield row(method, t.predict(encoder, drawn.images), seconds=seconds)
    both = slice_encoder(specimen, order=order, seed=seed, fine=1)
    both.set_map(specimen.volume)
    plans: list[tuple[str, PoseEncoder, t.Training]] = [
        ("slice, map + learned, 10 s", both, t.Training(seconds=10, rate=3e-4)),
        ("slice, learned, 20 s", slice_encoder(specimen, order=order, seed=seed), t.Training(seconds=20)),
        (
            "slice, learned at exact R, 20 s",
            slice_encoder(specimen, order=order, seed=seed),
            t.Training(seconds=20, loss="exact"),
        ),
        (
            "slice, learned depth 2, 20 s",
            slice_encoder(specimen, order=order, seed=seed, depth=2),
            t.Training(seconds=20, rate=2e-3),
        ),
        (
            "slice, distilled, 20 s",
            slice_encoder(specimen, order=order, seed=seed),
            t.Training(seconds=20, loss="distil", rate=4e-3),
        ),
        (
            "Image2Sphere, 20 s",
            make_encoder("i2s", box=t.BOX, order=order, generator=training_chance(seed)),
            t.Training(seconds=20, rate=2e-3, **I2S_BATCH),
        ),
    ]
    teacher = t.encoder_with_map(specimen, order=order, fine=1)
    for method, encoder, plan in plans:
        spent = t.train(
            encoder, specimen, plan, order=order, generator=training_chance(seed), teacher=teacher
        )
        yield row(method, t.predict(encoder, drawn.images), **spent)


def _timed_map(specimen: t.Specimen, order: int, fine: int) -> tuple[SliceEncoder, float]:
    made: list[SliceEncoder] = []

    def make() -> Tensor:
        made.append(t.encoder_with_map(specimen, order=order, fine=fine))
        return made[0].noise

    _, seconds = t.timed(make)
    return made[0], seconds


def s3_refined(path: Path, seed: int) -> Iterator[Row]:
    """7.5-degree grid, then the best 8 cells refined on the image."""
    specimen, order, n = t.specimen_of_atoms(path), 3, 500
    drawn = unseen(specimen, seed, n)
    yield {
        "method": "chance",
        **t.chance_scores(n, order=order, generator=training_chance(seed)),
        "seconds": 0.0,
    }
    learned = slice_encoder(specimen, order=order, seed=seed, l_max=14)
    exact = t.encoder_with_map(specimen, order=order, fine=1)
    spent = t.train(learned, specimen, t.Training(seconds=90), order=order, generator=training_chance(seed))
    work: list[tuple[str, Callable[[], Tensor], Row]] = [
        (BAYES, lambda: t.grid_posterior(specimen, drawn.images, order=order), {}),
        (BAYES_CELLS, lambda: t.predict(exact, drawn.images), {}),
        ("slice, learned, 90 s", lambda: t.predict(learned, drawn.images), spent),
    ]
    for method, make, more in work:
        logits, seconds = t.timed(make)
        yield {"method": method, **t.scores(logits, drawn.rotation, order=order), "seconds": seconds, **more}
        refined, extra = t.timed(lambda at=logits: t.refine_top(specimen, drawn, at, order=order))
        blank = {"nll": None, "entropy": None, "coverage95": None}
        spent_s = {"seconds": round(float(more.get("seconds", seconds)) + extra, 2)}
        yield {
            "method": f"{method}, top 8 refined",
            **t.angle_scores(refined, drawn.rotation),
            **blank,
            **spent_s,
        }
