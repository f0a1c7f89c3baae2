"""A small known specimen, stacks of it and pose models that were hardly trained, shared by several test files."""

from __future__ import annotations

from functools import lru_cache

import torch

from cryorbit.data import MemoryImages, ParticleStack, Pose, Volume
from cryorbit.inference.pose_model import PoseModel
from cryorbit.inference.predict_poses import PredictedPoses, PredictSettings, predict_poses
from cryorbit.inference.supervised import SupervisedSettings, train_pose_model
from cryorbit.physics.simulate import SimulationSettings, simulate
from physics_models import GaussianBlobs

BOX, PIXEL_A = 24, 8.0
FIELD_A = BOX * PIXEL_A
REFINED_DEG = 2.0
"""Of noise-free images of 24 px whose map is read by trilinear interpolation."""
SAME_POSE_DEG = 1.0
"""Two local searches of noise-free images that end in the same mode."""


@lru_cache(maxsize=8)
def simulated(
    n: int = 120, *, box: int = BOX, snr: float = float("inf"), seed: int = 3
) -> tuple[ParticleStack, Pose, Volume]:
    """Stack without poses, true poses, map; the same field of view and, of one seed, the same poses at any box."""
    fine = box / BOX
    blobs = GaussianBlobs.random(14, radius_px=6.5 * fine, sigma_px=1.2 * fine, seed=5)
    volume = Volume(blobs.values(box).float(), FIELD_A / box)
    settings = SimulationSettings(
        n_particles=n,
        box=box,
        pixel_size_A=FIELD_A / box,
        snr=snr,
        shift_sd_A=6.0,
        seed=seed,
        astigmatism_A=0.0,
        b_factor_A2=0.0,
    )
    made = simulate(volume, settings)
    images = MemoryImages(made.stack.images[torch.arange(n)])
    stack = ParticleStack(images=images, pixel_size_A=FIELD_A / box, ids=made.stack.ids, ctf=made.stack.ctf)
    return stack, made.truth, volume


def settings(**changes: object) -> SupervisedSettings:
    """A network of next to nothing."""
    values = {
        "box_px": BOX,
        "map_px": BOX,
        "width": 0.125,
        "hypotheses": 2,
        "max_images": 160,
        "record_every": 2,
        "contrast": "light",
        "particle_diameter_A": 110.0,
        "shift_sd_A": 6.0,
    }
    return SupervisedSettings(**(values | changes))


@lru_cache(maxsize=16)
def model_of(*, box: int = BOX, snr: float = float("inf"), **changes: object) -> PoseModel:
    """Trained with a stack of that box and noise."""
    stack, _, volume = simulated(box=box, snr=snr)
    *_, last = train_pose_model(stack, volume, settings(**changes))
    return last.result


def fine_model(*, snr: float = float("inf")) -> PoseModel:
    """An encoder of 24 px with a map of 48."""
    return model_of(box=48, snr=snr, map_px=48, max_images=16)


def predicted(stack: ParticleStack, model: PoseModel, **changes: object) -> PredictedPoses:
    """By a whole run, one thread unless another number is given."""
    given = PredictSettings(**({"contrast": "light", "threads": 1} | changes))
    *_, last = predict_poses(stack, model, given)
    return last.result
