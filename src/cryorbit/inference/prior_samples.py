"""Samples of a trained prior in physical units: chains in angstrom, maps as volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.map_tools import resample_map
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import apply_b_factor
from cryorbit.inference.prior_sampling import Churn, noise_levels, sample
from cryorbit.models.point_prior import PointPrior
from cryorbit.models.triplane_prior import TriplanePrior
from cryorbit.models.volume_prior import VolumePrior


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How samples of a prior are drawn. Levels of noise are in units of the spread of the data.

    The defaults are those of chains. Maps have to start higher, see `MAPS`.
    """

    steps: int = 80
    """Levels of noise; two network passes each."""
    lowest: float = 0.005
    """The last of them."""
    highest: float = 10.0
    """The first."""
    churn: float = 60.0
    """Fresh noise put in on the way, which mends earlier errors: chains of 64 residues had 99 % of their bonds right with it
    and 97 % without, and twice as many helices. 0: the same start always gives the same sample."""
    churn_lowest: float = 0.02
    """No fresh noise below this level."""
    churn_highest: float = 3.0
    """Nor above this one."""
    seed: int = 0
    """Seed of everything random."""

    def levels(self, unit: float) -> Float[Tensor, "levels"]:
        """Levels of noise where the data have the spread `unit`."""
        return noise_levels(self.steps, self.lowest * unit, self.highest * unit)

    def churned(self, unit: float) -> Churn | None:
        """The fresh noise, None where there is to be none."""
        if not self.churn:
            return None
        return Churn(amount=self.churn, lowest=self.churn_lowest * unit, highest=self.churn_highest * unit)


MAPS = SampleSettings(highest=150.0, churn=20.0, churn_highest=50.0)
"""For maps: their power is in a few coarse Fourier terms, of standard deviations up to 25 times that of a voxel (box 32,
3 A), and noise has to drown these at the start. From a level of 10 maps came out with a third of their density."""


_NEAR = 0.95
"""A twentieth beyond what a prior was trained on is let pass, as `VolumePrior.denoiser` does."""


def sample_chains(
    prior: PointPrior, residues: Sequence[int], *, count: int, settings: SampleSettings | None = None
) -> Float[Tensor, "s n 3"]:
    """C-alphas in angstrom of `count` molecules, each of chains with so many residues, one after the other.

    Raises
    ------
    BadInput
        If a chain or the number of molecules is empty.
    """
    if not residues or min(residues) < 1 or count < 1:
        raise BadInput(
            f"sample_chains: {count} molecules of chains of {list(residues)}. Give 1 or more of each."
        )
    how = settings or SampleSettings()
    chain = torch.cat([torch.full((n,), i) for i, n in enumerate(residues)]).expand(count, -1)
    place = torch.cat([torch.arange(n) for n in residues]).expand(count, -1)
    weight = next(prior.network.parameters())
    to = weight.device
    denoiser = prior.denoiser(torch.ones_like(chain, dtype=torch.bool).to(to), chain.to(to), place.to(to))
    generator = torch.Generator(to).manual_seed(how.seed)
    noise = torch.randn(*chain.shape, 3, generator=generator, device=to, dtype=weight.dtype)
    unit = denoiser.sigma_data
    x = sample(
        denoiser,
        noise,
        how.levels(unit),
        churn=how.churned(unit),
        generator=generator,
        project=denoiser.project,
    )
    return prior.to_angstrom(x)


def sample_triplanes(
    prior: TriplanePrior,
    *,
    count: int,
    voxel_size_A: float | None = None,
    resolution_A: float | None = None,
    box: int | None = None,
    settings: SampleSettings | None = None,
) -> list[Volume]:
    """Maps of no protein in particular, in volts, along their principal axes; on the prior's own grid unless told otherwise.

    Maps are made on the prior's grid, and resampled by their Fourier transforms where other voxels or boxes are wanted.

    Raises
    ------
    BadInput
        If no map is asked for, or a resolution finer than the prior's.
    """
    own = prior.shape
    if count < 1:
        raise BadInput(f"sample_triplanes: {count} maps. Give 1 or more.")
    if resolution_A is not None and resolution_A < 0.999 * own.resolution_A:
        raise BadInput(
            f"this prior's maps have a resolution of {own.resolution_A:g} A, and {resolution_A:g} A is finer. Leave it out, "
            "or train a prior of finer maps: prior train --kind triplanes --map-resolution-A."
        )
    how = settings or MAPS
    weight, n = next(prior.network.parameters()), own.box
    generator = torch.Generator(weight.device).manual_seed(how.seed)
    noise = torch.randn(
        count, 3, own.features, n, n, generator=generator, device=weight.device, dtype=weight.dtype
    )
    x = sample(prior.denoiser(), noise, how.levels(1.0), churn=how.churned(1.0), generator=generator)
    with torch.no_grad():
        density = prior.to_density(x)
    if resolution_A is not None:
        # Both low passes are exp(-d^2 k^2), which is a B-factor of 4 d^2.
        extra = 4 * (resolution_A**2 - own.resolution_A**2)
        density = apply_b_factor(density, b_factor_A2=extra, pixel_size_A=own.voxel_size_A, ndim=3)
    maps = [Volume(values, own.voxel_size_A) for values in density]
    if box is None and voxel_size_A is None:
        return maps
    return [resample_map(m, box=box, pixel_size_A=voxel_size_A or own.voxel_size_A) for m in maps]


def sample_maps(
    prior: VolumePrior,
    *,
    count: int,
    voxel_size_A: float,
    resolution_A: float | None = None,
    box: int | None = None,
    settings: SampleSettings | None = None,
) -> list[Volume]:
    """Maps of no protein in particular, in volts; of the box the prior was trained on unless another is given.

    Raises
    ------
    BadInput
        If the prior knows no such voxels or resolution, or not the two together, or no map is asked for.
    """
    if count < 1:
        raise BadInput(f"sample_maps: {count} maps. Give 1 or more.")
    if resolution_A is not None and resolution_A < _NEAR * 2 * voxel_size_A:
        raise BadInput(
            f"a resolution of {resolution_A:g} A on voxels of {voxel_size_A:g} A: they hold {2 * voxel_size_A:g} A at best, "
            f"and no prior is trained on finer. Give --voxel-size-A {resolution_A / 2:g} or smaller, or --resolution-A "
            f"{2 * voxel_size_A:g} or coarser."
        )
    how = settings or MAPS
    denoiser = prior.denoiser(voxel_size=voxel_size_A, resolution=resolution_A)
    weight, n = next(prior.network.parameters()), box or prior.shape.box
    generator = torch.Generator(weight.device).manual_seed(how.seed)
    noise = torch.randn(count, 1, n, n, n, generator=generator, device=weight.device, dtype=weight.dtype)
    unit = denoiser.sigma_data
    x = sample(denoiser, noise, how.levels(unit), churn=how.churned(unit), generator=generator)
    return [Volume(values, voxel_size_A) for values in prior.to_density(x)[:, 0]]
