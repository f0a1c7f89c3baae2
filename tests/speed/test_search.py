"""How fast the exact posterior over all poses is taken, against the plain matrix product doing the same.

python -m pytest tests/speed/test_search.py -o addopts="" -s
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cryorbit.fourier.polar import RingGrid, shift_phases
from cryorbit.geometry.conventions import in_plane_rotation, view_rotation
from cryorbit.geometry.so3_grid import healpix_directions
from cryorbit.inference.engine import workers
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.refine import half_disk
from cryorbit.inference.search import RingData, SearchPlan, make_templates, plan_search
from cryorbit.inference.tiles import HOPELESS, Tiles, search_tiles
from cryorbit.physics.interpolation import gather
from physics_models import GaussianBlobs, uniform_rotations

ORDER, N_PSI, RADIUS, M_MAX = 3, 48, 14, 23
"""768 views x 48 in-plane angles; orders up to what 48 angles hold."""
N_ANGLES = 48
"""The fewest angles on a ring that hold these orders: the plain product gains most from few samples."""
IMAGES, REPEATS, WANTED_RATIO = 16, 9, 5.0
NOISE_SHARE = 0.1
"""Power of the noise in that of the slices."""
BLOCKS = tuple((images, poses) for images in (8, 16) for poses in (384, 768, 1536, 4608))
"""Images and poses per product that the plain formulation may choose from."""
SAME_EVIDENCE = 0.2
"""Nats of some hundred: orders above M_MAX, which the plain product has and the rings leave out."""


@dataclass(frozen=True)
class Plain:
    """The same as matrices: images over k samples of the half plane, and all rotations of the map over the samples.

    Behind the templates there is room for a row per image (its norm term) and one of ones (the prior of the shift):
    so the product adds both without another pass over the scores. Poses are in order of views, so that blocks of
    hopeless ones can be skipped.
    """

    filtered: Tensor
    ctf_power: Tensor
    phases: Tensor
    log_prior: Tensor
    templates: Tensor
    power: Tensor

    @property
    def n_samples(self) -> int:
        return self.power.shape[0]

    @property
    def n_poses(self) -> int:
        return self.power.shape[1]

    @property
    def n_shifts(self) -> int:
        return len(self.log_prior)


@dataclass(frozen=True)
class Problem:
    """Images on rings and templates in tiles; the plain formulation on the ring samples and on the grid's own."""

    tiles: Tiles
    plan: SearchPlan
    data: RingData
    on_rings: Plain
    on_grid: Plain


def _slices(half: Tensor, rotation: Tensor, points: Tensor) -> Tensor:
    at = points[..., :1] * rotation[:, None, None, 0] + points[..., 1:] * rotation[:, None, None, 1]
    return gather(half, 2 * at)


def _images(half: Tensor, points: Tensor, weights: Tensor) -> RingData:
    """Noisy slices through a CTF at points (r, a, 2) that stand for so many Fourier pixels each."""
    images = _slices(half, uniform_rotations(IMAGES, seed=2).float(), points)
    ctf = torch.sin(points.square().sum(-1) / 20 + torch.arange(IMAGES)[:, None, None])
    noise = NOISE_SHARE * images.abs().square().mean()
    generator = torch.Generator().manual_seed(0)
    images = images * ctf + noise.sqrt() * torch.randn(images.shape, dtype=images.dtype, generator=generator)
    weight = ctf * weights / noise
    return RingData(images * weight, (ctf * weight).contiguous())


def problem() -> Problem:
    """A map of blobs, radius a quarter of the box, 25 shifts, images with the evidence of a late coarse stage."""
    grid = RingGrid(40, RADIUS, N_ANGLES)
    half = Lattice(40).to_half(GaussianBlobs.random(60, radius_px=9.0, seed=1).values(40).float())
    rotations = view_rotation(healpix_directions(ORDER)).float()
    axis = torch.arange(-2, 3) * 1.0
    shifts = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    prior = torch.log_softmax(-shifts.square().sum(1) / 4, 0)
    plan = plan_search(grid, M_MAX, N_PSI, shift_phases(grid, shifts), prior)
    templates = make_templates(_slices(half, rotations, grid.points()), grid, m_max=M_MAX)
    data = _images(half, grid.points(), grid.weights()[:, None])
    disk = half_disk(RADIUS)[None]
    on_grid = _plain(half, rotations, disk, _images(half, disk, torch.ones(1)), shifts, prior)
    on_rings = _plain(half, rotations, grid.points(), data, shifts, prior)
    return Problem(Tiles.of(templates, plan), plan, data, on_rings, on_grid)


def _plain(
    half: Tensor, rotations: Tensor, points: Tensor, data: RingData, shifts: Tensor, prior: Tensor
) -> Plain:
    v, k = len(rotations), points.shape[0] * points.shape[1]
    matrix, power = torch.empty(2 * k + IMAGES + 1, v, N_PSI), torch.empty(k, v, N_PSI)
    for p in range(N_PSI):
        turn = in_plane_rotation(torch.tensor(p * 2 * math.pi / N_PSI))
        slices = _slices(half, turn @ rotations, points).reshape(v, k)
        matrix[: 2 * k, :, p] = 2 * torch.view_as_real(slices).flatten(1).T
        power[..., p] = -slices.abs().square().T
    matrix[-1] = 1
    angle = shifts @ points.reshape(k, 2).T * (2 * math.pi / 40)
    phases = torch.polar(torch.ones_like(angle), angle)
    return Plain(
        data.filtered.reshape(-1, k),
        data.ctf_power.reshape(-1, k),
        phases,
        prior,
        matrix.flatten(1),
        power.flatten(1),
    )


def plain_evidence(plain: Plain, images: int, poses: int, scores: Tensor, weights: Tensor) -> list[float]:
    """Log evidence of every image by one matrix product over all poses, done in blocks, the best way we know.

    Images are multiplied by the CTF and shifted; the exponentials of a block are taken while it is in cache; blocks
    of hopeless poses are skipped as in the ring path.
    """
    k, s = plain.n_samples, plain.n_shifts
    out: list[float] = []
    for at in range(0, len(plain.filtered), images):
        filtered, power = plain.filtered[at : at + images], plain.ctf_power[at : at + images]
        b = len(filtered)
        torch.mm(power, plain.power, out=plain.templates[2 * k : 2 * k + b])
        if b < IMAGES:
            plain.templates[2 * k + b] = 1  # the row of ones directly behind the norm terms
        rows = torch.zeros(b, s, 2 * k + b + 1)
        rows[..., : 2 * k] = torch.view_as_real(filtered[:, None] * plain.phases).flatten(2)
        rows[torch.arange(b), :, 2 * k + torch.arange(b)] = 1
        rows[..., -1] = plain.log_prior
        out += _evidence_of(rows, plain.templates[: 2 * k + b + 1], poses, scores, weights)
    return out


def _evidence_of(rows: Tensor, matrix: Tensor, poses: int, scores: Tensor, weights: Tensor) -> list[float]:
    """Scores are relative to a first peak, which is taken off with the prior of the shift."""
    b, s, _ = rows.shape
    reference, top, sums = [0.0] * b, [-math.inf] * b, [[] for _ in range(b)]
    n = matrix.shape[1]
    block = scores[: b * s * poses].view(b * s, poses)
    for at in range(0, n, poses):
        torch.mm(rows.flatten(0, 1), matrix[:, at : at + poses], out=block)
        for i, peak in enumerate(block.view(b, -1).amax(1).tolist()):
            top[i] = max(top[i], peak + reference[i])
            if peak + reference[i] < top[i] - HOPELESS:
                continue
            own = block.view(b, -1)[i]
            if not at or peak > 30:
                own -= peak
                reference[i] += peak
                rows[i, :, -1] -= peak
            weight = torch.exp(own.clamp_(min=-60.0), out=weights[: own.numel()])
            sums[i].append((reference[i], float(weight.sum()), float(torch.dot(weight, own))))
    return [
        t + math.log(sum(total * math.exp(below - t) for below, total, _ in own)) - math.log(n)
        for t, own in zip(top, sums, strict=True)
    ]


@contextmanager
def _clock() -> Iterator[Callable[[], tuple[float, float]]]:
    wall, cpu = time.perf_counter(), time.thread_time()
    yield lambda: (time.perf_counter() - wall, time.thread_time() - cpu)


def _seconds(step: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of this thread: the machine may be shared."""
    with _clock() as passed:
        step()
        return passed()


def _median(step: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    step()
    pairs = [_seconds(step) for _ in range(repeats)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def _ring_flop(problem: Problem) -> float:
    """Per image: one product per order over the rings, then the series over orders, even and odd apart."""
    m, r2, _ = problem.tiles.blocks[0].matrix.shape
    v, s = problem.tiles.n_views, problem.plan.n_shifts
    return 2.0 * m * 2 * s * r2 * v + 2.0 * N_PSI / 2 * 2 * m * s * v


def _ring_bytes(problem: Problem) -> float:
    """Per image, at least: templates read, products written and read, the higher of each two scores written, read
    and written for the size of the odd series and again to add the even one, and read for the peak.
    """
    m, r2, _ = problem.tiles.blocks[0].matrix.shape
    v, s = problem.tiles.n_views, problem.plan.n_shifts
    return 4.0 * (m * r2 * v + 2 * 2 * m * s * v + 6 * N_PSI / 2 * s * v)


def _machine() -> tuple[float, float]:
    """The machine's own GFLOP/s of a large product and GB/s of a large copy (read and written), processor time."""
    a, b, c = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.empty(1024, 1024)
    big, copy = torch.randn(16 << 20), torch.empty(16 << 20)
    gflops = 2 * 1024**3 / _median(lambda: torch.mm(a, b, out=c))[1] / 1e9
    return gflops, 2 * 4 * big.numel() / _median(lambda: copy.copy_(big))[1] / 1e9


def test_rings_beat_the_plain_product():
    """One thread, equal grids of poses and shifts, posterior normalised: at least 5 times faster per image.

    Measured in a process of its own, where nothing checks shapes at run time.
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    run = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    print("\n" + run.stdout)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.rsplit(maxsplit=1)[-1]) >= WANTED_RATIO


def _compare() -> None:
    own = problem()
    fair = own.on_grid
    n_scores = fair.n_shifts * fair.n_poses
    scores, weights = torch.empty(IMAGES * fair.n_shifts * max(p for _, p in BLOCKS)), torch.empty(n_scores)

    def rings() -> list[float]:
        return search_tiles(own.data, own.plan, own.tiles).log_evidence.tolist()

    def plain(images: int, poses: int) -> list[float]:
        return plain_evidence(fair, images, poses, scores, weights)

    offset = torch.tensor(rings()) - torch.tensor(plain_evidence(own.on_rings, *BLOCKS[0], scores, weights))
    assert float(offset.abs().max()) < SAME_EVIDENCE
    best = min(BLOCKS, key=lambda b: _median(lambda: plain(*b), 3)[1])
    pairs = [(_seconds(rings), _seconds(lambda: plain(*best))) for _ in range(REPEATS)]
    ring_s, plain_s = (statistics.median(p[i][1] for p in pairs) / IMAGES for i in (0, 1))
    ratio = statistics.median(p[1][1] / p[0][1] for p in pairs)
    wall = statistics.median(p[1][0] / p[0][0] for p in pairs)
    gflops, gbytes = _machine()
    plain_gflop = 2e-9 * (2 * fair.n_samples + 2) * n_scores
    print(
        f"768 views x 48 angles x {fair.n_shifts} shifts, radius 14, one thread, processor time: "
        f"rings {1e3 * ring_s:.2f} ms/image, plain product {1e3 * plain_s:.2f} ms/image "
        f"({best[0]} images x {best[1]} poses at a time, {fair.n_samples} samples), ratio {ratio:.2f} "
        f"(by wall time {wall:.2f})\n"
        f"rings: {_ring_flop(own) / ring_s / 1e9:.0f} GFLOP/s, {_ring_bytes(own) / ring_s / 1e9:.0f} GB/s; "
        f"plain: {plain_gflop / plain_s:.0f} GFLOP/s; machine: {gflops:.0f} GFLOP/s in a 1024 product, "
        f"{gbytes:.0f} GB/s in a 64 MB copy\n"
        f"evidence on the same samples differs by at most {float(offset.abs().max()):.3f} nats\n"
        f"ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    with workers(1):
        _compare()
