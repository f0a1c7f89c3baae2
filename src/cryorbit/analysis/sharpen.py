"""Amplitudes of a map per shell, the B-factor that they fall by, and the map with it taken out.

A map of two halves with correlation F holds signal and noise in the ratio F : (1 - F) / 2 of power per shell, so
sqrt(2 F / (1 + F)) times its amplitude is the signal's (Rosenthal and Henderson, J. Mol. Biol. 333, 2003). That is
the weight of each shell, and the slope of ln(signal amplitude) over 1 / d^2 is a quarter of the B-factor to apply.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation
from cryorbit.analysis.ssnr import cref
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import apply_b_factor, low_pass
from cryorbit.fourier.grid import radius_grid
from cryorbit.fourier.shells import shell_mean

FEWEST_SHELLS = 4
"""A line through fewer points says nothing of a slope."""


@dataclass(frozen=True, eq=False)
class GuinierPlot:
    """Root mean square amplitude of a map's transform in each Fourier shell.

    Parameters
    ----------
    frequency_per_A
        Shape (shells,).
    amplitude, weighted
        Shape (shells,): of the map, and of its signal (times the FSC weight); any unit.
    """

    frequency_per_A: Float[Tensor, "shells"]
    amplitude: Float[Tensor, "shells"]
    weighted: Float[Tensor, "shells"]


@dataclass(frozen=True)
class GuinierFit:
    """The straight line ln(amplitude) = intercept + b_factor_A2 / 4 * s^2 over a range of resolution.

    Parameters
    ----------
    b_factor_A2
        Negative for a map that falls off, as sharpening B-factors are quoted; its negative sharpens.
    intercept
        ln(amplitude) at s = 0.
    from_A, to_A
        Resolution of the first and the last shell of the fit.
    correlation
        Of the points with the line, -1 to 1: below about 0.8 in size the line describes nothing.
    """

    b_factor_A2: float
    intercept: float
    from_A: float
    to_A: float
    correlation: float


def fsc_weights(curve: ShellCorrelation) -> Float[Tensor, "shells"]:
    """sqrt(2 F / (1 + F)) per shell, 0 from the first shell on where F is not positive; 1 at the origin.

    >>> fsc_weights(ShellCorrelation(torch.arange(4) / 10, torch.tensor([1.0, 1.0, 0.0, 0.5]))).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    f = curve.correlation.clamp_max(1.0).clone()
    f[0] = 1.0
    reached = torch.cumprod((f > 0).to(f), 0)
    return cref(f) * reached


def guinier_plot(volume: Volume, curve: ShellCorrelation, *, mask: Volume | None = None) -> GuinierPlot:
    """Amplitudes of the mean of two half maps, and of the signal in it by their correlation.

    Parameters
    ----------
    curve
        Correlation of the half maps; if masked, then `mask` should be the same, so that noise in the solvent
        does not count as signal.
    """
    values = volume.values.double() * (1.0 if mask is None else mask.values.double())
    power = torch.fft.rfftn(values).abs().square()
    amplitude = shell_mean(power, n=volume.box, ndim=3).sqrt()
    if amplitude.shape != curve.correlation.shape:
        raise BadInput(
            f"guinier_plot: a map of box {volume.box} has {len(amplitude)} shells, the curve has "
            f"{len(curve.correlation)}. Give the curve of its own half maps."
        )
    weights = fsc_weights(curve).to(amplitude)
    return GuinierPlot(curve.frequency_per_A.to(amplitude), amplitude, amplitude * weights)


def fit_b_factor(plot: GuinierPlot, *, from_A: float = 10.0, to_A: float) -> GuinierFit | None:
    """Least squares line through the weighted amplitudes between two resolutions; None if too few shells.

    Below about 10 A proteins have no straight Guinier plot, so nothing coarser should be fitted.

    Raises
    ------
    BadInput
        If the range is empty.
    """
    if not 0 < to_A < from_A:
        raise BadInput(
            f"B-factor: the range of the fit from {from_A:g} A to {to_A:g} A is empty. Give the coarse end first."
        )
    s = plot.frequency_per_A
    use = (s >= 1.0 / from_A) & (s <= 1.0 / to_A * (1 + 1e-9)) & (plot.weighted > 0)
    if int(use.sum()) < FEWEST_SHELLS:
        return None
    x, y = s[use].double().square(), plot.weighted[use].double().log()
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx * dy).sum() / dx.square().sum())
    spread = float((dx.square().sum() * dy.square().sum()).sqrt())
    return GuinierFit(
        b_factor_A2=4.0 * slope,
        intercept=float(y.mean()) - slope * float(x.mean()),
        from_A=1.0 / float(s[use][0]),
        to_A=1.0 / float(s[use][-1]),
        correlation=float((dx * dy).sum()) / spread if spread > 0 else 0.0,
    )


def sharpen(volume: Volume, curve: ShellCorrelation, *, b_factor_A2: float, low_pass_A: float) -> Volume:
    """The mean of two half maps, weighted by what they agree on, multiplied by exp(-B s^2 / 4) and low-passed.

    Parameters
    ----------
    curve
        Correlation of the halves, corrected for the mask; its weight is linear between shells.
    b_factor_A2
        Negative sharpens.
    low_pass_A
        What is finer is removed: amplified noise.
    """
    n, values = volume.box, volume.values
    weights = fsc_weights(curve).to(values)
    radius = radius_grid(n, ndim=3, device=values.device, dtype=values.dtype)
    transfer = _at_radius(weights, radius)
    values = torch.fft.irfftn(torch.fft.rfftn(values) * transfer, s=values.shape)
    pixel = volume.pixel_size_A
    values = apply_b_factor(values, b_factor_A2=b_factor_A2, pixel_size_A=pixel, ndim=3)
    values = low_pass(values, resolution_A=low_pass_A, pixel_size_A=pixel, ndim=3)
    return Volume(values, pixel, volume.origin_A, volume.nstart)


def _at_radius(per_shell: Float[Tensor, "shells"], radius: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Linear between shells, 0 beyond the last one."""
    padded = torch.nn.functional.pad(per_shell, (0, 2))
    low = radius.floor().long().clamp_max(len(per_shell))
    share = (radius - low).clamp(0.0, 1.0)
    inside = radius <= len(per_shell) - 1
    return torch.where(inside, padded[low] * (1 - share) + padded[low + 1] * share, radius.new_zeros(()))
