"""Laws of map alignment, on maps of Gaussian blobs that are known in any position without interpolation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cryorbit.analysis.align import align_map, refine_alignment
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.harmonics import SphereGrid, correlate_over_rotations, rotations_at
from cryorbit.analysis.transform_map import mirror_z, transform_map
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import soft_sphere_mask
from cryorbit.geometry.rotations import geodesic_angle, random_rotations, rotvec_to_matrix

FOUND_DEG, FOUND_PX = 0.5, 0.5
"""Asked of a noisy map of 40 pixels; without noise the errors are thirty times smaller."""

SPLINE = 0.99
"""Shell correlation of a map with its copy turned there and back, to 0.8 Nyquist."""


def blobs(
    n: int, *, rotation: Tensor | None = None, shift_px: Tensor | None = None, mirror: bool = False
) -> Volume:
    """Sixty blobs, moved as points: x -> rotation x + shift."""
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(60, 3, generator=generator, dtype=torch.float64) * n * 0.12
    points[:, 0] *= 0.6
    weight = torch.rand(60, generator=generator, dtype=torch.float64) + 0.5
    if rotation is not None:
        points = points @ rotation.T
    if shift_px is not None:
        points = points + shift_px
    if mirror:
        points = points * torch.tensor([1.0, 1.0, -1.0])
    x = torch.arange(n, dtype=torch.float64) - n // 2
    g = torch.exp(-((x - points[..., None]) ** 2) / (2 * 1.4**2))
    return Volume(torch.einsum("b,bz,by,bx->zyx", weight, g[:, 2], g[:, 1], g[:, 0]).float(), 3.0)


def motion(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rotation = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    return rotation, 2.5 * torch.randn(3, generator=generator, dtype=torch.float64)


def with_noise(volume: Volume, seed: int) -> Volume:
    noise = torch.randn(volume.values.shape, generator=torch.Generator().manual_seed(seed))
    return Volume(volume.values + 0.5 * volume.values.std() * noise, volume.pixel_size_A)


@pytest.mark.parametrize(("n", "mirror"), [(40, False), (40, True), (41, False), (41, True)])
def test_alignment_finds_rotation_shift_and_hand(n, mirror):
    """A map moved as points, mirrored or not, under noise: the motion comes back and the maps agree."""
    rotation, shift = motion(n + mirror)
    reference, clean = blobs(n), blobs(n, rotation=rotation, shift_px=shift, mirror=mirror)
    found = align_map(with_noise(clean, 1), with_noise(reference, 2))
    assert found.hand == (-1 if mirror else 1)
    assert float(torch.rad2deg(geodesic_angle(found.rotation, rotation))) < FOUND_DEG
    assert float((found.shift_A / 3.0 - shift).norm()) < FOUND_PX
    assert found.hand_gap > 0.05
    assert found.significance > 8
    moved = transform_map(
        clean if not mirror else mirror_z(clean), rotation=found.rotation, shift_A=found.shift_A
    )
    agreement = fourier_shell_correlation(moved, reference).correlation
    assert float(agreement[: n // 4].min()) > 0.98


def test_alignment_needs_neither_the_same_box_nor_the_same_pixel():
    """The result lies on the reference's grid; the motion is in angstrom."""
    rotation, shift = motion(3)
    reference = blobs(40)
    moving = blobs(40, rotation=rotation, shift_px=shift)
    finer = torch.nn.functional.interpolate(
        moving.values[None, None], size=(60, 60, 60), mode="trilinear", align_corners=False
    )
    # index i of the finer map lies at (i + 0.5) * 2/3 - 0.5, so its origin 30 is 0.1667 coarse pixels off
    found = align_map(Volume(finer[0, 0], 2.0), reference, hand="same")
    assert found.aligned.box == 40
    assert float(torch.rad2deg(geodesic_angle(found.rotation, rotation))) < FOUND_DEG
    assert float((found.shift_A / 3.0 - shift).norm()) < FOUND_PX
    assert found.scores.keys() == {1}


def test_unrelated_maps_are_not_significant():
    """Noise against noise finds no start that stands out, and no hand."""
    n = 40
    noise = [
        Volume(torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed)), 3.0) for seed in (1, 2)
    ]
    found = align_map(noise[0], noise[1])
    assert found.significance < 6.5
    assert abs(found.hand_gap) < 0.05


def test_refinement_starts_from_a_pose_gauge():
    """From ten degrees and two pixels off, the motion is found without a search."""
    rotation, shift = motion(8)
    moving = with_noise(mirror_z(blobs(40, rotation=rotation, shift_px=shift)), 3)
    off = rotvec_to_matrix(torch.tensor([0.1, -0.1, 0.08], dtype=torch.float64)) @ rotation
    start_A = 3.0 * (shift + torch.tensor([1.0, -1.5, 0.5]))
    found = refine_alignment(moving, blobs(40), rotation=off, shift_A=start_A, hand=-1)
    assert float(torch.rad2deg(geodesic_angle(found.rotation, rotation))) < FOUND_DEG
    assert float((found.shift_A / 3.0 - shift).norm()) < FOUND_PX


def test_a_constant_map_is_refused():
    """There is nothing to align."""
    with pytest.raises(BadInput, match="moving map is constant"):
        align_map(Volume(torch.ones(20, 20, 20), 3.0), blobs(20))


@pytest.mark.parametrize("n", [32, 33])
def test_mirror_keeps_the_origin_and_undoes_itself(n):
    """Index N // 2 stays, twice is the identity, and points go to z -> -z."""
    volume = blobs(n)
    flipped = mirror_z(volume)
    assert torch.equal(mirror_z(flipped).values, volume.values)
    assert torch.equal(flipped.values[n // 2], volume.values[n // 2])
    inner = slice(1, None) if n % 2 == 0 else slice(None)
    torch.testing.assert_close(flipped.values[inner], blobs(n, mirror=True).values[inner], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [32, 33])
def test_turning_a_map_moves_its_points(n):
    """transform_map(x) = map(Q x + c) equals the map drawn with its points moved the other way."""
    rotation, shift = motion(4)
    moved = transform_map(blobs(n, rotation=rotation, shift_px=shift), rotation=rotation, shift_A=3.0 * shift)
    expected = blobs(n)
    error = (moved.values - expected.values) * soft_sphere_mask(n, radius_px=n / 2 - 6)
    assert float(error.abs().max() / expected.values.max()) < 1e-3


@pytest.mark.parametrize("n", [47, 48])
def test_turning_there_and_back_keeps_high_frequencies(n):
    """White content stays correlated above 0.99 to 0.8 Nyquist after two interpolations."""
    rotation, _ = motion(6)
    shift = torch.tensor([1.3, -2.2, 0.7], dtype=torch.float64)
    white = torch.randn(n, n, n, generator=torch.Generator().manual_seed(7))
    volume = Volume(white * soft_sphere_mask(n, radius_px=0.3 * n), 1.0)
    there = transform_map(volume, rotation=rotation, shift_A=shift)
    back = transform_map(there, rotation=rotation.T, shift_A=-rotation.T @ shift)
    curve = fourier_shell_correlation(volume, back)
    assert float(curve.correlation[curve.frequency_per_A <= 0.4].min()) > SPLINE


def test_rotation_search_has_its_peak_at_the_rotation():
    """For a band-limited function turned by a rotation of the grid, the peak is there, with the full norm."""
    degrees = 8
    sphere = SphereGrid.of_degree(degrees)
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(5, 3, generator=generator, dtype=torch.float64))
    weight = torch.tensor([1.0, -0.6, 0.8, 0.5, -0.9], dtype=torch.float64)

    def function(x: Tensor) -> Tensor:  # degree 7 in x, so band-limited
        return ((x @ directions.T) ** 7 + (x @ directions.roll(1, 0).T) ** 4) @ weight

    index = torch.tensor([[3.0, 5.0, 11.0]])
    turn = rotations_at(index, 2 * degrees)[0]
    f = sphere.analyse(function(sphere.direction).to(torch.complex128))
    g = sphere.analyse(function(sphere.direction @ turn).to(torch.complex128))  # f(R^-1 x)
    grid = correlate_over_rotations(f[None], g[None])
    where = torch.nonzero(grid >= grid.max() - 1e-9).double()
    found = rotations_at(where, 2 * degrees)
    assert float(geodesic_angle(found, turn.expand_as(found)).min()) < 1e-6
    assert float(grid.max()) == pytest.approx(float(g.abs().square().sum()), rel=1e-9)
