"""The map from nothing: expectation-maximisation over small batches in ring space, from coarse to fine.

Every batch takes the exact posterior of its images over all views, in-plane angles and shifts (`search`), adds their
averaged slices to sums that forget (large batches without forgetting average to a ball), and solves for the map. The
radius grows from where a particle of this size has one or two features to where its hand is seen. Views are those of a
HEALPix grid turned at random for every batch, in the asymmetric unit only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import CTF
from cryorbit.fourier.polar import RingGrid, image_to_rings, ring_kernel, shift_phases
from cryorbit.geometry.conventions import in_plane_rotation, view_rotation
from cryorbit.geometry.rotations import random_rotations
from cryorbit.geometry.so3_grid import healpix_directions
from cryorbit.geometry.symmetry import in_asymmetric_unit
from cryorbit.inference.engine import Workers
from cryorbit.inference.lattice import Lattice, Sums
from cryorbit.inference.observations import Observations, astigmatic_orders, crop_images, support_mask
from cryorbit.inference.search import (
    Posterior,
    RingData,
    SearchPlan,
    SliceSums,
    Templates,
    make_templates,
    plan_search,
    sums_to_rings,
)
from cryorbit.inference.tiles import Tiles, search_tiles
from cryorbit.physics.interpolation import gather

NOISE_FLOOR = 0.1
"""Share of the images' power taken as noise at least: the map is never right to better than this here."""


@dataclass(frozen=True, eq=False)
class SmallImages:
    """Cropped images of the particles that the coarse stage works on, held in memory."""

    observed: Observations
    rows: Int[Tensor, "n"]
    images: Float[Tensor, "n box box"]
    temperature: float = 1.0
    """Factor on the noise power: below 1 the posterior is sharper than the noise allows."""

    @property
    def box(self) -> int:
        """Edge of the cropped image in pixels."""
        return self.images.shape[-1]

    def rings(self, index: Int[Tensor, "b"], grid: RingGrid, kernel: Tensor) -> RingData:
        """Whitened, CTF-filtered ring transforms of some of the images."""
        return ring_data(
            self.observed,
            self.rows[index],
            self.images[index],
            grid,
            kernel,
            floor=NOISE_FLOOR,
            temperature=self.temperature,
        )


def ring_data(
    observed: Observations,
    rows: Int[Tensor, "b"],
    images: Float[Tensor, "b crop crop"],
    grid: RingGrid,
    kernel: Tensor,
    *,
    floor: float,
    temperature: float = 1.0,
) -> RingData:
    """Y and D of cropped images, see `search`; the noise power is taken times `temperature`."""
    points = grid.points()
    ctf = observed.ctf(rows, points)
    whiten = grid.weights() / (temperature * observed.noise_at(grid.radii(), floor=floor))
    rings = observed.undo_odd_phase(image_to_rings(images, grid, kernel), rows, points)
    weighted = ctf * whiten[:, None]
    return RingData(rings * weighted, ctf * weighted)


def crop_small(observed: Observations, rows: Int[Tensor, "n"], n: int, team: Workers) -> SmallImages:
    """Read and crop images to n pixels, keeping frequencies below n / 2 Fourier pixels."""
    parts = team.map(lambda r: crop_images(observed.transforms(r), n), rows.split(64))
    return SmallImages(observed, rows, torch.cat(parts))


@dataclass(frozen=True, kw_only=True)
class Level:
    """Settings of one batch: how far out, how fine."""

    radius: int
    order: int
    m_max: int
    n_angles: int
    n_psi: int
    shift_step_px: float
    """In pixels of the full box."""


def level_for(radius: int, particle_radius_px: float, *, box: int, shifts_per_wave: float = 2.6) -> Level:
    """Angles and shifts fine enough for rings out to `radius` Fourier pixels and a particle of this size."""
    turns = radius * particle_radius_px / box  # waves along the particle's radius
    order = 1 if turns < 1.5 else 2 if turns < 3.3 else 3 if turns < 6.6 else 4
    m_max = max(int(2 * math.pi * turns * 1.1) + 3, 8)
    n_angles = max(32, 16 * math.ceil(2 * math.pi * radius * 0.75 / 16), 16 * math.ceil((2 * m_max + 2) / 16))
    n_psi = 2 * (m_max + 1) + (2 * (m_max + 1)) % 4
    return Level(
        radius=radius,
        order=order,
        m_max=m_max,
        n_angles=n_angles,
        n_psi=max(n_psi, 6 * 2**order),
        shift_step_px=box / (shifts_per_wave * radius),
    )


def shift_grid(reach_px: float, step_px: float) -> Float[Tensor, "s 2"]:
    """Square grid of shifts inside a disc."""
    k = max(int(reach_px / step_px + 0.5), 1)
    axis = torch.arange(-k, k + 1) * step_px
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    return grid[grid.norm(dim=1) <= max(reach_px, step_px) * 1.001]


@dataclass(frozen=True, eq=False)
class BatchResult:
    """What one batch gave."""

    rotation: Float[Tensor, "b 3 3"]
    shift_px: Float[Tensor, "b 2"]
    log_evidence: Float[Tensor, "b"]
    confidence: Float[Tensor, "b"]
    entropy: Float[Tensor, "b"]


@dataclass(frozen=True, eq=False)
class View:
    """Everything that images of one batch share: directions, templates, shifts."""

    grid: RingGrid
    kernel: Tensor
    rotations: Float[Tensor, "v 3 3"]
    templates: Templates
    tiles: Tiles
    plan: SearchPlan
    shifts_px: Float[Tensor, "s 2"]


def make_view(
    half: Tensor,
    level: Level,
    directions: Float[Tensor, "v 3"],
    *,
    n: int,
    box: int,
    reach_px: float,
    shift_sd_px: float,
    ctf: CTF | None,
    pixel_size_A: float,
) -> View:
    """Templates of the map (`half`, of an n-pixel lattice) for the given directions."""
    grid = RingGrid(n, level.radius, level.n_angles)
    rotations = view_rotation(directions).float()
    points = grid.points()
    at = points[..., :1] * rotations[:, None, None, 0] + points[..., 1:] * rotations[:, None, None, 1]
    orders = min(astigmatic_orders(ctf, level.radius, box=box, pixel_size_A=pixel_size_A), level.m_max // 2)
    templates = make_templates(gather(half, at * 2), grid, m_max=level.m_max, astigmatic_orders=orders)
    shifts = shift_grid(reach_px, level.shift_step_px)
    log_prior = -shifts.square().sum(1) / (2 * shift_sd_px**2)
    plan = plan_search(
        grid,
        level.m_max,
        level.n_psi,
        shift_phases(grid, shifts * (n / box)),
        log_prior - log_prior.logsumexp(0),
    )
    return View(grid, ring_kernel(grid), rotations, templates, Tiles.of(templates, plan), plan, shifts)


def search_images(view: View, data: RingData) -> tuple[Posterior, SliceSums]:
    """Posterior of every image, and the sums over all of them."""
    sums = view.tiles.empty_sums()
    found = search_tiles(data, view.plan, view.tiles, sums=sums)
    return found, SliceSums.of_blocks(sums)


def poses_of(view: View, best: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 2"]]:
    """Rotation and shift (pixels of the full box) of flat pose indices (psi, shift, view)."""
    v, s = view.templates.n_views, view.plan.n_shifts
    psi = (best // (v * s)).float() * (2 * math.pi / view.plan.n_psi)
    rotation = in_plane_rotation(psi) @ view.rotations[best % v]
    return rotation, view.shifts_px[best // v % s]


def expectation_maximisation_batch(
    small: SmallImages,
    index: Int[Tensor, "b"],
    view: View,
    lattice: Lattice,
    group: Tensor,
    raw: Tensor,
    team: Workers,
) -> BatchResult:
    """Posterior of a batch; its averaged slices are added to the lattice sums `raw`, in place."""

    def work(part: Tensor) -> tuple[Posterior, SliceSums]:
        return search_images(view, small.rings(part, view.grid, view.kernel))

    results = team.map(work, index.tensor_split(team.count))
    total = SliceSums.zeros(view.templates)
    for _, part in results:
        total.add(part)
    add_slices(raw, total, view, lattice, group)
    found = [posterior for posterior, _ in results]
    best = torch.cat([p.best for p in found])
    rotation, shift = poses_of(view, best)
    return BatchResult(
        rotation,
        shift,
        torch.cat([p.log_evidence for p in found]),
        torch.cat([p.best_probability for p in found]),
        torch.cat([p.entropy for p in found]),
    )


def add_slices(raw: Tensor, total: SliceSums, view: View, lattice: Lattice, group: Tensor) -> None:
    """Insert averaged slices at every symmetry-related place."""
    numerator, denominator = sums_to_rings(total, view.grid, view.templates.order)
    points = view.grid.points()
    for element in group:
        turned = view.rotations @ element
        at = points[..., :1] * turned[:, None, None, 0] + points[..., 1:] * turned[:, None, None, 1]
        lattice.add(raw, at, numerator, denominator)


def coarse_map(raw: Tensor, lattice: Lattice, *, radius: int, mask: Tensor, regulariser: float) -> Tensor:
    """The map of the present sums: a shell-wise Wiener solve whose prior is the map's own power, then the mask."""
    sums = Sums.of(lattice, raw)
    mean_weight = lattice.shell_mean(sums.weight, radius + 2)
    first = sums.solve(0.01 * mean_weight + 1e-20, radius=radius)
    power = lattice.shell_mean(first.abs().square(), radius + 2)
    added = regulariser / power.clamp_min(1e-30) + 0.01 * mean_weight
    return lattice.to_map(sums.solve(added, radius=radius)) * mask


def random_directions(order: int, group: Tensor, generator: torch.Generator) -> Float[Tensor, "v 3"]:
    """HEALPix directions turned at random, those in the asymmetric unit."""
    turn = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    directions = healpix_directions(order) @ turn
    return directions if len(group) == 1 else directions[in_asymmetric_unit(directions, group)]


def random_start(
    small: SmallImages,
    lattice: Lattice,
    level: Level,
    group: Tensor,
    *,
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "c p p h"]:
    """Sums of images inserted at random poses: a blob of about the right size."""
    grid = RingGrid(small.box, level.radius, level.n_angles)
    kernel = ring_kernel(grid)
    index = torch.randperm(len(small.rows), generator=generator)[:count]
    data = small.rings(index, grid, kernel)
    rotation = random_rotations(len(index), generator=generator, dtype=torch.float32)
    raw = lattice.zeros()
    points = grid.points()
    for element in group.float():
        turned = rotation @ element
        at = points[..., :1] * turned[:, None, None, 0] + points[..., 1:] * turned[:, None, None, 1]
        lattice.add(raw, at, data.filtered, data.ctf_power)
    return raw


__all__ = [
    "BatchResult",
    "Level",
    "SmallImages",
    "View",
    "coarse_map",
    "crop_small",
    "expectation_maximisation_batch",
    "level_for",
    "make_view",
    "poses_of",
    "random_directions",
    "random_start",
    "search_images",
    "support_mask",
]
