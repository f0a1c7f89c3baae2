"""Particle images brought to what a prior of maps knows: its voxels, its low pass, its box; the unit stays open.

A prior's maps are low-passed by G = exp(-d^2 k^2). Images of the sharp map times G, their noise with them, are images of
the low-passed map: the same likelihood in other words, since G depends on |k| alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryorbit.data import ImageSource, ParticleStack
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid
from cryorbit.fourier.resample import fourier_resample
from cryorbit.inference.collapse import collapse, data_correlation, group_noise
from cryorbit.inference.half_sets import half_sets
from cryorbit.inference.image_sums import central
from cryorbit.inference.observations import Observations, level
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.models.volume_prior import VolumePriorShape

_MARGIN = 1.1
"""Field of view over the diameter of the particle, besides three voxels for the prior's own margin."""
_NOISE_RADIUS, _NOISE_EDGE = 0.42, 0.04
"""Of the box: noise is measured outside of this circle, as `observations.observe` does. A circle of the particle's measured
radius lets in what defocus spreads and the radius leaves out: 10 to 80 % too much noise in coarse shells at SNR 0.1."""
_LEAST_NOISE = 1e-6
"""Of the images' mean power: images without noise have infinite weight."""


@dataclass(frozen=True)
class PriorGrid:
    """Grid of the posterior's maps.

    Parameters
    ----------
    box, voxel_size_A
        Of the maps.
    images_px
        Edge of the images after their crop in Fourier space to the same voxels; the field of view stays.
    resolution_A
        Of the low pass that the prior's maps went through: exp(-1) at this resolution.
    """

    box: int
    voxel_size_A: float
    images_px: int
    resolution_A: float


def grid_for(
    shape: VolumePriorShape,
    *,
    box: int,
    pixel_size_A: float,
    diameter_A: float,
    resolution_A: float | None = None,
    source: str = "images",
) -> PriorGrid:
    """The finest grid that the prior knows and that holds the particle.

    Parameters
    ----------
    box, pixel_size_A
        Of the images or maps at hand.
    diameter_A
        Of the particle.
    resolution_A
        Low pass of the maps; the finest that prior and voxels allow unless given.
    source
        What to call the images in an error.

    Raises
    ------
    BadInput
        If the particle is too large for the prior, the pixels too coarse, or the resolution is none that it knows.
    """
    field_A = box * pixel_size_A
    finest, coarsest = shape.voxel_size_A
    extent_A = min(field_A, _MARGIN * diameter_A + 3 * finest)
    wanted = max(extent_A / shape.box, finest, pixel_size_A)
    if pixel_size_A > 1.02 * coarsest:
        raise BadInput(
            f"{source}: pixels of {pixel_size_A:g} A, but this prior knows voxels of {finest:g} to {coarsest:g} A. Extract "
            f"the particles again with smaller pixels, or train a prior for these (`cryorbit prior train --voxel-size-A`)."
        )
    if wanted > 1.02 * coarsest:
        side = 16 * -(-int(extent_A / coarsest + 1) // 16)
        raise BadInput(
            f"{source}: a particle of {diameter_A:.0f} A needs a map of {extent_A:.0f} A, but this prior's reach "
            f"{shape.box * coarsest:.0f} A ({shape.box} voxels of up to {coarsest:g} A). Give --particle-diameter-A if the "
            f"measured one is too large; else train a prior on larger boxes: `cryorbit prior train --box {side}`."
        )
    images_px = min(box, max(8, int(field_A / wanted + 1e-6)))
    voxel = field_A / images_px
    resolution = max(shape.resolution_A[0], 2 * voxel) if resolution_A is None else resolution_A
    if resolution < 1.999 * voxel:
        raise BadInput(
            f"{source}: --resolution-A {resolution:g} is finer than two voxels of {voxel:.3g} A. Give {2 * voxel:.3g}."
        )
    fine, coarse = shape.resolution_A
    if resolution_A is not None and not 0.95 * fine <= resolution_A <= 1.05 * coarse:
        raise BadInput(
            f"{source}: --resolution-A {resolution_A:g}, but this prior's maps were low-passed to {fine:g} to {coarse:g} A. "
            "Give one of these, or leave it out."
        )
    return PriorGrid(min(shape.box, images_px), voxel, images_px, resolution)


def gaussian_pass(box: int, voxel_size_A: float, resolution_A: float, *, ndim: int) -> Float[Tensor, "..."]:
    """exp(-d^2 k^2) on the half transform: the low pass of the prior's maps."""
    k = radius_grid(box, ndim=ndim, dtype=torch.float32) / (box * voxel_size_A)
    return torch.exp(-((resolution_A * k) ** 2))


@dataclass(frozen=True, eq=False)
class CroppedImages:
    """Images of another source with the background at 0, cropped in Fourier space, low-passed if asked.

    Values are those of projections that sum voxels: times the old pixel over the new one.
    """

    source: ImageSource
    background: Bool[Tensor, "h w"]
    box: int
    sign: float
    scale_each: bool
    low_pass_A: float | None
    pixel_size_A: float
    """Of this box."""

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def _pass(self) -> Tensor | None:
        if self.low_pass_A is None:
            return None
        return gaussian_pass(self.box, self.pixel_size_A, self.low_pass_A, ndim=2)

    def __getitem__(self, index: slice | Int[Tensor, "n"]) -> Float[Tensor, "n h w"]:
        images = level(self.source[index], self.background, sign=self.sign, scale_each=self.scale_each)
        small = fourier_resample(images, self.box, ndim=2) * (self.box / self.source.box)
        if self._pass is None:
            return small
        return torch.fft.irfft2(torch.fft.rfft2(small) * self._pass, s=(self.box, self.box))


@dataclass(frozen=True, eq=False)
class PosedImages:
    """Particles with poses on the prior's grid, and their noise.

    Parameters
    ----------
    stack
        Light protein, cropped and low-passed.
    noise_power
        Per optics group and shell.
    """

    stack: ParticleStack
    noise_power: Float[Tensor, "groups shells"]
    grid: PriorGrid


def posed_images(observed: Observations, grid: PriorGrid) -> PosedImages:
    """The particles of `observed` on the grid, with noise spectra measured near the images' corners, by optics group."""
    n, voxel = grid.images_px, grid.voxel_size_A
    plain = CroppedImages(
        observed.stack.images,
        observed.background,
        n,
        observed.sign,
        observed.scale_each,
        None,
        voxel,
    )
    stack = replace(observed.stack, images=plain, pixel_size_A=voxel)
    power = group_noise(stack, radius_px=_NOISE_RADIUS * n, edge_px=_NOISE_EDGE * n)
    some = torch.linspace(0, len(stack) - 1, min(len(stack), 200)).long()
    floor = _LEAST_NOISE * float(torch.fft.rfft2(plain[some]).abs().square().mean())
    shell = torch.arange(power.shape[-1]) / (n * voxel)
    power = power.clamp_min(floor) * torch.exp(-2 * (grid.resolution_A * shell) ** 2)
    stack = replace(stack, images=replace(plain, low_pass_A=grid.resolution_A))
    return PosedImages(stack, power, grid)


@dataclass(frozen=True, eq=False)
class Halves:
    """The likelihoods of two halves of the images, on the prior's grid, in the images' own unit."""

    first: TwoVolumes
    second: TwoVolumes

    @property
    def both(self) -> TwoVolumes:
        """Of all images."""
        return replace(self.first + self.second, cutoff_A=self.first.cutoff_A)

    def scaled(self, factor: float) -> Halves:
        """See `TwoVolumes.scaled`."""
        return Halves(self.first.scaled(factor), self.second.scaled(factor))


def collapse_half(images: PosedImages, half: int, *, seed: int) -> TwoVolumes:
    """One half of the images, 0 or 1, as two volumes; the file's own halves where it has them.

    Raises
    ------
    BadInput
        If the half is empty.
    """
    which = half_sets(images.stack, generator=torch.Generator().manual_seed(seed))
    rows = torch.nonzero(which == half)[:, 0]
    return central(collapse(images.stack, images.noise_power, rows=rows), images.grid.box)


def with_cutoff(halves: Halves, *, threshold: float = 0.143) -> Halves:
    """The halves told how far their maps without a prior agree."""
    curve = data_correlation(halves.first, halves.second)
    cutoff = None if curve.nyquist_limited(threshold) else curve.resolution_A(threshold)
    cutoff = None if cutoff is None else min(cutoff, halves.first.box * halves.first.pixel_size_A)
    return Halves(replace(halves.first, cutoff_A=cutoff), replace(halves.second, cutoff_A=cutoff))
