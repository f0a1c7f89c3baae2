"""The mean power spectrum of maps, and what it alone makes of a noisy map: the Wiener filter that a prior starts from.

Maps of proteins are smooth and sparse: their power falls by orders of magnitude within the band, and a number that
stands for all of it (sigma_data) lets a network spend its training on learning a filter that is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.fourier.grid import radius_grid
from cryorbit.fourier.shells import sample_weight


@dataclass(frozen=True, eq=False)
class Wiener:
    """Coefficients of a denoiser that starts from the Wiener filter, per sample.

    Parameters
    ----------
    estimate
        The filtered map, sum of P / (P + s^2) over the Fourier terms: the posterior mean under the spectrum alone.
    spread
        Its standard deviation per voxel, the root of the mean of P^2 / (P + s^2), shape (b,).
    into
        One over the noisy map's, the root of the mean of P + s^2.
    out
        Standard deviation of the error of `estimate`, the root of the mean of P s^2 / (P + s^2).
    """

    estimate: Float[Tensor, "b ..."]
    spread: Float[Tensor, "b"]
    into: Float[Tensor, "b"]
    out: Float[Tensor, "b"]


@dataclass(frozen=True)
class MapSpectrum:
    """Mean |V^(k)|^2 of maps before their low pass, V^ the transform in space: sum of values times voxel volume.

    Parameters
    ----------
    power
        At multiples of `step_per_A` from 0 on, in the square of the map's unit times A^6; constant beyond the last.
        Empty: maps are taken for white.
    step_per_A
        Distance of the samples, 1 / A.
    white
        Variance per voxel where `power` is empty.
    """

    power: tuple[float, ...] = ()
    step_per_A: float = 0.01
    white: float = 1.0

    def __post_init__(self) -> None:
        if min((*self.power, self.step_per_A, self.white)) <= 0:
            raise BadInput(
                "MapSpectrum: powers, their distance and the variance have to be positive. Measure them on maps."
            )

    def variance(
        self, box: int, voxel_size_A: Float[Tensor, "b"], resolution_A: Float[Tensor, "b r"]
    ) -> Float[Tensor, "b n n m"]:
        """Of each Fourier term of `rfftn(norm="ortho")`, maps low-passed by exp(-d^2 k^2), mean over resolutions d."""
        radius = radius_grid(box, ndim=3, layout="half", device=voxel_size_A.device, dtype=voxel_size_A.dtype)
        if not self.power:
            return voxel_size_A.new_full((len(voxel_size_A), *radius.shape), self.white)
        frequency = radius / box / voxel_size_A.view(-1, 1, 1, 1)
        log_power = voxel_size_A.new_tensor(self.power).log()
        at = (frequency / self.step_per_A).clamp_max(len(self.power) - 1)
        low = at.floor().long().clamp_max(max(len(self.power) - 2, 0))
        high = (low + 1).clamp_max(len(self.power) - 1)
        power = torch.lerp(log_power[low], log_power[high], at - low).exp()
        passed = (
            sum(torch.exp(-2 * (d.view(-1, 1, 1, 1) * frequency) ** 2) for d in resolution_A.unbind(1))
            / resolution_A.shape[1]
        )
        return power * passed / (box * voxel_size_A.view(-1, 1, 1, 1) ** 2) ** 3

    def filter(
        self,
        x: Float[Tensor, "b 1 n n n"],
        sigma: Float[Tensor, "b"],
        voxel_size_A: Float[Tensor, "b"],
        resolution_A: Float[Tensor, "b r"],
    ) -> Wiener:
        """What the spectrum alone says about a map under white noise of this standard deviation per voxel."""
        return wiener(x, self.variance(x.shape[-1], voxel_size_A, resolution_A), sigma)


def wiener(x: Float[Tensor, "b ..."], variance: Float[Tensor, "b ..."], sigma: Float[Tensor, "b"]) -> Wiener:
    """The filter for a variance of each Fourier term of `rfftn(norm="ortho")` over the last axes, one per sample.

    Parameters
    ----------
    x
        Noisy maps or images, shape (b, *others, n, ..., n).
    variance
        Shape (b, n, ..., n // 2 + 1), as many axes as the transform; the same for all others.
    """
    box, ndim = x.shape[-1], variance.dim() - 1
    dims = tuple(range(-ndim, 0))
    noise = sigma.view(-1, *[1] * ndim) ** 2
    gain = variance / (variance + noise)
    wide = gain.view(len(gain), *[1] * (x.dim() - 1 - ndim), *gain.shape[1:])
    estimate = torch.fft.irfftn(wide * torch.fft.rfftn(x, dim=dims), s=(box,) * ndim, dim=dims)
    weight = sample_weight(box, ndim=ndim, device=gain.device, dtype=gain.dtype)

    def mean(of: Tensor) -> Tensor:
        return (of * weight).sum(dims) / box**ndim

    return Wiener(
        estimate, mean(gain * variance).sqrt(), mean(variance + noise).rsqrt(), mean(gain * noise).sqrt()
    )


def measure_spectrum(
    density: Float[Tensor, "b 1 n n n"],
    voxel_size_A: Float[Tensor, "b"],
    resolution_A: Float[Tensor, "b"],
    *,
    step_per_A: float = 0.01,
) -> MapSpectrum:
    """The mean spectrum of maps, their low passes divided out; of boxes and voxels of any size.

    Frequencies where a low pass leaves less than a thousandth, and those from Nyquist on, are left out; bins nobody
    reaches take the last one's value.

    Raises
    ------
    BadInput
        If the maps are empty.
    """
    box = density.shape[-1]
    power = torch.fft.rfftn(density[:, 0].double(), dim=(-3, -2, -1)).abs().square()
    radius = radius_grid(box, ndim=3, layout="half", dtype=torch.float64)
    frequency = radius / box / voxel_size_A.double().view(-1, 1, 1, 1)
    passed = torch.exp(-2 * (resolution_A.double().view(-1, 1, 1, 1) * frequency) ** 2)
    power = power * voxel_size_A.double().view(-1, 1, 1, 1) ** 6 / passed
    kept = (passed > 1e-3) & (radius < (box - 1) / 2)
    bins = (frequency / step_per_A).round().long()[kept]
    total = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(0, bins, power[kept])
    mean = total / torch.bincount(bins).clamp_min(1)
    values: list[float] = []
    for value in mean.tolist():
        values.append(value if value > 0 else (values[-1] if values else 0.0))
    if not values or min(values) <= 0:
        raise BadInput("measure_spectrum: maps without power. Look at the structures they are drawn from.")
    return MapSpectrum(tuple(values), step_per_A)
