"""Maps beside a posterior: what the data say without the prior, and where the two disagree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.fourier.filters import low_pass
from cryorbit.inference.gaussian_solves import solve_precision
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.models.map_spectrum import MapSpectrum


@dataclass(frozen=True, eq=False)
class DataOnly:
    """The Wiener filter's map, and the standard deviation of its error per voxel, one for all voxels."""

    map: Float[Tensor, "n n n"]
    deviation: float


def data_only(
    data: TwoVolumes, spectrum: MapSpectrum, *, resolution_A: float, cutoff_A: float | None
) -> DataOnly:
    """(W + 1 / P)^-1 B with the mean spectrum P of the prior's maps: all that Gaussian statistics can say.

    Parameters
    ----------
    data
        In the spectrum's unit.
    cutoff_A
        Low pass of the map; its deviation is from the truth through the same. None: none.
    """
    size, limit = (torch.tensor(v, dtype=torch.float32) for v in (data.pixel_size_A, resolution_A))
    power = spectrum.variance(data.box, size[None], limit[None, None])[0].to(data.weight)
    extra = 1 / power.clamp_min(1e-12 * float(power.max()))
    found = solve_precision(data, data.back_projection, extra, tolerance=1e-3, steps=200)
    point = torch.zeros((data.box,) * 3, dtype=torch.float64)
    point[0, 0, 0] = 1.0
    passed = torch.fft.rfftn(cut(point, cutoff_A, data.pixel_size_A)).real.to(data.weight.device)
    left = (1 / (data.weight + extra)).double() * passed.square()
    twice = torch.full((left.shape[-1],), 2.0, dtype=torch.float64).to(left)
    twice[0] = 1.0
    if data.box % 2 == 0:
        twice[-1] = 1.0
    deviation = float(((left * twice).sum() / data.box**3).sqrt())
    return DataOnly(cut(found, cutoff_A, data.pixel_size_A), deviation)


def disagreement(
    posterior: Float[Tensor, "n n n"], spread: Float[Tensor, "n n n"], without: DataOnly
) -> Float[Tensor, "n n n"]:
    """Posterior less data-only map in units of both their standard deviations together.

    Positive: density that the prior added; negative: that it took away. Beyond 3 it is more than noise explains.
    """
    return (posterior - without.map) / (spread.square() + without.deviation**2).sqrt().clamp_min(1e-30)


def cut(
    values: Float[Tensor, "*batch n n n"], cutoff_A: float | None, voxel_size_A: float
) -> Float[Tensor, "*batch n n n"]:
    """Maps low-passed at the data's resolution; as they are where there is none."""
    if cutoff_A is None:
        return values
    return low_pass(values, resolution_A=cutoff_A, pixel_size_A=voxel_size_A, ndim=3)
