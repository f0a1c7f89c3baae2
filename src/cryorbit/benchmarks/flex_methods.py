"""Methods of the heterogeneity benchmark: from a data set to latent vectors, their errors and a map of every image."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.benchmarks.flex_atoms import about_atoms
from cryorbit.benchmarks.flex_scores import Decode
from cryorbit.benchmarks.flex_tasks import FlexData, FlexTask
from cryorbit.data import Pose
from cryorbit.errors import BadInput
from cryorbit.inference.engine import Progress
from cryorbit.inference.flex import FlexResult
from cryorbit.inference.flex_analysis import states_of
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.inference.flex_start import train_flex
from cryorbit.inference.kernel_volume import KernelReadout
from cryorbit.inference.linear_flex import LinearSettings, fit_linear
from cryorbit.inference.linear_model import LinearModel
from cryorbit.physics.splat import map_transform

CHANCE, ORACLE = "chance (one consensus map)", "oracle (true state)"
LINEAR, KERNEL = "linear", "linear, kernel volumes"
MLP, OURS, REFINED = "MLP decoder", "ours", "ours, poses refined"
ENCODED = "ours, image encoder"
METHODS = (CHANCE, ORACLE, LINEAR, MLP, OURS)
"""What is run unless methods are named; with pose errors `REFINED` too."""
MORE_METHODS = (REFINED, ENCODED, KERNEL)
"""Run where asked for."""
_LEAST_VARIANCE = 1e-8
"""Of the largest: components that the linear model left without power."""
KERNEL_ROWS = 12
"""Maps that are made of `KERNEL`: each takes an insertion of all images."""

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method says of a data set.

    Parameters
    ----------
    latents, precision
        One vector per image, shape (n, d), the mean of a posterior under a standard normal prior, and the posterior's
        precision, (n, d, d).
    decode
        Rows to maps.
    seconds
        Wall time until the latents were there; maps are extra.
    about
        What else the row should tell.
    maps
        At most this many maps are to be asked for; None: any number.
    label
        State of each image where the method sorts images itself; None: the latents are sorted by the score.
    """

    latents: Float[Tensor, "n d"]
    precision: Float[Tensor, "n d d"]
    decode: Decode
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)
    maps: int | None = None
    label: Int[Tensor, "n"] | None = None


def chosen(names: tuple[str, ...], *, pose_errors: bool) -> list[str]:
    """Methods by name or by the beginning of one; none named: the usual ones.

    >>> chosen(("ours", "chance"), pose_errors=False)
    ['chance (one consensus map)', 'ours']

    Raises
    ------
    BadInput
        If a name fits no method.
    """
    known = (*METHODS, *MORE_METHODS)
    if not names:
        return [*METHODS, REFINED] if pose_errors else list(METHODS)
    found = {name for name in names if name in known}
    for name in set(names) - found:
        fits = [method for method in known if method.startswith(name)]
        if not fits:
            raise BadInput(f"--method {name}: no such method. Choose from: {', '.join(known)}.")
        found.update(fits)
    return [method for method in known if method in found]


def run_method(name: str, data: FlexData, task: FlexTask, *, max_minutes: float, say: Say) -> Outcome:
    """Run one of the methods that learn.

    Parameters
    ----------
    max_minutes
        Learning stops there; what was learned is then read out as it stands.
    """
    if name in (LINEAR, KERNEL):
        return _linear(data, task, kernel=name == KERNEL)
    settings = settings_of(name, data, task)
    outcome, result = _gaussians(data, settings, max_minutes=max_minutes, say=say)
    if name == OURS and data.kind == "path" and data.atoms[0].atom_name is not None:
        say("  atoms along the path")
        outcome = replace(outcome, about=outcome.about | about_atoms(data, result, settings))
    return outcome


def settings_of(name: str, data: FlexData, task: FlexTask) -> FlexSettings:
    """Settings of the methods that train Gaussians.

    The MLP decoder is GaussianEM's kind of model (an encoder of images, an MLP at every Gaussian for motion, and what comes
    and goes) under our likelihood, as fast as ours; it starts from nothing, has 10 latent coordinates and 20 epochs. The
    divergence from the prior has little weight, as there: at full weight the encoder says nothing.
    """
    threads = torch.get_num_threads()
    if name == MLP:
        return FlexSettings(
            latents="encoder",
            encoder="image",
            encoder_divergence=0.01,
            deformation="mlp",
            gates=True,
            start="zero",
            latent=10,
            epochs=20,
            polish=False,
            threads=threads,
            seed=task.seed,
        )
    ours = FlexSettings(threads=threads, seed=task.seed)
    if name == ENCODED:
        return replace(ours, latents="encoder", polish=False)
    if name == REFINED:
        # The prior is told how large the errors are, per axis; --refine-poses has options for it.
        angle = task.pose_error_deg / math.sqrt(3) or ours.pose_sd_deg
        shift = task.pose_error_px * data.stack.pixel_size_A / math.sqrt(2) or ours.shift_sd_A
        return replace(ours, refine_poses=True, pose_sd_deg=angle, shift_sd_A=shift)
    return ours


def _gaussians(
    data: FlexData, settings: FlexSettings, *, max_minutes: float, say: Say
) -> tuple[Outcome, FlexResult]:
    start, record, stopped, told = time.monotonic(), None, False, ""
    for record in train_flex(data.stack, settings):
        if record.stage != told:
            told = record.stage
            say(f"  {told} ({time.monotonic() - start:.0f} s)")
        if record.stage == "learning" and time.monotonic() - start > 60 * max_minutes:
            stopped = True
            break
    assert record is not None  # a training yields at least its end
    if stopped:
        # As many images as were seen: a run that goes on from here has nothing left to learn.
        enough = replace(settings, max_images=record.step * settings.batch)
        record = _last(train_flex(data.stack, enough, state=record.state))
    result: FlexResult = record.result
    label = None
    if data.kind == "classes":
        linear = result.linear is not None
        label = states_of(result, len(data.maps), linear=linear, seed=settings.seed).label
    about = {
        "misfit": float(2 * result.misfit.mean() / result.numbers),
        "stopped_by_time": stopped,
        **_pose_errors(result.pose, data),
    }
    seconds = time.monotonic() - start
    outcome = Outcome(result.z, result.precision, gaussian_decode(result), seconds, about, label=label)
    return outcome, result


def _last(records: Iterator[Progress]) -> Progress:
    """Of a run that yields at least its end."""
    return deque(records, maxlen=1)[0]


def gaussian_decode(result: FlexResult) -> Decode:
    """Maps of images' latent vectors, on the images' grid."""

    @torch.no_grad()
    def decode(rows: Int[Tensor, "m"]) -> Float[Tensor, "m box box box"]:
        box = result.box
        maps = [
            torch.fft.irfftn(
                map_transform(result.model(z[None]), box=box, pixel_size_A=result.pixel_size_A)[0],
                s=(box,) * 3,
            )
            for z in result.z[rows]
        ]
        return torch.fft.fftshift(torch.stack(maps), dim=(1, 2, 3))

    return decode


def _pose_errors(pose: Pose, data: FlexData) -> dict[str, float]:
    """Root mean square errors in the frame of the data set, in which maps are compared."""
    from cryorbit.geometry.rotations import geodesic_angle

    angle = geodesic_angle(pose.rotation.double(), data.truth.rotation.double())
    shift = (pose.shift_A - data.truth.shift_A).double().square().sum(1) / data.stack.pixel_size_A**2
    return {
        "rotation_error_deg": math.degrees(float(angle.square().mean().sqrt())),
        "shift_error_px": float(shift.mean().sqrt()),
    }


def _linear(data: FlexData, task: FlexTask, *, kernel: bool) -> Outcome:
    start = time.monotonic()
    settings = LinearSettings(seed=task.seed, threads=torch.get_num_threads())
    model: LinearModel = _last(fit_linear(data.stack, settings)).result
    latents, precision = model.standard(least_variance=_LEAST_VARIANCE)
    seconds = time.monotonic() - start
    if not kernel:
        return Outcome(latents, precision, _linear_decode(model), seconds)
    readout = KernelReadout(data.stack, settings, model)

    def decode(rows: Int[Tensor, "m"]) -> Float[Tensor, "m box box box"]:
        return torch.stack([readout.volume(z).map.values for z in model.latent[rows]])

    return Outcome(latents, precision, decode, seconds, maps=KERNEL_ROWS)


def _linear_decode(model: LinearModel) -> Decode:
    def decode(rows: Int[Tensor, "m"]) -> Float[Tensor, "m box box box"]:
        return torch.stack([model.volume(z).values for z in model.latent[rows]])

    return decode
