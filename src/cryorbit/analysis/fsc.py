"""Fourier shell correlation, as RELION counts its shells, and what a mask adds to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.shells import shell_index, shell_sum

RANDOMISE_BELOW = 0.8
"""RELION randomises phases from the first shell whose unmasked correlation is below this."""

MASK_EFFECT_LIMIT = 0.1
"""If phase-randomised maps correlate more than this at the final resolution, the mask is too tight."""


@dataclass(frozen=True, eq=False)
class ShellCorrelation:
    """FSC(k) = Re sum F1 conj(F2) / sqrt(sum |F1|^2 sum |F2|^2), one value per Fourier shell from the origin.

    Parameters
    ----------
    frequency_per_A
        Shape (shells,): i / (N pixel_size_A) for shell i, which holds i - 0.5 <= |k| < i + 0.5.
    correlation
        Shape (shells,), -1 to 1; 0 where a shell is empty of signal.
    """

    frequency_per_A: Float[Tensor, "shells"]
    correlation: Float[Tensor, "shells"]

    def __post_init__(self) -> None:
        if self.frequency_per_A.shape != self.correlation.shape or self.correlation.ndim != 1:
            raise BadInput(
                f"ShellCorrelation: {tuple(self.frequency_per_A.shape)} frequencies but "
                f"{tuple(self.correlation.shape)} correlations. Give one of each per shell."
            )

    def _first_below(self, threshold: float) -> int | None:
        """First shell after the origin that is below the threshold, None if there is none."""
        below = torch.nonzero(self.correlation[1:] < threshold)
        return int(below[0, 0]) + 1 if below.numel() else None

    def resolution_A(self, threshold: float = 0.143) -> float:
        """Resolution at the first crossing of the threshold, linear between shells, in angstrom.

        A curve that never drops gives the last shell's resolution (see `nyquist_limited`); one below the
        threshold from the first shell on gives infinity: nothing is resolved.
        """
        shell = self._first_below(threshold)
        if shell is None:
            return 1.0 / float(self.frequency_per_A[-1])
        if shell == 1:
            return math.inf
        high, low = float(self.correlation[shell - 1]), float(self.correlation[shell])
        step = float(self.frequency_per_A[shell]) - float(self.frequency_per_A[shell - 1])
        return 1.0 / (float(self.frequency_per_A[shell - 1]) + step * (high - threshold) / (high - low))

    def nyquist_limited(self, threshold: float = 0.143) -> bool:
        """Whether the curve never drops below the threshold: the pixel size, not the data, sets the limit."""
        return self._first_below(threshold) is None

    def recrosses(self, threshold: float = 0.143) -> bool:
        """Whether the curve rises above the threshold again after the first crossing: worth a warning."""
        shell = self._first_below(threshold)
        return shell is not None and bool((self.correlation[shell:] > threshold).any())


@dataclass(frozen=True, eq=False)
class MaskedCorrelation:
    """FSC of two half maps without a mask, with it, with it after randomising phases, and corrected for it.

    corrected = masked up to two shells past `randomised_from`, then (masked - noise) / (1 - noise), where
    noise is the masked correlation of the phase-randomised maps (Chen et al., Ultramicroscopy 135, 2013).

    Parameters
    ----------
    randomised_from
        First shell with random phases; the number of shells if none was randomised.
    """

    unmasked: ShellCorrelation
    masked: ShellCorrelation
    randomised: ShellCorrelation
    corrected: ShellCorrelation
    randomised_from: int

    def mask_too_tight(self, threshold: float = 0.143) -> bool:
        """Whether the mask itself correlates the maps (> 0.1) at the corrected resolution."""
        if self.corrected.nyquist_limited(threshold):
            shell = len(self.corrected.correlation) - 1
        else:
            limit = 1.0 / self.corrected.resolution_A(threshold)
            shell = int((self.corrected.frequency_per_A - limit).abs().argmin())
        in_random_range = shell > self.randomised_from + 1
        return in_random_range and float(self.randomised.correlation[shell]) > MASK_EFFECT_LIMIT


def _correlate(
    f1: Complex[Tensor, "n n half"], f2: Complex[Tensor, "n n half"], *, n: int, pixel_size_A: float
) -> ShellCorrelation:
    """Shell correlation of two half transforms."""

    def total(values: Tensor) -> Tensor:
        return shell_sum(values.double(), n=n, ndim=3)

    cross = total(f1.real * f2.real + f1.imag * f2.imag)
    norm = (total(f1.abs() ** 2) * total(f2.abs() ** 2)).sqrt()
    correlation = torch.where(norm > 0, cross / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
    shell = torch.arange(n // 2 + 1, dtype=torch.float64, device=f1.device)
    return ShellCorrelation(shell / (n * pixel_size_A), correlation)


def _check_pair(a: Volume, b: Volume, mask: Volume | None) -> None:
    for name, other in (("second map", b), ("mask", mask)):
        if other is None:
            continue
        if other.box != a.box:
            raise BadInput(
                f"FSC: the first map has box {a.box} but the {name} has {other.box}. Crop or pad one of them."
            )
        if abs(other.pixel_size_A - a.pixel_size_A) > 0.005 * a.pixel_size_A and name != "mask":
            raise BadInput(
                f"FSC: pixel sizes differ: {a.pixel_size_A:g} A and {other.pixel_size_A:g} A. "
                "Resample one map, or correct its header."
            )


def fourier_shell_correlation(a: Volume, b: Volume, *, mask: Volume | None = None) -> ShellCorrelation:
    """Correlation of two maps shell by shell, from the origin to the last whole shell (N // 2).

    Parameters
    ----------
    mask
        Multiplies both maps first, if given. Its pixel size is not looked at.

    Raises
    ------
    BadInput
        If boxes or pixel sizes disagree.
    """
    _check_pair(a, b, mask)
    m = 1.0 if mask is None else mask.values
    f1, f2 = torch.fft.rfftn(a.values * m), torch.fft.rfftn(b.values * m)
    return _correlate(f1, f2, n=a.box, pixel_size_A=a.pixel_size_A)


def randomise_phases(
    values: Float[Tensor, "n n n"], *, from_shell: int, generator: torch.Generator
) -> Float[Tensor, "n n n"]:
    """The map with the phases of every coefficient from `from_shell` outwards replaced; amplitudes stay.

    Phases are those of the transform of real white noise, so the result is the transform of a real map:
    random phases drawn per coefficient would not be Hermitian and would lose half of the power.
    """
    transform = torch.fft.rfftn(values)
    noise = torch.randn(values.shape, generator=generator, device=generator.device, dtype=values.dtype)
    phase = torch.fft.rfftn(noise.to(values.device))
    phase = phase / phase.abs().clamp_min(torch.finfo(values.dtype).tiny)
    outer = shell_index(values.shape[0], ndim=3, device=values.device) >= from_shell
    randomised = torch.where(outer, transform.abs() * phase, transform)
    return torch.fft.irfftn(randomised, s=values.shape)


def phase_randomised_fsc(
    half1: Volume, half2: Volume, mask: Volume, generator: torch.Generator
) -> MaskedCorrelation:
    """Masked FSC of two half maps, corrected for what the mask alone would correlate.

    Phases are randomised from the first shell where the unmasked FSC is below 0.8; nothing is corrected if
    there is no such shell.

    Raises
    ------
    BadInput
        If boxes or pixel sizes disagree.
    """
    unmasked = fourier_shell_correlation(half1, half2)
    masked = fourier_shell_correlation(half1, half2, mask=mask)
    shells = len(unmasked.correlation)
    below = torch.nonzero(unmasked.correlation[1:] < RANDOMISE_BELOW)
    cut = int(below[0, 0]) + 1 if below.numel() else shells
    if cut == shells:
        return MaskedCorrelation(unmasked, masked, masked, masked, cut)
    noisy = [
        Volume(randomise_phases(h.values, from_shell=cut, generator=generator), h.pixel_size_A)
        for h in (half1, half2)
    ]
    randomised = fourier_shell_correlation(noisy[0], noisy[1], mask=mask)
    corrected = masked.correlation.clone()
    noise = randomised.correlation[cut + 2 :].clamp(max=1.0 - 1e-6)
    corrected[cut + 2 :] = (corrected[cut + 2 :] - noise) / (1.0 - noise)
    return MaskedCorrelation(
        unmasked, masked, randomised, ShellCorrelation(masked.frequency_per_A, corrected), cut
    )
