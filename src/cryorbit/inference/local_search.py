"""Poses near given ones: branch and bound on nested grids of turns and shifts.

A coarse grid of turns about the given pose is compared at low frequencies; the best branches are divided, each child half as
far from its neighbours and compared at twice the radius, until the full radius is reached. A branch is cut when even the
most that the frequencies not yet compared can add would not bring it up to the best: a right pose gains the map's power P
there, give or take the noise sqrt(2 P) (`SURE` of them are allowed for). Shifts are searched around each turn by phase
ramps on the one slice. Of what is left `refine.refine_poses` finds the tops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.inference.effort import count_evaluations
from cryorbit.inference.refine import DiskData
from cryorbit.physics.interpolation import gather

KEEP = 4
"""Branches of an image at most."""
SURE = 4.0
"""Standard deviations of noise by which what is still to come may help a branch."""
RIM_PHASE = 1.0
"""Turn between neighbours of a grid, as phase at the particle's rim, radians at the radius compared."""
SHIFTS_PER_WAVE = 5.0


@dataclass(frozen=True)
class Near:
    """How far to look."""

    turn_deg: float
    """Largest turn away from the given pose."""
    shift_px: float
    """Largest shift away from it, pixels."""


@torch.no_grad()
def search_near(
    data: DiskData,
    half: Complex[Tensor, "p p h"],
    rotation: Float[Tensor, "n 3 3"],
    shift_px: Float[Tensor, "n 2"],
    near: Near,
    *,
    particle_radius_px: float,
    shift_sd_px: float,
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 2"]]:
    """The best pose of each image on the finest grid; the given one where nothing else is better.

    Parameters
    ----------
    data
        Whitened half disk out to the full radius.
    half
        Stored half of the map's transform, on a lattice twice as fine as a Fourier pixel.
    """
    full = float(data.points.square().sum(1).max().sqrt())
    levels = _radii(full, near, rim=2 * math.pi * particle_radius_px / data.box)
    spacing = RIM_PHASE / (levels[0] * 2 * math.pi * particle_radius_px / data.box)
    step_px = data.box / (SHIFTS_PER_WAVE * levels[0])
    turns = _ball(math.radians(near.turn_deg), spacing)
    shifts = _disc(near.shift_px, step_px)
    rotation, shift_px = rotation[:, None], shift_px[:, None]
    alive = torch.ones(rotation.shape[:2], dtype=torch.bool)
    for level, radius in enumerate(levels):
        part = data.within(radius)
        rotation = (rotvec_to_matrix(turns)[None, None] @ rotation[:, :, None]).flatten(1, 2)
        centre = shift_px[:, :, None].expand(-1, -1, len(turns), -1).flatten(1, 2)
        alive = alive[:, :, None].expand(-1, -1, len(turns)).flatten(1)
        score, shift = _scores(part, half, rotation, centre, shifts, shift_sd_px)
        score = score.where(alive, score.new_tensor(-math.inf))
        best = score.topk(min(KEEP, score.shape[1]), dim=1)
        rows = torch.arange(len(score))[:, None]
        rotation, shift_px = rotation[rows, best.indices], shift[rows, best.indices]
        more = _still_to_come(data, part, half, rotation[:, 0])
        alive = best.values >= best.values[:, :1] - more[:, None]
        spacing, step_px = spacing / 2, step_px / 2
        if level + 1 < len(levels):
            turns = _neighbours(spacing, 3)
            shifts = _neighbours(step_px, 2)
    return rotation[:, 0], shift_px[:, 0]


def _radii(full: float, near: Near, *, rim: float) -> list[float]:
    """Radii of the levels, the last one full: the first is so low that a few grid steps span the turn."""
    turn = max(math.radians(near.turn_deg), 1e-4)
    first = min(max(2.5 * RIM_PHASE / (rim * turn), 4.0), full)
    count = max(math.ceil(math.log2(full / first)), 0)
    return [full / 2**i for i in range(count, -1, -1)]


def _ball(reach: float, step: float) -> Float[Tensor, "q 3"]:
    """Points of a body-centred cubic lattice within `reach` of the origin, which is first; neighbours `step` apart."""
    edge = step * 2 / math.sqrt(3)
    k = math.ceil(reach / edge)
    axis = torch.arange(-k, k + 1) * edge
    corner = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    every = torch.cat((corner, corner + edge / 2))
    near = every[every.norm(dim=1) <= max(reach, step) * 1.001]
    return near[near.norm(dim=1).argsort(stable=True)]


def _disc(reach: float, step: float) -> Float[Tensor, "s 2"]:
    k = max(math.ceil(reach / step), 1)
    axis = torch.arange(-k, k + 1) * step
    every = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    near = every[every.norm(dim=1) <= max(reach, step) * 1.001]
    return near[near.norm(dim=1).argsort(stable=True)]


def _neighbours(step: float, dims: int) -> Float[Tensor, "q d"]:
    """All points with coordinates -step, 0, step, the origin first."""
    axis = torch.tensor([-step, 0.0, step])
    every = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"), -1).reshape(-1, dims)
    return every[every.norm(dim=1).argsort(stable=True)]


def _scores(
    data: DiskData,
    half: Tensor,
    rotation: Float[Tensor, "n q 3 3"],
    centre_px: Float[Tensor, "n q 2"],
    shifts_px: Float[Tensor, "s 2"],
    shift_sd_px: float,
) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n q 2"]]:
    """Log-likelihood over noise of every turn at its best shift, and that shift."""
    n, q = rotation.shape[:2]
    count_evaluations(n * q * len(shifts_px), frequencies=len(data.points))
    kx, ky = data.points.unbind(1)
    first, second = rotation[:, :, None, 0], rotation[:, :, None, 1]
    at = (kx[:, None] * first + ky[:, None] * second) * 2
    model = gather(half, at) * data.ctf[:, None]
    to_px = 2 * math.pi / data.box
    own = centre_px @ data.points.T * to_px
    product = data.transform[:, None] * model.conj() * torch.polar(torch.ones_like(own), own)
    ramp = shifts_px @ data.points.T * to_px
    cross = product.real @ ramp.cos().T - product.imag @ ramp.sin().T
    shift = centre_px[:, :, None] + shifts_px
    power = torch.view_as_real(model).square().sum((2, 3))
    gain = 2 * cross - power[..., None] - shift.square().sum(-1) / (2 * shift_sd_px**2)
    best = gain.max(-1)
    where = best.indices[..., None, None].expand(-1, -1, 1, 2)
    return best.values, shift.gather(2, where)[:, :, 0]


def _still_to_come(
    data: DiskData, part: DiskData, half: Tensor, rotation: Float[Tensor, "n 3 3"]
) -> Float[Tensor, "n"]:
    """The most that the frequencies beyond `part` may add for a right pose, by the best branch's slice of the map."""
    kx, ky = data.points.unbind(1)
    at = (kx[:, None] * rotation[:, None, 0] + ky[:, None] * rotation[:, None, 1]) * 2
    power = (gather(half, at).abs() * data.ctf).square()
    beyond = data.points.square().sum(1) > part.points.square().sum(1).max()
    more = (power * beyond).sum(1)
    return more + SURE * (2 * more + 1).sqrt()
