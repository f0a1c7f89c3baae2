"""Half maps and their resolution from particles whose poses are known, in one pass over the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation
from cryorbit.data import ParticleStack, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.symmetry import point_group
from cryorbit.inference.engine import Progress, generator_from, workers
from cryorbit.inference.half_sets import half_sets
from cryorbit.inference.memory import free_bytes, rows_per_block
from cryorbit.inference.observations import Contrast, contrast_of
from cryorbit.inference.ranks import Ranks, even_count
from cryorbit.physics.backproject import Backprojector, prior_power_from_fsc

_BLOCK_PIXELS = 2_000_000
"""Pixels of one half that are added at a time: a few tens of MB with all that is made of them."""


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings:
    """How to reconstruct from known poses."""

    symmetry: str = "C1"
    """Point group in RELION's settings: C1, C2, D2, T, O, I ..."""
    seed: int = 0
    """Decides the half sets where the file has none and no micrographs either."""
    contrast: Contrast = "auto"
    """Protein light on dark ice, or dark on light; auto asks the images."""


@dataclass(frozen=True, eq=False)
class ReconstructResult:
    """What a reconstruction gives.

    Parameters
    ----------
    map
        Of all images, filtered by what the halves agree on.
    half_maps
        Unfiltered.
    curve
        Their correlation, without a mask.
    half_set
        1 or 2 per particle.
    """

    map: Volume
    half_maps: tuple[Volume, Volume]
    curve: ShellCorrelation
    half_set: Int[Tensor, "n"]


def reconstruct(
    stack: ParticleStack,
    settings: ReconstructSettings,
    *,
    device: torch.device | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Progress]:
    """Yield progress; the last record carries the `ReconstructResult`.

    With `ranks`, every process calls this with the same stack, adds its share of the images, and gets the whole result.

    Raises
    ------
    BadInput
        If the stack has no poses, one half would be empty, or the maps do not fit into memory.
    """
    if stack.pose is None:
        raise BadInput(f"{stack.source}: no poses, so nothing to reconstruct from. Find them first.")
    halves = half_sets(stack, generator=generator_from(None, seed=settings.seed))
    rows = [torch.nonzero(halves == h)[:, 0] for h in (0, 1)]
    if min(map(len, rows)) == 0:
        raise BadInput(f"{stack.source}: one of the half sets is empty. Give each half some particles.")
    ranks = ranks or Ranks()
    size = rows_per_block(
        stack.box,
        max(1, _BLOCK_PIXELS // stack.box**2),
        free=free_bytes(device),
        processes=ranks.neighbours if device is None or device.type == "cpu" else 1,
    )
    sums = [Backprojector.empty(stack.box, pixel_size_A=stack.pixel_size_A, device=device) for _ in rows]
    parts = [r.split(size) if ranks.size == 1 else _even_parts(r, size, ranks) for r in rows]

    sign = contrast_of(stack, settings.contrast)

    def add(h: int, step: int) -> None:
        if step < len(parts[h]):
            _insert(sums[h], stack, parts[h][step], sign=sign, device=device)

    done = 0
    with workers(min(2, torch.get_num_threads())) as team:
        for turn in range(0, max(map(len, parts)), ranks.size):
            team.map(lambda h, step=turn + ranks.rank: add(h, step), (0, 1))
            done += sum(len(p) for part in parts for p in part[turn : turn + ranks.size])
            visits = {"image_visits": float(done)}
            share = 0.95 * done / len(stack)
            yield Progress(
                "reconstruction", done, len(stack), share, visits, whole=dict
            )  # nothing worth saving
    for half in sums:
        ranks.sum_(half.numerator, half.denominator)
    result = _solve(sums, settings.symmetry, halves + 1)
    last = {"image_visits": float(done), "resolution_0143_A": result.curve.resolution_A(0.143)}
    yield Progress("done", len(stack), len(stack), 1.0, last, {}, result)


def _even_parts(rows: Int[Tensor, "n"], size: int, ranks: Ranks) -> tuple[Tensor, ...]:
    """Rows in about equal parts of at most `size`, as many for every process."""
    return rows.tensor_split(even_count(-(-len(rows) // size), ranks))


def _insert(
    sums: Backprojector,
    stack: ParticleStack,
    rows: Int[Tensor, "k"],
    *,
    sign: float,
    device: torch.device | None,
) -> None:
    assert stack.pose is not None  # checked by the caller
    if len(rows) == 0:
        return
    images: Float[Tensor, "k h w"] = stack.images[rows].to(device) * sign
    sums.insert(images, stack.pose[rows], None if stack.ctf is None else stack.ctf[rows])


def _solve(sums: list[Backprojector], symmetry: str, half_set: Int[Tensor, "n"]) -> ReconstructResult:
    """Half maps without a prior, and the map of all images with the prior that their agreement gives."""
    group = point_group(symmetry)
    if len(group) > 1:
        sums = [s.symmetrise(group.float()) for s in sums]
    first, second = (s.solve() for s in sums)
    curve = fourier_shell_correlation(first, second)
    both = sums[0] + sums[1]
    of_all = 2 * curve.correlation / (1 + curve.correlation).clamp_min(1e-3)
    prior = prior_power_from_fsc(of_all, both.information())
    return ReconstructResult(both.solve(prior_power=prior), (first, second), curve, half_set)
