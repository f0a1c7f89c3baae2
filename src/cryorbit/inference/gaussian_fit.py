"""A map described by Gaussians: seeds, then a fit of all parameters in Fourier space, more Gaussians until it resolves."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation
from cryorbit.analysis.gaussian_seeds import seed_gaussians
from cryorbit.data import Gaussians, Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.shells import sample_weight, shell_mean, spread_shells
from cryorbit.inference.engine import Progress
from cryorbit.physics.splat import gaussians_to_map, map_transform

_LEAST_PX, _MOST_PX = 0.35, 6.0
"""Standard deviations that a fit may reach, voxels."""


@dataclass(frozen=True, kw_only=True)
class GaussianFitSettings:
    """How Gaussians are fitted to a map."""

    resolution_A: float | None = None
    """The fit ends when map and Gaussians correlate to this resolution; None: three voxels."""
    fsc: float = 0.9
    """What "correlate" means: Fourier shell correlation."""
    count: int = 500
    """Gaussians of the first round."""
    most: int = 8000
    """Never more than this."""
    growth: float = 1.6
    """How many times as many in each further round; the new ones stand where density is left."""
    steps: int = 80
    """Steps of Adam per round."""
    position_rate_px: float = 0.15
    """Step of positions at first, voxels; all steps fall along a half cosine."""
    shape_rate: float = 0.05
    """Step of the logarithms of amplitude and width at first."""
    level: float | None = None
    """Density that is particle, for the seeds; None: found from the histogram."""
    seed: int = 0
    """Of the seeds' first places."""


@dataclass(frozen=True, eq=False)
class GaussianFit:
    """Gaussians fitted to a map.

    Parameters
    ----------
    curve
        FSC of the map and the map of the Gaussians.
    resolution_A
        Where it falls below the wanted correlation.
    reached
        Whether that is the wanted resolution or better.
    """

    gaussians: Gaussians
    curve: ShellCorrelation
    resolution_A: float
    reached: bool


def fit_gaussians(volume: Volume, settings: GaussianFitSettings) -> Iterator[Progress]:
    """Rounds of seeds and fit until the wanted resolution is reached or the Gaussians run out.

    The loss is the misfit of transforms to the wanted resolution, each shell divided by the map's own power, so that all
    shells count alike. Amplitudes stay positive. The last record's `result` is a `GaussianFit`.

    Raises
    ------
    BadInput
        If a setting makes no sense, or no density is above the level.
    """
    wanted = _wanted_resolution(volume, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    goal = _Goal(volume, wanted)
    gaussians = seed_gaussians(
        volume, count=min(settings.count, settings.most), generator=generator, level=settings.level
    )
    while True:
        gaussians, misfit = yield from _fit(goal, gaussians, settings)
        drawn = gaussians_to_map(gaussians, box=volume.box, pixel_size_A=volume.pixel_size_A)
        curve = fourier_shell_correlation(volume, drawn)
        resolution = curve.resolution_A(settings.fsc)
        reached = resolution <= wanted or curve.nyquist_limited(settings.fsc)
        n = len(gaussians)
        done = reached or n >= settings.most
        found = GaussianFit(gaussians, curve, resolution, reached) if done else None
        yield Progress(
            f"{n} Gaussians fitted",
            settings.steps,
            settings.steps,
            1.0 if done else min(0.95, n / settings.most),
            {"gaussians": float(n), "resolution_A": resolution, "misfit": misfit},
            result=found,
        )
        if done:
            return
        more = min(settings.most, math.ceil(n * settings.growth)) - n
        gaussians = _with_more(gaussians, volume, drawn, more, generator)


def _wanted_resolution(volume: Volume, settings: GaussianFitSettings) -> float:
    pixel = volume.pixel_size_A
    wanted = 3 * pixel if settings.resolution_A is None else settings.resolution_A
    if not wanted >= 1.999 * pixel:
        raise BadInput(
            f"fit_gaussians: {wanted:g} A is finer than voxels of {pixel:g} A show. Give {2 * pixel:.3g} A or coarser."
        )
    for name, low, high in (("fsc", 0.0, 1.0), ("growth", 1.0, math.inf)):
        if not low < getattr(settings, name) < high:
            raise BadInput(
                f"fit_gaussians: {name} {getattr(settings, name):g} is not between {low:g} and {high:g}."
            )
    if settings.steps < 1 or settings.count < 1 or settings.most < 1:
        raise BadInput("fit_gaussians: steps, count and most must be at least 1.")
    return wanted


class _Goal:
    """The map's transform to the wanted resolution, and what each coefficient's misfit counts."""

    def __init__(self, volume: Volume, resolution_A: float) -> None:
        n, like = volume.box, volume.values
        self.box, self.pixel_size_A = n, volume.pixel_size_A
        self.transform = torch.fft.rfftn(torch.fft.ifftshift(volume.values))
        power = shell_mean(self.transform.abs().square(), n=n, ndim=3)
        shells = torch.arange(len(power), device=like.device)
        # A few shells more than are asked for, so that the fit does not fall at the edge.
        used = (shells <= math.ceil(1.1 * n * volume.pixel_size_A / resolution_A)) & (power > 0)
        per_shell = torch.where(used, 1 / power.clamp_min(torch.finfo(power.dtype).tiny), 0.0)
        weight = spread_shells(per_shell, n=n, ndim=3) * sample_weight(n, ndim=3, device=like.device)
        self.weight = (weight / (weight * self.transform.abs().square()).sum()).to(like)

    def misfit(self, gaussians: Gaussians) -> Tensor:
        """0 for the map itself, 1 for nothing."""
        drawn = map_transform(gaussians, box=self.box, pixel_size_A=self.pixel_size_A)[0]
        return (self.weight * (drawn - self.transform).abs().square()).sum()


def _fit(
    goal: _Goal, start: Gaussians, settings: GaussianFitSettings
) -> Generator[Progress, None, tuple[Gaussians, float]]:
    """Adam on positions and on the logarithms of amplitudes and widths."""
    pixel = goal.pixel_size_A
    place = (start.position_A / pixel).clone().requires_grad_()
    size = start.amplitude.clamp_min(1e-6 * start.amplitude.max()).log().requires_grad_()
    width = (start.width_A / pixel).log().requires_grad_()
    optimiser = torch.optim.Adam(
        [
            {"params": [place], "lr": settings.position_rate_px},
            {"params": [size, width], "lr": settings.shape_rate},
        ],
        betas=(0.9, 0.95),
    )
    half_cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps, eta_min=0.0)

    def gaussians() -> Gaussians:
        sigma = width.exp().clamp(_LEAST_PX, _MOST_PX)
        return Gaussians(place * pixel, size.exp(), sigma * pixel)

    misfit = math.nan
    for step in range(settings.steps):
        optimiser.zero_grad()
        loss = goal.misfit(gaussians())
        loss.backward()
        optimiser.step()
        half_cosine.step()
        misfit = float(loss.detach())
        if step % 20 == 0:
            fraction = min(0.95, len(start) / settings.most)
            yield Progress(
                f"fitting {len(start)} Gaussians", step, settings.steps, fraction, {"misfit": misfit}
            )
    with torch.no_grad():
        return gaussians(), misfit


def _with_more(
    gaussians: Gaussians, volume: Volume, drawn: Volume, count: int, generator: torch.Generator
) -> Gaussians:
    """`count` Gaussians added where the map has density that is not drawn yet."""
    left = replace(volume, values=(volume.values - drawn.values).clamp_min(0))
    level = float(torch.quantile(left.values.flatten()[:: max(1, left.values.numel() >> 20)], 0.9))
    new = seed_gaussians(left, count=count, generator=generator, level=level)
    return Gaussians(
        torch.cat((gaussians.position_A, new.position_A)),
        torch.cat((gaussians.amplitude, 0.5 * new.amplitude)),
        torch.cat((gaussians.width_A, new.width_A)),
    )
