"""Where heterogeneity begins: a consensus map on the images' scale, Gaussians in it, latent vectors from linear analysis."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.data import Gaussians, ParticleStack, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.inference.engine import Progress
from cryorbit.inference.flex import FlexTraining, pose_prior, run_training
from cryorbit.inference.flex_latents import latent_posterior
from cryorbit.inference.flex_likelihood import FlexLikelihood
from cryorbit.inference.flex_result import LatentPosterior
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.inference.gaussian_fit import GaussianFitSettings, fit_gaussians
from cryorbit.inference.linear_flex import LinearSettings, fit_linear
from cryorbit.inference.observations import Observations, contrast_of, observe
from cryorbit.models.deformation import GaussianModel
from cryorbit.physics.backproject import Backprojector, prior_power_from_fsc

_CHUNK = 256
_FIELDS = ("position_A", "amplitude", "width_A")
_LINEAR_RADIUS = 32.0
"""The linear start uses frequencies to this radius, Fourier pixels: all of 64 px images, where stopping at two thirds of it
cost 0.017 of FSC area on adenylate kinase; of larger ones what takes a minute per 10,000 images."""
_LEAST_VARIANCE = 1e-4
"""Of the largest: components of less are not there, and their latent vectors stay at 0."""
_POSE_DETAIL_PX = (8.0, 4.0, 2.5)
"""Detail to which poses are brought onto the consensus, pixels, one after the other: at first a wrong shift must be less
than half of a period."""


def train_flex(
    stack: ParticleStack,
    settings: FlexSettings,
    *,
    gaussians: Gaussians | None = None,
    volume: Volume | None = None,
    state: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Yield progress; the last record carries a `FlexResult`. `state` of any record continues from there.

    Parameters
    ----------
    stack
        Particles with poses.
    gaussians
        Anchors to begin with, whose positions are those of the particles' frame; their grey scale is fitted.
    volume
        Map to fit Gaussians to where none are given, in any grey scale; None: a map made of the particles.

    Raises
    ------
    BadInput
        If the stack has no poses, or there is no density to describe.
    """
    if stack.pose is None:
        raise BadInput(
            f"{stack.source}: no poses in it. Run `cryorbit refine` (or abinitio) first and give its particles."
        )
    settings = replace(settings, threads=settings.threads or torch.get_num_threads())
    torch.set_num_threads(settings.threads)
    observed = observed_for(stack, settings)
    given, state = stack.pose, dict(state or {})
    if "begun_rotation" not in state:
        if settings.refine_poses:
            observed = yield from posed_on_consensus(observed, settings)
        begun = observed.stack.pose
        assert begun is not None
        anchors = yield from first_gaussians(observed, settings, gaussians=gaussians, volume=volume)
        state |= {"begun_rotation": begun.rotation, "begun_shift_A": begun.shift_A}
        state |= {f"begun_{name}": getattr(anchors, name) for name in _FIELDS}
    stack = replace(stack, pose=Pose(state["begun_rotation"], state["begun_shift_A"]))
    observed = replace(observed, stack=stack)
    if "begun_z" not in state:
        state["begun_z"], precision = yield from first_latents(stack, settings)
        state |= {} if precision is None else {"begun_precision": precision}
    anchors = Gaussians(*(state[f"begun_{name}"] for name in _FIELDS))
    known = state.get("begun_precision")
    linear = None if known is None else LatentPosterior(state["begun_z"], known)
    training = FlexTraining(observed, anchors, state["begun_z"], settings, given=given)
    if "steps" in state:
        training.restore(state)
    begun = {name: value for name, value in state.items() if name.startswith("begun_")}
    for record in run_training(training):
        fraction = 0.3 + 0.7 * record.fraction
        result = None if record.result is None else replace(record.result, linear=linear)
        yield replace(record, fraction=fraction, state=begun | record.state, result=result)


def observed_for(stack: ParticleStack, settings: FlexSettings) -> Observations:
    """The stack as a run with these settings sees it."""
    return observe(
        stack,
        sign=contrast_of(stack, settings.contrast),
        generator=torch.Generator().manual_seed(settings.seed),
    )


def consensus_map(observed: Observations) -> Volume:
    """Of all images at their poses, on the observations' grey scale, filtered by what two halves agree on."""
    stack, box = observed.stack, observed.box
    assert stack.pose is not None  # checked by the caller
    sums = [Backprojector.empty(box, pixel_size_A=observed.pixel_size_A) for _ in (0, 1)]
    power = observed.noise_power[: box // 2 + 1]
    for h, half in enumerate(sums):
        for rows in torch.arange(h, len(stack), 2).split(_CHUNK):
            ctf = None if stack.ctf is None else stack.ctf[rows]
            half.insert(observed.images(rows), stack.pose[rows], ctf, noise_power=power)
    curve = fourier_shell_correlation(*(half.solve() for half in sums))
    whole = sums[0] + sums[1]
    both = (2 * curve.correlation / (1 + curve.correlation).clamp_min(1e-3)).to(power)
    return whole.solve(prior_power=prior_power_from_fsc(both, whole.information()))


def first_gaussians(
    observed: Observations,
    settings: FlexSettings,
    *,
    gaussians: Gaussians | None,
    volume: Volume | None,
) -> Generator[Progress, None, Gaussians]:
    """Anchors on the observations' grey scale."""
    yield Progress("consensus map", 0, 1, 0.0, {})
    consensus = consensus_map(observed)
    if gaussians is not None:
        return _scaled(gaussians, consensus)
    target = consensus if volume is None else volume
    fit = GaussianFitSettings(count=settings.count, most=settings.count, seed=settings.seed)
    record = None
    for record in fit_gaussians(target, fit):
        yield replace(record, fraction=0.1 * record.fraction, result=None, state={})
    assert record is not None  # a fit yields at least its end
    found: Gaussians = record.result.gaussians
    return found if volume is None else _scaled(found, consensus)


def first_latents(
    stack: ParticleStack, settings: FlexSettings
) -> Generator[Progress, None, tuple[Float[Tensor, "n d"], Float[Tensor, "n d d"] | None]]:
    """Posterior means and precisions of the linear model, in standard deviations of its prior; or next to zeros."""
    if settings.start == "zero":
        generator = torch.Generator().manual_seed(settings.seed)
        return 0.1 * torch.randn(len(stack), settings.latent, generator=generator), None
    field_A = stack.box * stack.pixel_size_A
    finest = max(2 * stack.pixel_size_A, field_A / _LINEAR_RADIUS)
    linear = LinearSettings(
        rank=settings.latent,
        resolution_A=max(settings.resolution_A or 0.0, finest),
        contrast=settings.contrast,
        seed=settings.seed,
        threads=max(settings.threads, 1),
    )
    record = None
    for record in fit_linear(stack, linear):
        yield replace(record, fraction=0.1 + 0.2 * record.fraction, result=None, state={})
    assert record is not None  # a fit yields at least its end
    return record.result.standard(least_variance=_LEAST_VARIANCE)


def posed_on_consensus(
    observed: Observations, settings: FlexSettings
) -> Generator[Progress, None, Observations]:
    """Poses brought onto the consensus, from coarse to fine, each round to Gaussians of the map that the last one gave."""
    given = observed.stack.pose
    assert given is not None  # checked by the caller
    for turn, detail in enumerate(_POSE_DETAIL_PX):
        anchors = yield from first_gaussians(observed, settings, gaussians=None, volume=None)
        model = GaussianModel(anchors, deformation=None, gate=None, unit_A=observed.pixel_size_A)
        likelihood = FlexLikelihood(observed, resolution_A=detail * observed.pixel_size_A)
        prior = pose_prior(anchors, settings)
        pose = observed.stack.pose
        assert pose is not None
        rotation, shift = pose.rotation.clone(), pose.shift_A.clone()
        for rows in torch.arange(len(observed.stack)).split(_CHUNK):
            found = latent_posterior(
                model,
                likelihood,
                rows,
                torch.zeros(len(rows), 1),
                pose[rows],
                given=given[rows],
                prior=prior,
                steps=2,
            )
            rotation[rows], shift[rows] = found.pose.rotation.to(rotation), found.pose.shift_A.to(shift)
        yield Progress("poses on the consensus", turn + 1, len(_POSE_DETAIL_PX), 0.05, {})
        observed = replace(observed, stack=replace(observed.stack, pose=Pose(rotation, shift)))
    return observed


def _scaled(gaussians: Gaussians, consensus: Volume) -> Gaussians:
    """Amplitudes times the factor that fits their map best to the consensus."""
    from cryorbit.physics.splat import gaussians_to_map

    drawn = gaussians_to_map(
        gaussians.to(consensus.values), box=consensus.box, pixel_size_A=consensus.pixel_size_A
    ).values
    factor = float((drawn * consensus.values).sum() / drawn.square().sum().clamp_min(1e-30))
    if not factor > 0:
        raise BadInput(
            "flex: the Gaussians do not correlate with the map of the particles. Are poses and Gaussians of one "
            "frame, and of the same hand?"
        )
    return replace(
        gaussians.to(consensus.values), amplitude=factor * gaussians.amplitude.to(consensus.values)
    )
