"""Where each particle points: the posterior on the whole grid of poses, then its best modes refined continuously."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.geometry.conventions import in_plane_rotation
from cryorbit.inference.observations import Observations, crop_images
from cryorbit.inference.refine import DiskData, RefinedPoses, half_disk, refine_poses
from cryorbit.inference.ring_em import View, ring_data
from cryorbit.inference.search import image_matrix, normalise, score

N_MODES = 3
"""Modes of the posterior that are refined and compared."""
MODE_APART_DEG = 20.0
FLOOR = 0.03
"""Share of the images' power taken as noise at least, in refinement."""


@dataclass(frozen=True, eq=False)
class Located:
    """Poses of some images with what the whole posterior says of them; shifts in pixels of the box."""

    rotation: Float[Tensor, "n 3 3"]
    shift_px: Float[Tensor, "n 2"]
    log_likelihood: Float[Tensor, "n"]
    confidence: Float[Tensor, "n"]
    """Posterior probability of the chosen mode against the other modes."""
    entropy: Float[Tensor, "n"]
    """Of the posterior on the grid, in nats relative to the uniform distribution (0: nothing is known)."""
    explained: Float[Tensor, "n"]
    """See `RefinedPoses`; so for the next two."""
    deviation: Float[Tensor, "n"]
    angle_sd_deg: Float[Tensor, "n"]


def disk_data(
    observed: Observations,
    rows: Int[Tensor, "n"],
    transforms: Complex[Tensor, "n box half"],
    radius: float,
    *,
    inner: float = 0.5,
) -> DiskData:
    """Whitened half-disk data of images for `refine_poses`, from `inner` to `radius` Fourier pixels."""
    points = half_disk(radius, inner=inner)
    centre = observed.box // 2
    values = transforms[:, points[:, 1].long() + centre, points[:, 0].long()]
    values = observed.undo_odd_phase(values, rows, points)
    deviation = observed.noise_of(rows, points.norm(dim=1), floor=FLOOR).sqrt()
    return DiskData(values / deviation, observed.ctf(rows, points) / deviation, points, observed.box)


@dataclass(frozen=True, eq=False)
class Modes:
    """The best separate modes of each posterior on the grid."""

    rotation: Float[Tensor, "n k 3 3"]
    shift_px: Float[Tensor, "n k 2"]
    entropy: Float[Tensor, "n"]


def grid_modes(
    observed: Observations,
    rows: Int[Tensor, "n"],
    cropped: Float[Tensor, "n c c"],
    view: View,
    group: Float[Tensor, "g 3 3"],
) -> Modes:
    """Exact posterior of each image on the grid of `view`; its best modes, at least 20 degrees apart."""
    data = ring_data(observed, rows, cropped, view.grid, view.kernel, floor=FLOOR)
    rotations, shifts, entropies = [], [], []
    for i in range(len(rows)):
        one = data[i : i + 1]
        scores = score(one, image_matrix(one, view.plan), view.plan, view.templates)
        over_shift = scores[:, 0].amax(1)  # psi, v
        flat = over_shift.flatten().topk(min(192, over_shift.numel())).indices
        psi, v = flat // over_shift.shape[1], flat % over_shift.shape[1]
        candidates = in_plane_rotation(psi.float() * (2 * math.pi / view.plan.n_psi)) @ view.rotations[v]
        keep = _separate(candidates, group)
        rotations.append(candidates[keep])
        shifts.append(view.shifts_px[scores[psi[keep], 0, :, v[keep]].argmax(1)])
        entropies.append(normalise(scores).entropy[0] - math.log(scores.numel()))
    return Modes(torch.stack(rotations), torch.stack(shifts), torch.stack(entropies))


def _separate(candidates: Float[Tensor, "c 3 3"], group: Float[Tensor, "g 3 3"]) -> Int[Tensor, "k"]:
    """Greedy choice of N_MODES rotations, best first, each MODE_APART_DEG from those before; repeats fill up.

    Rotations that the symmetry makes equal count as one.
    """
    limit = 1 + 2 * math.cos(math.radians(MODE_APART_DEG))
    free = torch.ones(len(candidates), dtype=torch.bool)
    keep: list[int] = []
    mates = (candidates[:, None] @ group).reshape(len(candidates), -1, 9)
    for _ in range(N_MODES):
        left = torch.nonzero(free)[:, 0]
        chosen = int(left[0]) if len(left) else keep[0]
        keep.append(chosen)
        free &= (mates @ candidates[chosen].reshape(9)).amax(1) < limit
    return torch.tensor(keep)


def locate(
    observed: Observations,
    rows: Int[Tensor, "n"],
    view: View,
    half: Complex[Tensor, "p p h"],
    group: Float[Tensor, "g 3 3"],
    *,
    radius: int,
    iterations: int,
    shift_sd_px: float,
    crop: int,
    known: tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 2"]] | None = None,
) -> Located:
    """Search the whole grid, refine the best modes at `radius`, and keep the most likely one of each image.

    Poses `known` from before (rotation, shift in pixels) compete with the modes.
    """
    transforms = observed.transforms(rows)
    modes = grid_modes(observed, rows, crop_images(transforms, crop), view, group)
    data = disk_data(observed, rows, transforms, radius)
    n, k = modes.rotation.shape[:2]
    tried: list[RefinedPoses] = []
    if known is not None:
        tried.append(refine_poses(data, half, *known, iterations=iterations, shift_sd_px=shift_sd_px))
    for j in range(k):
        # First at low frequencies, whose basin is wider than a cell of the grid.
        start = refine_poses(
            data.within(0.6 * radius),
            half,
            modes.rotation[:, j],
            modes.shift_px[:, j],
            iterations=2,
            shift_sd_px=shift_sd_px,
        )
        tried.append(
            refine_poses(
                data, half, start.rotation, start.shift_px, iterations=iterations, shift_sd_px=shift_sd_px
            )
        )
    likelihood = torch.stack([t.log_likelihood for t in tried], 1)
    rotation = torch.stack([t.rotation for t in tried], 1)
    best = likelihood.argmax(1)
    every = torch.arange(n)
    same = _close(rotation, rotation[every, best], group)
    share = torch.softmax(likelihood, 1)
    # Modes that ran into the same place are one.
    other = (share * ~same).sum(1)
    shift = torch.stack([t.shift_px for t in tried], 1)
    return Located(
        rotation[every, best],
        shift[every, best],
        likelihood[every, best],
        1 - other,
        modes.entropy,
        *(
            torch.stack([getattr(t, name) for t in tried], 1)[every, best]
            for name in ("explained", "deviation", "angle_sd_deg")
        ),
    )


def _close(
    rotation: Float[Tensor, "n k 3 3"], chosen: Float[Tensor, "n 3 3"], group: Float[Tensor, "g 3 3"]
) -> Tensor:
    """Whether each rotation is within half of MODE_APART_DEG of the chosen one or of a symmetry mate of it."""
    mates = chosen[:, None] @ group
    trace = torch.einsum("nkij,ngij->nkg", rotation, mates).amax(-1)
    return trace > 1 + 2 * math.cos(math.radians(MODE_APART_DEG / 2))
