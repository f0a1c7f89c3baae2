"""The pose benchmark, P1: poses of new particles by a network trained on the map, against the full search.

Training images and test images are of different simulated stacks. All methods see the same test images, the same map and
the same noise. A likelihood evaluation is one pose of one image compared with the map over the frequencies in use, counted
where it is done (`inference.effort`); `coefficients` weights each by the Fourier coefficients that entered it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import MemoryImages, ParticleStack, Pose, Volume
from cryorbit.geometry.rotations import geodesic_angle, random_rotations
from cryorbit.inference.effort import Effort
from cryorbit.inference.engine import workers
from cryorbit.inference.field_of_view import FramedImages
from cryorbit.inference.known_map import joined
from cryorbit.inference.pose_model import PoseModel
from cryorbit.inference.predict_poses import PredictSettings, predict_poses, total
from cryorbit.inference.predictor import Predictor
from cryorbit.inference.supervised import SupervisedSettings, train_pose_model
from cryorbit.io.atoms import read_atoms
from cryorbit.physics.scatter import atoms_to_density
from cryorbit.physics.simulate import SimulationSettings, simulate

Row = dict[str, Any]
Out = TypeVar("Out")

SHIFT_SD_A, B_FACTOR_A2 = 20.0, 100.0
"""Of the simulated particles."""

TOP, WITH_SEARCH, FULL = "top 8 refined", "top 8 refined, doubtful searched", "full search"
"""Names of rows that bars compare."""


@dataclass(frozen=True, kw_only=True)
class PredictCase:
    """One pair of stacks: simulated at `full_box`, Fourier-cropped to `box`, so that SNRs of all boxes mean the same."""

    box: int = 128
    snr: float = 1.0
    """At `full_box`."""
    full_box: int = 128
    pixel_size_A: float = 3.77
    """At `full_box`."""
    train: int = 1000
    """Particles that the training learns CTFs, noise and scale from."""
    test: int = 400
    """Fresh particles."""
    training: SupervisedSettings = field(default_factory=lambda: SupervisedSettings(contrast="light"))

    @property
    def name(self) -> str:
        """Box and SNR."""
        return f"{self.box} px, SNR {self.snr:g}"


CASES = tuple(PredictCase(box=box, snr=snr) for snr in (1.0, 0.1) for box in (128, 64))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Particles in memory and the poses they were made with."""

    stack: ParticleStack
    truth: Pose


def draw(volume: Volume, case: PredictCase, count: int, seed: int) -> Drawn:
    """A simulated stack of `case.box` pixels."""
    settings = SimulationSettings(
        n_particles=count,
        box=case.full_box,
        pixel_size_A=case.pixel_size_A,
        snr=case.snr,
        shift_sd_A=SHIFT_SD_A,
        seed=seed,
    )
    made = simulate(volume, settings)
    ratio = case.full_box / case.box
    images = FramedImages(made.stack.images, case.box, ratio) if ratio != 1 else made.stack.images
    kept = MemoryImages(torch.cat([images[part] for part in torch.arange(count).split(100)]))
    return Drawn(replace(made.stack, images=kept, pixel_size_A=case.pixel_size_A * ratio), made.truth)


def p1_prediction(path: Path, seed: int, cases: tuple[PredictCase, ...] = CASES) -> Iterator[Row]:
    """Network alone, its best 8 refined, with a search of doubtful images, the full search, chance and oracle."""
    atoms = read_atoms(path)
    for case in cases:
        density = atoms_to_density(
            atoms, box=case.full_box, pixel_size_A=case.pixel_size_A, b_factor_A2=B_FACTOR_A2
        )
        volume = replace(density, values=density.values.float())
        model, seconds = trained(volume, case, seed)
        for row in compare(model, draw(volume, case, case.test, 5000 + seed), seed=seed):
            yield row | {"method": f"{case.name}: {row['method']}", "training_seconds": seconds}


def trained(volume: Volume, case: PredictCase, seed: int) -> tuple[PoseModel, float]:
    """A model of the map, and the seconds of its training steps."""
    stack = draw(volume, case, case.train, 1000 + seed).stack
    *_, last = train_pose_model(stack, volume, replace(case.training, seed=seed))
    return last.result, last.result.facts.training["seconds"]


def compare(model: PoseModel, test: Drawn, *, seed: int = 0) -> Iterator[Row]:
    """The rows of one stack; times are wall times of all test images with torch's present threads."""
    n, truth = len(test.stack), test.truth
    chance = random_rotations(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    yield {"method": "chance", **scores(chance, truth), **effort_per_image(Effort(), n)}
    for method, settings in {
        "network alone": PredictSettings(refine=False, contrast="light"),
        TOP: PredictSettings(search_doubtful=False, contrast="light"),
        WITH_SEARCH: PredictSettings(contrast="light"),
    }.items():
        found, seconds = timed(lambda s=settings: last_result(test.stack, model, s))
        effort = total([found.proposing, found.searching])
        yield {
            "method": method,
            **scores(found.pose.rotation, truth),
            **effort_per_image(effort, n),
            "searched": float(found.searched.float().mean()),
            "seconds": seconds,
            "images_per_s": n / seconds,
        }
    with workers(torch.get_num_threads()) as team:
        predictor = Predictor(test.stack, model, contrast="light")
        parts = torch.arange(n).split(16)
        done, seconds = timed(lambda: team.map(predictor.search, parts))
        full = joined([d.found for d in done])
        yield {
            "method": FULL,
            **scores(full.rotation, truth),
            **effort_per_image(total([d.effort for d in done]), n),
            "seconds": seconds,
            "images_per_s": n / seconds,
        }
        done = [predictor.from_pose(part, truth[part]) for part in parts]
        best = joined([d.found for d in done])
        effort = total([d.effort for d in done])
        yield {"method": "oracle", **scores(best.rotation, truth), **effort_per_image(effort, n)}


def last_result(stack: ParticleStack, model: PoseModel, settings: PredictSettings) -> Any:
    """The `PredictedPoses` of a whole run."""
    *_, last = predict_poses(stack, model, replace(settings, threads=torch.get_num_threads()))
    return last.result


def scores(rotation: Float[Tensor, "n 3 3"], truth: Pose) -> Row:
    """Median angle to the truth, the share within 15 degrees, and mean and median squared Frobenius error."""
    angle = torch.rad2deg(geodesic_angle(rotation.double(), truth.rotation.double()))
    square = (rotation.double() - truth.rotation.double()).square().sum((1, 2))
    return {
        "median_deg": float(angle.median()),
        "within_15deg": float((angle < 15).double().mean()),
        "mse": float(square.mean()),
        "medse": float(square.median()),
    }


def effort_per_image(effort: Effort, n: int) -> Row:
    """Likelihood evaluations per image, and weighted by the coefficients that entered."""
    return {"evaluations": effort.poses / n, "coefficients": effort.coefficients / n}


def timed(work: Callable[[], Out]) -> tuple[Out, float]:
    """What the work returns, and its wall seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


__all__ = ["CASES", "PredictCase", "compare", "draw", "p1_prediction", "trained"]
