"""Amortised inference, method by method: the protocol of Table 1 of the equivariant paper at a scale that fits a CPU.

Images of 128 px are cropped in Fourier space to 32 px, networks have a quarter of the published width and the same
operations per image, and a run ends at 60,000 image visits or 10 minutes of training. All methods share data, optimiser,
batch, prefilter, frequency marching and the map's update; they differ in encoder and loss, and the hybrid in its teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cryorbit.analysis.align import align_map, refine_alignment
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.pose_error import PoseErrors, pose_errors
from cryorbit.benchmarks.amortised_tasks import COMMON, METHODS, AmortisedBenchmark
from cryorbit.benchmarks.score import CONVERGED_BELOW
from cryorbit.data import ParticleStack, Pose, Volume
from cryorbit.fourier.resample import fourier_resample
from cryorbit.inference.amortised import (
    AmortisedSettings,
    new_training,
    training_images,
)
from cryorbit.inference.amortised_data import TrainingImages
from cryorbit.inference.amortised_map import map_of_poses
from cryorbit.inference.amortised_training import Training
from cryorbit.inference.hybrid import Hybrid
from cryorbit.io.mrc import read_map
from cryorbit.io.particles import read_particles, require_pose

HELD = 300
"""Images whose poses are compared with the truth."""
EVALUATE_EVERY_S = 3.0
BEYOND = 1.2
POSED = 2000
"""A run that has converged goes on to this many times the visits it took, a hybrid until so many images have their pose."""


def settings_of(
    method: str, benchmark: AmortisedBenchmark, *, seed: int, device: str = "cpu"
) -> AmortisedSettings:
    """The inference settings of a method.

    >>> settings_of("hybrid", AmortisedBenchmark(), seed=0).teacher
    0.2
    """
    sizes = benchmark.sizes
    return AmortisedSettings(
        **{**COMMON, **METHODS[method]},
        box_px=sizes.box_px,
        width=sizes.width,
        max_visits=sizes.max_visits,
        max_seconds=sizes.max_seconds,
        seed=seed,
        device=device,
    )


@dataclass(frozen=True, eq=False)
class Prepared:
    """A simulated stack, cropped, with its truth; the encoder's inputs are shared by all methods."""

    images: TrainingImages
    truth: Pose
    map: Volume

    @classmethod
    def of(cls, data: Path, benchmark: AmortisedBenchmark) -> Prepared:
        """Read what `cryorbit simulate` wrote."""
        stack: ParticleStack = read_particles(data / "particles.star")
        truth = require_pose(read_particles(data / "truth.star", images="absent"))
        settings = AmortisedSettings(box_px=benchmark.sizes.box_px, contrast="light")
        return cls(training_images(stack, settings), truth, read_map(data / "truth.mrc"))

    def held(self) -> torch.Tensor:
        """Rows of the images that are evaluated, evenly through the stack."""
        return torch.linspace(0, len(self.truth) - 1, min(HELD, len(self.truth))).round().long()


def run_method(
    method: str,
    prepared: Prepared,
    benchmark: AmortisedBenchmark,
    *,
    seed: int,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train until the method has converged or a cap is reached; the row's numbers.

    `seconds`, `steps` and `image_visits` are those of the first evaluation with MSE < 0.1, of the cap where there was none.
    """
    settings = settings_of(method, benchmark, seed=seed, device=device)
    training = new_training(prepared.images, settings)
    trace: list[dict[str, float]] = []
    first: dict[str, float] | None = None
    after = 0.0
    while not training.done:
        training.step()
        if training.seconds < after:
            continue
        after = training.seconds + EVALUATE_EVERY_S
        now = evaluate(training, prepared)
        trace.append(now)
        say(f"{method}: {now['image_visits']:.0f} visits, {now['seconds']:.0f} s, mse {now['mse']:.3f}")
        if first is None and now["mse"] < CONVERGED_BELOW:
            first = now
        if first and not benchmark.to_the_end and far_enough(training, first["image_visits"]):
            break
    last = evaluate(training, prepared)
    if first is None and last["mse"] < CONVERGED_BELOW:
        first = last
    trace.append(last)
    reached = first or last
    row = {
        "decoder": settings.decoder,
        "mse": last["mse"],
        "medse": last["medse"],
        "converged": last["mse"] < CONVERGED_BELOW,
        "seconds": round(reached["seconds"], 2),
        "processor_seconds": round(reached["processor_seconds"], 2),
        "steps": int(reached["steps"]),
        "image_visits": int(reached["image_visits"]),
        "fsc05_truth_A": truth_resolution_A(training.volume(), prepared, errors_of(training, prepared)),
        **{k: last[k] for k in ("mse_encoder", "medse_encoder", "hand_a", "hand_b")},
        "seconds_all": round(last["seconds"], 2),
        "image_visits_all": int(last["image_visits"]),
        "images_per_second": round(last["image_visits"] / max(last["seconds"], 1e-9), 1),
        "device": device,
        "weights": sum(p.numel() for p in training.encoder.parameters()),
        "trace": trace,
        "published": False,
    }
    return row | {k: v for k, v in training.metrics().items() if k in ("searched", "proposed", "accepted")}


def far_enough(training: Training | Hybrid, converged_at: float) -> bool:
    """Whether a run that has converged has also shown what it does then."""
    if isinstance(training, Hybrid):
        return training.posed >= POSED
    return training.visits >= BEYOND * converged_at


def errors_of(training: Training | Hybrid, prepared: Prepared, *, encoder_only: bool = False) -> PoseErrors:
    """Errors of the held images' poses."""
    rows = prepared.held()
    found = training.encoder_poses(rows) if encoder_only else training.poses(rows)
    pixel = prepared.images.small.observed.pixel_size_A
    return pose_errors(Pose(found.rotation, found.shift_px * pixel), prepared.truth[rows])


def evaluate(training: Training | Hybrid, prepared: Prepared) -> dict[str, float]:
    """Errors of the method's poses and of the encoder's own, at this moment of the run."""
    ours = errors_of(training, prepared)
    alone = errors_of(training, prepared, encoder_only=True)
    return {
        "image_visits": float(training.visits),
        "steps": float(training.steps),
        "seconds": round(training.seconds, 3),
        "processor_seconds": round(training.processor_seconds, 3),
        "mse": ours.mse,
        "medse": ours.medse,
        "mse_encoder": alone.mse,
        "medse_encoder": alone.medse,
        "hand_a": ours.hand_a,
        "hand_b": ours.hand_b,
    }


def truth_resolution_A(found: Volume, prepared: Prepared, errors: PoseErrors) -> float:
    """Where the correlation with the true map, cropped to the same box, falls to 0.5."""
    truth = Volume(fourier_resample(prepared.map.values, found.box, ndim=3), found.pixel_size_A)
    if errors.mse < 1.0:
        alignment = refine_alignment(
            found, truth, rotation=errors.gauge, shift_A=errors.map_shift_A, hand=errors.hand
        )
    else:
        alignment = align_map(found, truth)
    return fourier_shell_correlation(alignment.aligned, truth).resolution_A(0.5)


def oracle_row(prepared: Prepared) -> dict[str, Any]:
    """The map that the true poses give, as the hybrid makes its map, at the last radius that it uses."""
    images, truth = prepared.images, prepared.truth
    shift = truth.shift_A / images.small.observed.pixel_size_A / images.pixels_per_pixel
    found = map_of_poses(images, truth.rotation.float(), shift.float(), radius=images.box // 2 - 2)
    exact = pose_errors(truth, truth)
    return {
        "decoder": "volume",
        "mse": 0.0,
        "medse": 0.0,
        "converged": True,
        "seconds": None,
        "steps": None,
        "image_visits": len(images),
        "fsc05_truth_A": truth_resolution_A(found, prepared, exact),
        "published": False,
    }


def verdict(rows: list[Mapping[str, Any]]) -> list[str]:
    """Sentences on the bars: how often each method converged, and at what share of the standard's visits the hybrid did."""
    ours = [r for r in rows if r["decoder"] and not r["method"].startswith("oracle")]
    lines = []
    for method in dict.fromkeys(r["method"] for r in ours):
        runs = [bool(r["converged"]) for r in ours if r["method"] == method]
        lines.append(f"{method}: {sum(runs)} of {len(runs)} runs converged")
    for row in (r for r in ours if r["method"] == "hybrid"):
        cell = [r for r in ours if all(r[k] == row[k] for k in ("structure", "snr", "seed"))]
        plain = [r for r in cell if r["method"] == "standard L_sym"]
        cap = plain[0]["image_visits"] if plain else None
        if cap and row["image_visits"]:
            ratio = cap / row["image_visits"]
            bound = "" if plain[0]["converged"] else ">= "
            lines.append(
                f"{row['structure']} SNR {row['snr']} seed {row['seed']}: standard / hybrid visits {bound}{ratio:.1f}"
            )
    return lines
