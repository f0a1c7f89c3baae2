"""The frame, hand and centre that projections leave free are one and the same for poses, maps and images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cryorbit.analysis.align import align_map, refine_alignment
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.pose_error import pose_errors
from cryorbit.analysis.transform_map import mirror_z, transform_map
from cryorbit.data import Pose, Volume
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.geometry.rotations import geodesic_angle, random_rotations
from cryorbit.physics.formation import form_images

PIXEL_A = 3.0

INTERPOLATED = 0.02
"""Relative error of images of a map that was turned by splines and projected by trilinear slices."""


def blob_map(n: int) -> Volume:
    generator = torch.Generator().manual_seed(11)
    points = torch.randn(40, 3, generator=generator) * torch.tensor([0.07, 0.11, 0.09]) * n
    x = torch.arange(n) - n // 2
    g = torch.exp(-((x - points[..., None]) ** 2) / (2 * 1.8**2))
    return Volume(torch.einsum("bz,by,bx->zyx", g[:, 2], g[:, 1], g[:, 0]), PIXEL_A)


def another_frame(
    volume: Volume, pose: Pose, *, gauge: Tensor, centre_A: Tensor, hand: int
) -> tuple[Volume, Pose]:
    """The same images described otherwise: x_other = gauge x + centre, then mirrored if hand is -1."""
    moved = transform_map(volume, rotation=gauge.T, shift_A=-gauge.T @ centre_A)
    rotation = pose.rotation @ gauge.T.to(pose.rotation)
    shift = pose.shift_A - (rotation @ centre_A.to(rotation))[:, :2]
    if hand == -1:
        moved, rotation = mirror_z(moved), mirror_pose_rotation(rotation)
    return moved, Pose(rotation, shift)


@pytest.mark.parametrize("n", [32, 33])
@pytest.mark.parametrize("hand", [1, -1])
def test_images_poses_and_maps_agree_on_the_frame(n, hand):
    """Another frame, centre and hand give the same images; pose errors find them, and they place the map."""
    generator = torch.Generator().manual_seed(n)
    truth = Pose(
        random_rotations(80, generator=generator, dtype=torch.float32),
        2.0 * torch.randn(80, 2, generator=generator),
    )
    volume = blob_map(n)
    gauge = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    centre = torch.tensor([4.0, -3.0, 5.0], dtype=torch.float64)
    other, found = another_frame(volume, truth, gauge=gauge, centre_A=centre, hand=hand)

    images, same = form_images(volume, truth[:6], None), form_images(other, found[:6], None)
    assert float((images - same).norm() / images.norm()) < INTERPOLATED

    errors = pose_errors(found, truth)
    assert errors.hand == hand
    assert errors.mse < 1e-6  # float32 rotations
    torch.testing.assert_close(errors.gauge, gauge, rtol=0, atol=1e-4)
    torch.testing.assert_close(errors.map_shift_A, centre, rtol=0, atol=1e-3)
    assert float(errors.shift_error_A.max()) < 1e-3

    placed = refine_alignment(
        other, volume, rotation=errors.gauge, shift_A=errors.map_shift_A, hand=errors.hand
    )
    searched = align_map(other, volume)
    for alignment in (placed, searched):
        assert alignment.hand == hand
        assert float(geodesic_angle(alignment.rotation, gauge)) < 0.01
        assert float((alignment.shift_A - centre).norm()) < 0.1 * PIXEL_A
        curve = fourier_shell_correlation(alignment.aligned, volume).correlation
        assert float(curve[: n // 4].min()) > 0.99


@pytest.mark.data
def test_a_ribosome_is_found_again(data_dir):
    """A 70S ribosome of 65 voxels, turned, shifted, mirrored and noisy, comes back."""
    from cryorbit.io.mrc import read_map

    reference = read_map(data_dir / "maps" / "ribosome70S_clean_65p.mrc", pixel_size_A=5.0)
    generator = torch.Generator().manual_seed(0)
    gauge = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    centre = 3.0 * reference.pixel_size_A * torch.tensor([1.0, -0.6, 0.8], dtype=torch.float64)
    moved = mirror_z(transform_map(reference, rotation=gauge.T, shift_A=-gauge.T @ centre))
    noise = torch.randn(moved.values.shape, generator=generator) * moved.values.std()
    found = align_map(Volume(moved.values + noise, moved.pixel_size_A), reference)
    assert found.hand == -1
    assert float(torch.rad2deg(geodesic_angle(found.rotation, gauge))) < 0.5
    assert float((found.shift_A - centre).norm()) < 0.3 * reference.pixel_size_A
