"""Two half maps and a prior to a posterior map: noise from the halves' difference, W diagonal in Fourier space."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.map_tools import crop_map
from cryorbit.analysis.ssnr import cref
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import cosine_edge, low_pass
from cryorbit.fourier.grid import radius_grid
from cryorbit.fourier.resample import fourier_resample
from cryorbit.fourier.shells import shell_mean, spread_shells
from cryorbit.inference.engine import Progress
from cryorbit.inference.half_posteriors import (
    HalvesSettings,
    PosteriorTask,
    PriorReconstruction,
    posterior_of_halves,
)
from cryorbit.inference.held_out import held_out_misfit
from cryorbit.inference.posterior import PosteriorSettings
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.prior_gain import fit_gain
from cryorbit.inference.prior_images import Halves, PriorGrid, gaussian_pass, with_cutoff
from cryorbit.models.volume_prior import VolumePrior

LARGEST = 128
"""Voxels per edge that maps are sampled on at most: 343 patches of 32 at every level of noise."""
_BAND = (0.8, 1.0)
"""Of the prior's Nyquist frequency: up to where the posterior is taken, and from where on the halves' mean."""
_DIMS = (-3, -2, -1)


@dataclass(frozen=True, eq=False)
class Denoised:
    """Maps on the grid and in the grey scale of the half maps.

    Parameters
    ----------
    map
        Posterior mean. Beyond the prior's band, and everywhere if the prior did not help, the mean of the half maps,
        weighted by what they agree on.
    spread
        Standard deviation of the posterior; None if the prior did not help: the map is not of that posterior.
    prior_helped
        Whether each half is explained better by the posterior of the other than by any map without the prior.
    own_misfit
        As `PriorReconstruction.chi_square`, of each half weighted by what the halves agree on.
    result
        The posterior on the prior's grid.
    """

    map: Volume
    spread: Volume | None
    prior_helped: bool
    own_misfit: float
    result: PriorReconstruction


def denoising_grid(first: Volume, prior: VolumePrior, *, source: str = "half maps") -> PriorGrid:
    """The finest grid that the prior knows, of no more than `LARGEST` voxels.

    Raises
    ------
    BadInput
        If voxels are too coarse for the prior, or the map too large.
    """
    finest, coarsest = prior.shape.voxel_size_A
    field_A = first.box * first.pixel_size_A
    wanted = max(finest, first.pixel_size_A, field_A / LARGEST)
    if first.pixel_size_A > 1.02 * coarsest:
        raise BadInput(
            f"{source}: voxels of {first.pixel_size_A:g} A, but this prior knows {finest:g} to {coarsest:g} A. Train one "
            "for these (`cryorbit prior train --voxel-size-A`)."
        )
    if wanted > 1.02 * coarsest:
        raise BadInput(
            f"{source}: the molecule takes {field_A:.0f} A, but {LARGEST} voxels of {coarsest:g} A reach "
            f"{LARGEST * coarsest:.0f} A. Give --particle-diameter-A if it is smaller, or a prior of coarser voxels."
        )
    n = max(8, int(field_A / wanted + 1e-6))
    voxel = field_A / n
    return PriorGrid(n, voxel, n, max(prior.shape.resolution_A[0], 2 * voxel))


def denoise_halves(
    first: Volume,
    second: Volume,
    prior: VolumePrior,
    settings: HalvesSettings,
    sampling: PosteriorSettings,
    *,
    source: str = "half maps",
) -> Iterator[Progress]:
    """Draws maps given both half maps and given each; the last record has a `Denoised`.

    Raises
    ------
    BadInput
        If the halves differ in grid or not at all, or are not what the prior knows.
    """
    if first.box != second.box or abs(first.pixel_size_A / second.pixel_size_A - 1) > 1e-3:
        raise BadInput(
            f"{source}: boxes {first.box} and {second.box}, voxels {first.pixel_size_A:g} and {second.pixel_size_A:g} A. "
            "Give two half maps of one reconstruction."
        )
    box, diameter_A = first.box, settings.particle_diameter_A
    radius_A = molecule_radius_A(first, second, source=source) if diameter_A is None else diameter_A / 2
    first, second = (crop_map(v, box=field_px(v, prior, radius_A)) for v in (first, second))
    grid = denoising_grid(first, prior, source=source)
    halves, maps = halves_of_maps(first, second, grid, source=source)
    gain = settings.gain or fit_gain(
        maps[0],
        maps[1],
        voxel_size_A=grid.voxel_size_A,
        resolution_A=grid.resolution_A,
        radius_A=radius_A,
    )
    unit = gain * prior.shape.density_scale
    scaled = with_cutoff(halves).scaled(unit)
    own = held_out_misfit(scaled, weighted((maps[0] / unit, maps[1] / unit), grid.voxel_size_A))
    task = PosteriorTask(prior, settings, sampling, grid, scaled, gain, radius_A, 0)
    known: dict[str, Any] = {}
    for record in posterior_of_halves(task, known):
        found = record.result
        if isinstance(found, PriorReconstruction):
            found = _on_input(first, second, found, box, own)
        yield Progress(
            record.stage, record.step, record.steps, record.fraction, record.metrics, record.state, found
        )


def halves_of_maps(
    first: Volume, second: Volume, grid: PriorGrid, *, source: str = "half maps"
) -> tuple[Halves, tuple[Tensor, Tensor]]:
    """Half maps as likelihoods on the prior's grid, and themselves there, low-passed as the prior's maps are.

    Noise of a half per Fourier shell is half of the mean square difference; nothing is known in the box's corners.

    Raises
    ------
    BadInput
        If the halves are the same.
    """
    n = grid.box
    small = torch.stack([fourier_resample(v.values.float(), n, ndim=3) for v in (first, second)])
    wave = torch.fft.rfftn(small.double(), dim=_DIMS, norm="ortho")
    noise = shell_mean((wave[0] - wave[1]).abs().square() / 2, n=n, ndim=3)
    noise[0] = noise[1 : max(3, n // 16)].mean()
    power = shell_mean(wave.abs().square().mean(0), n=n, ndim=3)
    if not bool((noise > 1e-10 * power.max()).all()):
        raise BadInput(
            f"{source}: the halves are the same in some shell, so their noise cannot be told. Give two unfiltered half maps."
        )
    low = gaussian_pass(n, grid.voxel_size_A, grid.resolution_A, ndim=3).double()
    shell = spread_shells(1 / noise, n=n, ndim=3)
    weight = shell / low.square()
    passed = torch.fft.irfftn(wave * low, s=(n,) * 3, dim=_DIMS, norm="ortho")
    back = torch.fft.irfftn(wave * low * weight, s=(n,) * 3, dim=_DIMS, norm="ortho")
    both = radius_grid(n, ndim=3, dtype=torch.float64) <= n // 2 + 0.5
    twice = torch.full((n // 2 + 1,), 2.0, dtype=torch.float64)
    twice[0] = 1.0
    if n % 2 == 0:
        twice[-1] = 1.0
    count = float((both * twice).sum())
    energy = ((wave * low).abs().square() * weight * twice).sum(_DIMS).tolist()
    found = [
        TwoVolumes(b.float(), weight.float(), None, e, count, grid.voxel_size_A)
        for b, e in zip(back, energy, strict=True)
    ]
    return Halves(found[0], found[1]), (passed[0].float(), passed[1].float())


def weighted(
    maps: tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]], voxel_size_A: float
) -> tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]:
    """Each half times their FSC, which is its Wiener filter: maps that lean on no prior and no scale."""
    n = maps[0].shape[0]
    curve = fourier_shell_correlation(
        Volume(maps[0], voxel_size_A), Volume(maps[1], voxel_size_A)
    ).correlation
    weight = spread_shells(curve.double().clamp_min(0.0), n=n, ndim=3)
    first, second = (torch.fft.irfftn(torch.fft.rfftn(m.double()) * weight, s=(n,) * 3).float() for m in maps)
    return first, second


def field_px(volume: Volume, prior: VolumePrior, radius_A: float) -> int:
    """Voxels of a map that are looked at, about the middle: the molecule with some room, at least the prior's box."""
    finest = prior.shape.voxel_size_A[0]
    extent_A = max(1.1 * 2 * radius_A + 3 * finest, prior.shape.box * max(finest, volume.pixel_size_A))
    # A hair less, or rounding adds a voxel to fields that are a whole number of them.
    return min(volume.box, math.ceil(extent_A / volume.pixel_size_A - 1e-3))


def molecule_radius_A(first: Volume, second: Volume, *, source: str = "half maps") -> float:
    """Radius about the middle that holds 95 % of what the halves share at 15 A, and a fifth more; at most the box's.

    Raises
    ------
    BadInput
        If they share nothing.
    """
    n, voxel = first.box, first.pixel_size_A
    smooth = [
        low_pass(v.values.float(), resolution_A=max(15.0, 4 * voxel), pixel_size_A=voxel, ndim=3)
        for v in (first, second)
    ]
    distance = radius_grid(n, ndim=3, layout="centred").round().long().flatten()
    shared = torch.bincount(distance, weights=(smooth[0] * smooth[1]).flatten().double())[: n // 2].cumsum(0)
    if not float(shared.max()) > 0:
        raise BadInput(
            f"{source}: the halves share no density, so the molecule cannot be found. Are they of one "
            "reconstruction, and of one hand and contrast?"
        )
    reached = torch.nonzero(shared >= 0.95 * shared.max())[:, 0]
    return min(1.2 * (float(reached[0]) + 1), n / 2) * voxel


def _on_input(
    first: Volume, second: Volume, result: PriorReconstruction, box: int, own_misfit: float
) -> Denoised:
    """The posterior put back on the half maps' grid, its low pass undone; their own mean where the prior says nothing."""
    n, grid = first.box, result.grid
    mean = torch.stack((first.values, second.values)).double().mean(0)
    curve = fourier_shell_correlation(first, second).correlation.double()
    own = torch.fft.rfftn(mean) * spread_shells(cref(curve), n=n, ndim=3)

    def placed(values: Tensor) -> Volume:
        return crop_map(Volume(values.float(), first.pixel_size_A, first.origin_A, first.nstart), box=box)

    if result.chi_square["posterior"] > min(result.chi_square["data only"], own_misfit):
        return Denoised(placed(torch.fft.irfftn(own, s=(n,) * 3)), None, False, own_misfit, result)
    radius = radius_grid(n, ndim=3, dtype=torch.float64)
    edge = cosine_edge(radius, inner=_BAND[0] * grid.box / 2, outer=_BAND[1] * grid.box / 2)
    if result.cutoff_A is not None:
        reach = n * first.pixel_size_A / result.cutoff_A
        edge = edge * cosine_edge(radius, inner=reach - 1, outer=reach + 1)
    # No frequency beyond the prior's Nyquist comes in, so the Gaussian is never divided by less than exp(-1 / 0.64).
    sharp = edge / gaussian_pass(n, first.pixel_size_A, grid.resolution_A, ndim=3).double().clamp_min(0.1)

    def back(values: Float[Tensor, "n n n"]) -> Tensor:
        wide = fourier_resample(values.double(), n, ndim=3) * result.gain
        return torch.fft.irfftn(torch.fft.rfftn(wide) * sharp, s=(n,) * 3)

    beyond = torch.fft.irfftn(own * (1 - edge), s=(n,) * 3)
    spread = torch.stack([back(s) for s in result.samples]).std(0) if len(result.samples) > 1 else 0 * mean
    return Denoised(placed(back(result.mean) + beyond), placed(spread), True, own_misfit, result)
