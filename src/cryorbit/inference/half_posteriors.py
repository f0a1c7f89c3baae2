"""Posterior maps of two halves of the data and of both together, beside what the data and the prior say alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.fsc import ShellCorrelation, fourier_shell_correlation
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.resample import box_pad
from cryorbit.inference.collapse import data_correlation
from cryorbit.inference.engine import Progress
from cryorbit.inference.held_out import difference_error, held_out_misfit
from cryorbit.inference.observations import Contrast
from cryorbit.inference.patched_denoiser import PatchedDenoiser
from cryorbit.inference.posterior import PosteriorSamples, PosteriorSettings, sample_posterior
from cryorbit.inference.posterior_data import TwoVolumes
from cryorbit.inference.posterior_methods import Method
from cryorbit.inference.posterior_spectrum import method_of
from cryorbit.inference.prior_error import TRIED, ErrorModel, held_out_size
from cryorbit.inference.prior_images import (
    Halves,
    PriorGrid,
)
from cryorbit.inference.prior_maps import DataOnly, cut, data_only, disagreement
from cryorbit.inference.prior_samples import MAPS, sample_maps
from cryorbit.models.volume_prior import VolumePrior

MethodName = Literal[
    "diffpir",
    "diffpir-draw",
    "diffpir-spectrum",
    "diffpir-spectrum-draw",
    "split-gibbs",
    "pigdm",
    "dps",
    "dps-fixed-step",
    "daps",
]


@dataclass(frozen=True, kw_only=True)
class HalvesSettings:
    """How two halves of the data and a prior are put together, whether they come as images or as maps."""

    method: MethodName = "diffpir-spectrum"
    """Sampler. diffpir-spectrum: a point estimate by the prior's spectrum, whose spread is too small; diffpir: with one
    weight for all Fourier terms, which holds coarse ones back in noise. pigdm, split-gibbs and the draws: a spread near the
    posterior's, still too small where images are many and clean. pigdm: best on few clean views, two passes a step.
    """
    particle_diameter_A: float | None = None
    """Of the particle; measured unless given."""
    gain: float | None = None
    """Grey value per volt of the images or maps as the file has them, one for all; fitted unless given, noisy images then
    brought to one noise level first. 1 for images simulated from potentials in volts."""
    prior_error: float | None = None
    """How far the prior's maps may be wrong inside the molecule, in standard deviations of its maps; chosen on held-out
    data unless given. 0 believes the prior."""
    half_samples: int = 4
    """Samples for each half of the data."""

    def __post_init__(self) -> None:
        gain = 1.0 if self.gain is None else self.gain
        if self.half_samples < 1 or not gain > 0 or (self.prior_error or 0.0) < 0:
            raise BadInput(
                "Wanted --half-samples of 1 or more, --gain above 0 and --prior-error of 0 or more. Correct them."
            )


@dataclass(frozen=True, kw_only=True)
class PriorReconstructionSettings(HalvesSettings):
    """The same of particle images."""

    contrast: Contrast = "auto"
    """Whether protein is light or dark in the images."""
    resolution_A: float | None = None
    """Low pass of the prior's maps; the finest that prior and voxels allow unless given."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PriorReconstruction:
    """All maps in volts on one grid, low-passed at `cutoff_A` where the data end, unless that was not wanted.

    Parameters
    ----------
    gain
        Grey value of the file per volt; of the median image where it was fitted to images brought to one noise level.
    gain_of_posterior
        How many times as strong the data would have the posterior, at that gain.
    samples, mean
        Draws of the posterior, and its mean.
    prior_error
        See `prior_error`: the size that was used, in standard deviations of the prior's maps.
    data_only, prior_only
        The data without the prior (Wiener filter) and one draw of the prior without data.
    disagreement
        See `prior_maps.disagreement`.
    halves, data_halves
        Posterior means and data-only maps of each half of the images.
    data_curve, posterior_curve
        Correlation between the halves' least squares maps, and between their posterior means before the cut.
    chi_square
        Of each half's images given maps of the other half, per number compared: "empty", "data only", "posterior".
    misfit_error
        Standard error of each of these less that of "data only" (`held_out.difference_error`).
    """

    grid: PriorGrid
    gain: float
    gain_of_posterior: float
    prior_error: float
    samples: Float[Tensor, "s n n n"]
    mean: Float[Tensor, "n n n"]
    spread: Float[Tensor, "n n n"]
    data_only: Float[Tensor, "n n n"]
    prior_only: Float[Tensor, "n n n"]
    disagreement: Float[Tensor, "n n n"]
    halves: tuple[Tensor, Tensor]
    data_halves: tuple[Tensor, Tensor]
    data_curve: ShellCorrelation
    posterior_curve: ShellCorrelation
    chi_square: dict[str, float]
    misfit_error: dict[str, float]
    numbers: float
    images: int
    cutoff_A: float | None
    radius_A: float
    network_passes: int

    def volume(self, values: Float[Tensor, "n n n"]) -> Volume:
        """Values of the grid as a map."""
        return Volume(values, self.grid.voxel_size_A)

    @property
    def gain_in_errors(self) -> float:
        """Standard errors of the difference by which the posterior explains held-out data better than the data-only map."""
        return -self.errors_above("posterior")

    def errors_above(self, name: str) -> float:
        """The misfit of a map of `chi_square` above that of "data only", in standard errors of the difference."""
        error = self.misfit_error[name]
        return (self.chi_square[name] - self.chi_square["data only"]) / error if error > 0 else 0.0


@dataclass(frozen=True, eq=False)
class PosteriorTask:
    """A prior, and the halves in its unit; `images` is 0 where they come from maps."""

    prior: VolumePrior
    settings: HalvesSettings
    sampling: PosteriorSettings
    grid: PriorGrid
    halves: Halves
    gain: float
    radius_A: float
    images: int

    @property
    def cutoff_A(self) -> float | None:
        """Where maps are low-passed; None: nowhere."""
        return None if self.sampling.beyond_data else self.halves.first.cutoff_A

    def method(self) -> Method:
        """The sampler."""
        size, limit = (torch.tensor(v) for v in (self.grid.voxel_size_A, self.grid.resolution_A))
        power = self.prior.spectrum.variance(self.grid.box, size[None], limit[None, None])[0]
        return method_of(self.settings.method, power)

    def parts(self) -> list[tuple[str, TwoVolumes, int]]:
        """What is sampled: name, likelihood, how many maps. Not cut: correlations of halves are wanted beyond."""
        few = self.settings.half_samples
        return [
            ("all", self.halves.both, self.sampling.samples),
            ("half 1", self.halves.first, few),
            ("half 2", self.halves.second, few),
        ]


def _stages(task: PosteriorTask, known: dict[str, Any]) -> Iterator[Progress]:
    """The three runs of the sampler, one after the other; their maps go into `known`."""
    # Images have an envelope of their own besides the low pass: the prior is not told the resolution.
    inner = task.prior.denoiser(voxel_size=task.grid.voxel_size_A, resolution=None)
    denoiser = PatchedDenoiser(inner, task.prior.shape.box)
    parts = task.parts()
    weight = [count * task.sampling.steps for _, _, count in parts]
    for i, (name, data, count) in enumerate(parts):
        if f"samples.{name}" in known:
            continue
        plan = replace(task.sampling, samples=count, beyond_data=True, seed=task.sampling.seed + i)
        begun = {k.removeprefix("inner."): v for k, v in known.items() if k.startswith("inner.")}
        method = task.method()
        before = sum(weight[:i]) / sum(weight)
        for record in sample_posterior(denoiser, data, method, plan, state=begun or None):
            for key in [k for k in known if k.startswith("inner.")]:
                del known[key]
            known |= {f"inner.{k}": v for k, v in record.state.items()}
            if isinstance(record.result, PosteriorSamples):
                known[f"samples.{name}"] = record.result.samples
                known["passes"] = int(known.get("passes", 0)) + record.result.network_passes
            fraction = 0.1 + 0.85 * (before + weight[i] / sum(weight) * record.fraction)
            yield Progress(
                f"sampling {name}", record.step, record.steps, fraction, record.metrics, dict(known)
            )


def _result(task: PosteriorTask, known: dict[str, Any]) -> PriorReconstruction:
    """Maps in volts and what is to be told of them."""
    grid, halves, scale, cutoff = task.grid, task.halves, task.prior.shape.density_scale, task.cutoff_A
    voxel, unit = grid.voxel_size_A, task.prior.shape.sigma_data
    drawn = known["samples.all"]
    raw = [known[f"samples.half {i}"].mean(0) for i in (1, 2)]
    error = task.settings.prior_error
    if error is None:
        pair = (halves.first, halves.second)
        error = held_out_size(raw, pair, sizes=[t * unit for t in TRIED])[0] / unit
    whole = [
        ErrorModel.of(m, error * unit).corrected(m, data)
        for m, data in zip(raw, (halves.first, halves.second), strict=True)
    ]
    model = ErrorModel.of(drawn.mean(0), error * unit)
    generator = torch.Generator().manual_seed(task.sampling.seed)
    mean = cut(model.corrected(drawn.mean(0), halves.both), cutoff, voxel)
    samples = cut(model.drawn(drawn, halves.both, generator=generator), cutoff, voxel)
    spread = samples.std(0) if len(samples) > 1 else torch.zeros_like(mean)
    first, second = (cut(v, cutoff, voxel) for v in whole)
    without, alone = _without_prior(task, cutoff)
    chi_square, misfit_error = _held_out(halves, (first, second), alone)
    return PriorReconstruction(
        grid=grid,
        gain=task.gain,
        gain_of_posterior=float(halves.both.gain(mean)),
        prior_error=error,
        samples=samples * scale,
        mean=mean * scale,
        spread=spread * scale,
        data_only=without.map * scale,
        prior_only=_prior_only(task),
        disagreement=disagreement(mean, spread, without),
        halves=(first * scale, second * scale),
        data_halves=(alone[0].map * scale, alone[1].map * scale),
        data_curve=data_correlation(halves.first, halves.second),
        posterior_curve=fourier_shell_correlation(Volume(whole[0], voxel), Volume(whole[1], voxel)),
        chi_square=chi_square,
        misfit_error=misfit_error,
        numbers=halves.both.count,
        images=task.images,
        cutoff_A=cutoff,
        radius_A=task.radius_A,
        network_passes=int(known["passes"]),
    )


def _prior_only(task: PosteriorTask) -> Float[Tensor, "n n n"]:
    """A draw of the prior in volts, cut as the posterior is; in the middle of an empty map where that is larger."""
    grid, box = task.grid, min(task.grid.box, task.prior.shape.box)
    made = sample_maps(
        task.prior,
        count=1,
        voxel_size_A=grid.voxel_size_A,
        resolution_A=min(
            max(grid.resolution_A, task.prior.shape.resolution_A[0]), task.prior.shape.resolution_A[1]
        ),
        box=box,
        settings=replace(MAPS, steps=40, seed=task.sampling.seed),
    )[0]
    return cut(box_pad(made.values, grid.box, ndim=3), task.cutoff_A, grid.voxel_size_A)


def _without_prior(task: PosteriorTask, cutoff_A: float | None) -> tuple[DataOnly, tuple[DataOnly, DataOnly]]:
    found = [
        data_only(data, task.prior.spectrum, resolution_A=task.grid.resolution_A, cutoff_A=cutoff_A)
        for data in (task.halves.both, task.halves.first, task.halves.second)
    ]
    return found[0], (found[1], found[2])


def _held_out(
    halves: Halves, posterior: tuple[Tensor, Tensor], alone: tuple[DataOnly, DataOnly]
) -> tuple[dict[str, float], dict[str, float]]:
    """Misfit of each half's images to maps made from the other half, and the errors of their differences."""
    empty, without = torch.zeros_like(posterior[0]), (alone[0].map, alone[1].map)
    maps = {"empty": (empty, empty), "data only": without, "posterior": posterior}
    return (
        {name: held_out_misfit(halves, pair) for name, pair in maps.items()},
        {name: difference_error(halves, pair, without) for name, pair in maps.items()},
    )


def posterior_of_halves(task: PosteriorTask, known: dict[str, Any]) -> Iterator[Progress]:
    """Draws maps for both halves together and for each by itself; the last record has the result.

    Parameters
    ----------
    known
        State to go on from; what is found is put in.
    """
    yield from _stages(task, known)
    yield Progress("putting together", 0, 1, 0.96, {}, dict(known))
    yield Progress("done", 1, 1, 1.0, {}, {}, _result(task, known))
