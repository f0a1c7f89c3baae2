"""The pose benchmark, S4 and S5: phantoms whose projections and symmetry are known exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.benchmarks import pose_tasks as t
from cryorbit.benchmarks.poses import slice_encoder, training_chance, unseen
from cryorbit.geometry.rotations import geodesic_angle
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.geometry.symmetry import point_group

Row = dict[str, Any]


def s4_projection_matching(seed: int) -> Iterator[Row]:
    """The map branch against brute-force matching, with projections in closed form on both sides and on one."""
    specimen, order = t.specimen_of(t.phantom(seed=seed)), 2
    drawn = unseen(specimen, seed)
    grid = so3_grid(order).reshape(-1, 3, 3)
    centres, weights = t.phantom_balls(None, seed=seed)
    templates = torch.cat([_ball_images(centres, weights, part) for part in grid.split(512)]).flatten(1)
    flat = drawn.images.flatten(1)
    brute = (flat @ templates.mT - 0.5 * templates.square().sum(1)) / specimen.sigma**2
    yield {"method": "projection matching", **t.scores(brute, drawn.rotation, order=order), "seconds": None}
    encoder = t.encoder_with_map(specimen, order=order, fine=0)
    for method in ("slice, map, slices by the projector", "slice, map"):
        if method == "slice, map":
            encoder.set_projections(_ball_images(centres, weights, encoder.template_frames()))
        ours, seconds = t.timed(lambda: t.predict(encoder, drawn.images))
        centred = torch.stack([x - x.mean(1, keepdim=True) for x in (ours, brute)]).flatten(1)
        extra = {
            "correlation": float(torch.corrcoef(centred.double())[0, 1]),
            "same_argmax": float((ours.argmax(1) == brute.argmax(1)).float().mean()),
            "seconds": seconds,
        }
        yield {"method": method, **t.scores(ours, drawn.rotation, order=order), **extra}


def _ball_images(
    centres: Tensor, weights: Tensor, rotation: Float[Tensor, "n 3 3"]
) -> Float[Tensor, "n h w"]:
    """Projections of the phantom in closed form: the integral along the beam in pixels."""
    at = torch.einsum("nij,bj->nbi", rotation, centres)
    axis = (torch.arange(t.BOX) - t.BOX // 2) * t.PIXEL_A
    x = torch.exp(-0.5 * ((axis - at[..., :1]) / 4.0) ** 2)
    y = torch.exp(-0.5 * ((axis - at[..., 1:2]) / 4.0) ** 2)
    along = math.sqrt(2 * math.pi) * 4.0 / t.PIXEL_A
    return torch.einsum("b,nby,nbx->nyx", weights * along, y, x)


def s5_symmetry(seed: int) -> Iterator[Row]:
    """Symmetric phantoms at SNR 2: every mode of the group is found, and they share the probability evenly."""
    order = 2
    for name in ("D2", "C3"):
        group = point_group(name)
        specimen = t.specimen_of(t.phantom(group, seed=seed), snr=2.0)
        drawn = unseen(specimen, seed, 300)
        exact = t.encoder_with_map(specimen, order=order, fine=2)
        learned = slice_encoder(specimen, order=order, seed=seed)
        spent = t.train(
            learned, specimen, t.Training(seconds=30), order=order, generator=training_chance(seed)
        )
        for method, encoder, more in (
            ("slice, map", exact, {"seconds": 0.0}),
            ("slice, learned, 30 s", learned, spent),
        ):
            logits = t.predict(encoder, drawn.images)
            modes = mode_masses(logits, drawn.rotation, group, order=order)
            yield {
                "method": f"{name}: {method}",
                **symmetric_scores(logits, drawn.rotation, group, order),
                **more,
                **modes,
            }


def symmetric_scores(logits: Tensor, truth: Tensor, group: Tensor, order: int) -> Row:
    """Scores where R g is as true as R: error to the nearest, likelihood of each copy's cell averaged."""
    each = [t.scores(logits, truth @ g.float(), order=order) for g in group]
    best = so3_grid(order).reshape(-1, 3, 3)[logits.argmax(1)]
    error = torch.rad2deg(torch.stack([geodesic_angle(best, truth @ g.float()) for g in group]).amin(0))
    mean = {name: sum(row[name] for row in each) / len(each) for name in ("nll", "entropy", "coverage95")}
    return {"median_deg": float(error.median()), "within_15deg": float((error < 15).float().mean()), **mean}


def mode_masses(logits: Tensor, truth: Tensor, group: Tensor, *, order: int, top: int = 64) -> Row:
    """Share of images whose `top` cells reach every mode within 15 degrees, and how evenly mass within 30 is shared."""
    grid = so3_grid(order).reshape(-1, 9)
    copies = (truth[:, None] @ group.float()).reshape(len(truth), -1, 9)
    closeness = torch.einsum("cj,ngj->ngc", grid, copies)
    nearest, mode = closeness.max(1)
    probability = logits.softmax(1).masked_fill(nearest < 1 + 2 * math.cos(math.radians(30)), 0.0)
    mass = torch.stack([probability.masked_fill(mode != g, 0.0).sum(1) for g in range(len(group))], 1)
    share = mass / mass.sum(1, keepdim=True).clamp_min(1e-12) * len(group)
    at = logits.topk(top, 1).indices
    reach = closeness.gather(2, at[:, None].expand(-1, len(group), -1)).amax(2)
    found = (reach > 1 + 2 * math.cos(math.radians(15))).all(1)
    return {
        "all_modes_found": float(found.float().mean()),
        "mode_share_mean_min": float(share.mean(0).min()),
        "mode_share_mean_max": float(share.mean(0).max()),
        "share_within_20pc": float(((share - 1).abs() < 0.2).all(1).float().mean()),
        "mass_near_modes": float(mass.sum(1).mean()),
    }
