"""From two half maps to a map worth looking at: mask, corrected FSC, sharpening, and what to beware of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cryorbit.analysis.cone_fsc import ConeCorrelation, cone_correlation
from cryorbit.analysis.fsc import (
    MASK_EFFECT_LIMIT,
    MaskedCorrelation,
    fourier_shell_correlation,
    phase_randomised_fsc,
)
from cryorbit.analysis.masks import automatic_mask
from cryorbit.analysis.sharpen import GuinierFit, GuinierPlot, fit_b_factor, guinier_plot, sharpen
from cryorbit.data import Volume
from cryorbit.errors import BadInput

THRESHOLD = 0.143
_POOR_LINE = 0.8
_MUCH_OF_THE_BOX = 0.5


@dataclass(frozen=True, kw_only=True)
class PostprocessSettings:
    """How half maps become one sharpened map."""

    mask_low_pass_A: float | None = None
    """Resolution of the map that the mask is cut from; 15 A, or the map's own where that is coarser."""
    mask_threshold: float | None = None
    """Density after that low-pass that is particle; from the histogram unless given."""
    mask_grow_A: float | None = None
    """How far the mask is grown; three voxels, at least 6 A, unless given."""
    mask_edge_A: float | None = None
    """Width of its soft edge; five voxels, at least 12 A, unless given."""
    b_factor_A2: float | None = None
    """B-factor to apply, negative to sharpen; from a Guinier fit unless given."""
    fit_from_A: float = 10.0
    """Coarse end of the Guinier fit."""
    fit_to_A: float | None = None
    """Fine end of the Guinier fit; the final resolution, or two shells from Nyquist, unless given."""
    low_pass_A: float | None = None
    """Low-pass of the result; the final resolution unless given."""
    seed: int = 0
    """Seed of the random phases."""


@dataclass(frozen=True, eq=False)
class PostprocessResult:
    """What `postprocess` finds.

    Parameters
    ----------
    map, masked
        The sharpened map, whole and times the mask.
    mask
        Given or automatic.
    curves
        FSC without mask, with it, with phases randomised, corrected.
    guinier, fit
        Amplitudes of the masked map, and the line through them or None.
    b_factor_A2, low_pass_A
        What was applied.
    resolution_A
        First crossing of 0.143 of the corrected curve.
    cones
        The same curve by direction.
    warnings
        A sentence each.
    """

    map: Volume
    masked: Volume
    mask: Volume
    curves: MaskedCorrelation
    guinier: GuinierPlot
    fit: GuinierFit | None
    b_factor_A2: float
    low_pass_A: float
    resolution_A: float
    cones: ConeCorrelation
    warnings: tuple[str, ...]


def mean_map(half1: Volume, half2: Volume) -> Volume:
    """The map of all particles, where both halves have the same number."""
    return Volume(0.5 * (half1.values + half2.values), half1.pixel_size_A, half1.origin_A, half1.nstart)


def mask_of_halves(half1: Volume, half2: Volume, settings: PostprocessSettings) -> Volume:
    """Automatic soft mask around what both halves show, cut from their mean at a resolution that they hold."""
    low_pass_A = settings.mask_low_pass_A
    if low_pass_A is None:
        own = fourier_shell_correlation(half1, half2).resolution_A(0.5)
        low_pass_A = max(15.0, own) if math.isfinite(own) else 15.0
    return automatic_mask(
        mean_map(half1, half2),
        low_pass_A=low_pass_A,
        threshold=settings.mask_threshold,
        dilate_A=settings.mask_grow_A,
        edge_A=settings.mask_edge_A,
    )


def postprocess(
    half1: Volume, half2: Volume, settings: PostprocessSettings, *, mask: Volume | None = None
) -> PostprocessResult:
    """Mask, corrected FSC, B-factor, weighting and low-pass, as RELION orders them.

    Parameters
    ----------
    half1, half2
        Unfiltered and unmasked half maps.
    mask
        Values 0 to 1 with a soft edge; automatic if None.

    Raises
    ------
    BadInput
        If boxes or pixel sizes disagree, the mask does not fit, or the halves agree nowhere.
    """
    unmasked = fourier_shell_correlation(half1, half2)  # refuses halves that do not match
    mask = mask_of_halves(half1, half2, settings) if mask is None else _checked(mask, half1)
    generator = torch.Generator().manual_seed(settings.seed)
    curves = phase_randomised_fsc(half1, half2, mask, generator)
    resolution = curves.corrected.resolution_A(THRESHOLD)
    if not math.isfinite(resolution):
        raise BadInput(
            "The half maps agree nowhere above 0.143, so there is nothing to sharpen "
            f"(first shells without a mask: {', '.join(f'{v:.2f}' for v in unmasked.correlation[1:5].tolist())}). "
            "Look at the maps; give another mask if the automatic one misses the particle."
        )
    mean = mean_map(half1, half2)
    plot = guinier_plot(mean, curves.corrected, mask=mask)
    fit = _fit(plot, settings, resolution)
    b_factor = settings.b_factor_A2
    if b_factor is None:
        b_factor = 0.0 if fit is None else fit.b_factor_A2
    low_pass_A = resolution if settings.low_pass_A is None else settings.low_pass_A
    sharpened = sharpen(mean, curves.corrected, b_factor_A2=b_factor, low_pass_A=low_pass_A)
    masked = Volume(sharpened.values * mask.values, mean.pixel_size_A, mean.origin_A, mean.nstart)
    warnings = (*curve_warnings(curves), *mask_warnings(mask), *_b_factor_warnings(fit, settings))
    cones = cone_correlation(half1, half2, mask=mask, correction=curves)
    return PostprocessResult(
        sharpened, masked, mask, curves, plot, fit, b_factor, low_pass_A, resolution, cones, warnings
    )


def _checked(mask: Volume, half: Volume) -> Volume:
    """The mask on the halves' device, refused unless it is one of the same box."""
    if mask.box != half.box:
        raise BadInput(f"The mask has box {mask.box}, the half maps {half.box}. Crop or pad the mask.")
    low, high = float(mask.values.min()), float(mask.values.max())
    if low < -1e-3 or high > 1 + 1e-3 or high < 0.5:
        raise BadInput(
            f"The mask's values go from {low:.3g} to {high:.3g}, wanted 0 to 1. Scale it, or leave it out."
        )
    return Volume(mask.values.clamp(0, 1).to(half.values), half.pixel_size_A, half.origin_A, half.nstart)


def _fit(plot: GuinierPlot, settings: PostprocessSettings, resolution_A: float) -> GuinierFit | None:
    """The line through the shells that are resolved, without the last two: reconstructions fade out there."""
    last = 1.0 / float(plot.frequency_per_A[-3])
    to_A = max(resolution_A, last) if settings.fit_to_A is None else settings.fit_to_A
    if settings.fit_to_A is None and to_A >= settings.fit_from_A:
        return None
    return fit_b_factor(plot, from_A=settings.fit_from_A, to_A=to_A)


def curve_warnings(curves: MaskedCorrelation) -> list[str]:
    """What the curves themselves warn of, a sentence each."""
    found, corrected = [], curves.corrected
    if corrected.nyquist_limited(THRESHOLD):
        found.append(
            "The FSC stays above 0.143 up to the last shell: the pixel size sets the limit, not the data."
        )
    elif corrected.recrosses(THRESHOLD):
        found.append("The FSC rises above 0.143 again after its first crossing; the first one counts.")
    if curves.mask_too_tight(THRESHOLD):
        found.append(
            f"The mask alone correlates the half maps (more than {MASK_EFFECT_LIMIT}) at the final resolution: "
            "take a softer, wider mask."
        )
    return found


def mask_warnings(mask: Volume) -> list[str]:
    """Whether the mask has a hard edge, or holds most of the box."""
    found = []
    values = mask.values
    soft = float(((values > 0.01) & (values < 0.99)).double().sum())
    solid = float((values >= 0.99).double().sum())
    if soft < 0.05 * solid:
        found.append(
            "The mask has hardly any soft edge, which makes noise correlate: give it one of five voxels."
        )
    share = float((values > 0.5).double().mean())
    if share > _MUCH_OF_THE_BOX:
        found.append(f"The mask fills {share:.0%} of the box: it hardly keeps solvent out.")
    return found


def _b_factor_warnings(fit: GuinierFit | None, settings: PostprocessSettings) -> list[str]:
    if settings.b_factor_A2 is not None:
        return []
    if fit is None:
        return [
            f"Too few shells between {settings.fit_from_A:g} A and the final resolution for a B-factor: none was "
            "applied. Give one with --b-factor-A2 if you know it."
        ]
    found = []
    if abs(fit.correlation) < _POOR_LINE:
        found.append(
            f"The Guinier plot is no straight line (correlation {fit.correlation:.2f}): doubt the B-factor."
        )
    if fit.b_factor_A2 > 0:
        found.append(
            f"The Guinier fit gives a B-factor of {fit.b_factor_A2:+.0f} A^2, which blurs: doubt it."
        )
    return found
