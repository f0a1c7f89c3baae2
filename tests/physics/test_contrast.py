from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryorbit.errors import BadInput
from cryorbit.physics.contrast import contrast_sign
from cryorbit.physics.simulate import SimulationSettings, simulate
from physics_models import blob_atoms

SETTINGS = SimulationSettings(n_particles=200, box=48, pixel_size_A=5.0, snr=0.05, shift_sd_A=10.0)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("noise", ["white", "coloured"])
@pytest.mark.parametrize(("contrast", "sign"), [("light", 1), ("dark", -1)])
def test_sign_is_found_on_data_of_both_signs(contrast: str, sign: int, noise: str, seed: int):
    """200 images at SNR 0.05: the sign is right and certain, whatever the noise."""
    stack = simulate(blob_atoms(), replace(SETTINGS, contrast=contrast, noise=noise, seed=seed)).stack
    verdict = contrast_sign(stack.images[:], stack.ctf, pixel_size_A=5.0, radius_A=60.0)
    assert verdict.sign == sign
    assert verdict.confidence > 0.999
    assert verdict.n_images == 200


def test_pure_noise_is_not_certain():
    """Images without particles leave the verdict open: |z| stays small for nearly every draw."""
    scores = []
    for seed in range(20):
        noise = torch.randn(50, 32, 32, generator=torch.Generator().manual_seed(seed))
        scores.append(contrast_sign(noise, None, pixel_size_A=4.0).z_score)
    assert 0.5 < torch.tensor(scores).std().item() < 1.6  # z of no evidence is standard normal


def test_verdict_reads_as_a_sentence():
    """The verdict prints itself for the report."""
    stack = simulate(blob_atoms(), SETTINGS).stack
    assert str(contrast_sign(stack.images[:20], None, pixel_size_A=5.0)).startswith("protein is light (z = +")


def test_one_image_is_not_enough():
    """A single image has no standard error."""
    with pytest.raises(BadInput, match="at least 2"):
        contrast_sign(torch.zeros(1, 16, 16), None, pixel_size_A=1.0)


def test_images_all_alike_are_refused():
    """Blank images hold no contrast."""
    with pytest.raises(BadInput, match="all alike"):
        contrast_sign(torch.zeros(4, 16, 16), None, pixel_size_A=1.0)


@pytest.mark.data
def test_real_ribosome_images_straight_from_the_camera_are_dark(data_dir: Path):
    """EMPIAR-10076 particles, stored uninverted (cryoSPARC's blob/sign is -1): dark."""
    with mrcfile.open(data_dir / "stacks/empiar10076_7/empiar_10076_7.mrc", permissive=True) as file:
        images = torch.from_numpy(np.array(file.data, dtype=np.float32))
    assert contrast_sign(images, None, pixel_size_A=1.31).sign == -1
