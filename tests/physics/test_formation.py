from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cryorbit.data import CTF, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.physics.formation import form_images
from cryorbit.physics.project import prepare, project, project_prepared
from cryorbit.physics.transfer import ctf_image
from physics_models import GaussianBlobs, uniform_rotations, varied_ctf

BOX = 32


def volume() -> Volume:
    return Volume(GaussianBlobs.random(30, radius_px=8.0, sigma_px=1.5).values(BOX), 3.0)


def pose(n: int) -> Pose:
    shift = 6 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Pose(uniform_rotations(n), shift)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_images_are_projections_filtered_by_the_ctf(mode: str):
    """form_images = inverse transform of CTF times the transform of the shifted projection."""
    ctf = varied_ctf(4)
    projections = project(volume(), pose(4), mode=mode)
    filtered = torch.fft.rfft2(projections) * ctf_image(ctf, BOX, pixel_size_A=3.0, dtype=torch.float64)
    expected = torch.fft.irfft2(filtered, s=(BOX, BOX))
    images = form_images(volume(), pose(4), ctf, mode=mode)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-9)


def test_without_ctf_images_are_projections():
    """No CTF: the projection itself, prepared or not."""
    expected = project(volume(), pose(3))
    torch.testing.assert_close(form_images(volume(), pose(3), None), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(form_images(prepare(volume()), pose(3), None), expected, rtol=0, atol=1e-12)


def test_odd_linear_term_moves_the_image():
    """An odd Zernike term linear in kx of -2 pi d is the shift (d, 0)."""
    plain = CTF.uniform(2, defocus_A=15000.0)
    moved = replace(plain, odd_zernike=torch.tensor([[0.0, -2 * torch.pi * 6.0]]).expand(2, 2))
    still = Pose(uniform_rotations(2), torch.zeros(2, 2, dtype=torch.float64))
    shifted = Pose(still.rotation, torch.tensor([[6.0, 0.0]], dtype=torch.float64).expand(2, 2))
    a, b = form_images(volume(), still, moved), form_images(volume(), shifted, plain)
    assert ((a - b).norm() / b.norm()).item() < 1e-4  # the coefficients are float32


def test_magnification_stretches_the_image():
    """V^(A^T M k) with M = 1.05: the image is the projection stretched by 1.05."""
    ctf = replace(CTF.uniform(3, defocus_A=0.0, cs_mm=0.0, amplitude_contrast=1.0))
    magnified = replace(ctf, magnification=1.05 * torch.eye(2).expand(3, 2, 2))
    blobs = GaussianBlobs.random(30, radius_px=8.0, sigma_px=1.5)
    larger = GaussianBlobs(blobs.centre_px * 1.05, blobs.weight / 1.05**2, blobs.sigma_px * 1.05)
    still = Pose(uniform_rotations(3), torch.zeros(3, 2, dtype=torch.float64))
    images = form_images(Volume(blobs.values(BOX), 1.0), still, magnified)
    expected = larger.images(BOX, still.rotation)
    assert ((images * 1.05**-2 - expected).norm() / expected.norm()).item() < 0.02


def test_gradient_of_the_shift_is_the_slope():
    """The image's change with the shift agrees with central differences."""
    prepared, rotation, ctf = prepare(volume()), uniform_rotations(2), varied_ctf(2)
    target = torch.randn(2, BOX, BOX, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(shift: torch.Tensor) -> torch.Tensor:
        return (form_images(prepared, Pose(rotation, shift), ctf, mode="fast") * target).sum()

    shift = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(shift), shift)
    step = torch.zeros_like(shift)
    step[1, 0] = 1e-5
    numerical = (loss(shift.detach() + step) - loss(shift.detach() - step)) / 2e-5
    torch.testing.assert_close(slope[1, 0], numerical, rtol=1e-6, atol=0)


def test_poses_and_ctf_must_agree_in_number():
    """Three poses with two CTF rows are refused."""
    with pytest.raises(BadInput, match="3 poses but 2 CTF rows"):
        form_images(volume(), pose(3), varied_ctf(2))


def test_prepared_projection_equals_projection():
    """Preparing the map once changes nothing."""
    torch.testing.assert_close(
        project_prepared(prepare(volume()), pose(2)), project(volume(), pose(2)), rtol=0, atol=0
    )
