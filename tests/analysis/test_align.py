"""Laws of map alignment, on maps of Gaussian blobs that are known in any position without interpolation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cryorbit.analysis.align import align_map, placing_matrix, refine_alignment
from cryorbit.analysis.align_partial import direction_field
from cryorbit.analysis.align_search import z_score
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.harmonics import SphereGrid, correlate_over_rotations, rotations_at
from cryorbit.analysis.map_tools import symmetrise_map
from cryorbit.analysis.transform_map import mirror_z, transform_map
from cryorbit.benchmarks.alignment_given import fitted_model, known_turn
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import soft_sphere_mask
from cryorbit.geometry.rotations import geodesic_angle, random_rotations, rotvec_to_matrix

FOUND_DEG, FOUND_PX = 0.5, 0.5
"""Asked of a noisy map of 40 pixels; without noise the errors are thirty times smaller."""

PARTIAL_DEG = 5.0
"""Where only part of a map of 40 pixels is compared; a wrong match is tens of degrees off."""

SPLINE = 0.99
"""Shell correlation of a map with its copy turned there and back, to 0.8 Nyquist."""


def blobs(
    n: int,
    *,
    rotation: Tensor | None = None,
    shift_px: Tensor | None = None,
    mirror: bool = False,
    part: float = 1.0,
) -> Volume:
    """Sixty blobs, or those on one side, moved as points: x -> rotation x + shift."""
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(60, 3, generator=generator, dtype=torch.float64) * n * 0.12
    points[:, 0] *= 0.6
    weight = torch.rand(60, generator=generator, dtype=torch.float64) + 0.5
    kept = points[:, 1].argsort()[: round(part * 60)]
    points, weight = points[kept], weight[kept]
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


@pytest.mark.parametrize(("n", "mirror"), [(40, False), (41, True)])
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
    assert abs(found.hand_gap) < 0.1


@pytest.mark.parametrize("n", [24, 25])
def test_identity_returns_identity(n):
    """A map on itself does not move, and one on its mirrored self is recognised as mirrored."""
    same = align_map(blobs(n), blobs(n))
    assert (same.hand, same.hand_verdict) == (1, "same")
    assert float(torch.rad2deg(geodesic_angle(same.rotation, torch.eye(3).double()))) < 0.05
    assert float(same.shift_A.norm()) < 0.01
    other = align_map(mirror_z(blobs(n)), blobs(n))
    assert (other.hand, other.hand_verdict) == (-1, "mirrored")
    assert float(torch.rad2deg(geodesic_angle(other.rotation, torch.eye(3).double()))) < 0.05


@pytest.mark.parametrize("n", [10, 13, 16])
def test_small_maps_are_aligned(n):
    """Ten voxels are enough; fewer are refused in a line."""
    rotation, _ = motion(n)
    found = align_map(blobs(n, rotation=rotation), blobs(n))
    assert float(torch.rad2deg(geodesic_angle(found.rotation, rotation))) < 10.0
    with pytest.raises(BadInput, match="9 voxels, wanted 10"):
        align_map(blobs(9), blobs(n))


def test_a_part_is_found_in_the_whole():
    """Half of the blobs, cut off by a plane, turned and shifted: partial mode puts them back."""
    rotation, shift = motion(11)
    found = align_map(blobs(40, rotation=rotation, shift_px=shift, part=0.5), blobs(40), mode="partial")
    assert found.mode == "partial"
    assert found.hand == 1
    assert float(torch.rad2deg(geodesic_angle(found.rotation, rotation))) < PARTIAL_DEG
    assert float((found.shift_A / 3.0 - shift).norm()) < FOUND_PX


def test_a_mask_leaves_only_part_of_the_reference():
    """Under a mask the rest of the reference has no say: rubbish there changes nothing."""
    n = 32
    rotation, _ = motion(12)
    mask = Volume(soft_sphere_mask(n, radius_px=11.0), 3.0)
    spoilt = blobs(n)
    spoilt.values[:6] += 3.0
    found = align_map(blobs(n, rotation=rotation), spoilt, mask=mask, hand="same")
    assert float(torch.rad2deg(geodesic_angle(found.rotation, rotation))) < PARTIAL_DEG
    with pytest.raises(BadInput, match="mask has box 20"):
        align_map(blobs(n), spoilt, mask=Volume(torch.ones(20, 20, 20), 3.0))


def test_of_equivalent_motions_the_least_is_given():
    """A map with a fourfold axis, turned by 100 degrees about it, is 10 degrees away."""
    whole = symmetrise_map(blobs(28), symmetry="C4")
    turn = rotvec_to_matrix(torch.tensor([0.0, 0.0, math.radians(100.0)], dtype=torch.float64))
    moved = transform_map(whole, rotation=turn.T, shift_A=torch.zeros(3))
    found = align_map(moved, whole, symmetry="C4", hand="same", mode="full")
    expected = rotvec_to_matrix(torch.tensor([0.0, 0.0, math.radians(10.0)], dtype=torch.float64))
    assert float(torch.rad2deg(geodesic_angle(found.rotation, expected))) < FOUND_DEG


def test_coarse_voxels_leave_the_hand_open():
    """At 9 A per voxel nothing chiral is resolved, whatever the scores say."""
    coarse = Volume(blobs(20).values, 9.0)
    assert align_map(coarse, coarse, mode="full").hand_verdict == "undetermined"


@pytest.mark.parametrize("n", [20, 21])
def test_slope_directions_are_those_of_the_mean_shift(n):
    """The mean-shift vector of a Gaussian kernel, summed out, points along grad log(G * density)."""
    volume = blobs(n)
    field = direction_field(volume, smoothing_A=4.5)
    sigma_px = 1.5
    i = torch.arange(n, dtype=torch.float64)
    z, y, x = (int(v) for v in torch.nonzero(field.norm(dim=0) > 0.5)[40])
    weight = (
        torch.exp(-((i[:, None, None] - z) ** 2 + (i[:, None] - y) ** 2 + (i - x) ** 2) / (2 * sigma_px**2))
        * volume.values.double()
    )
    centre = torch.stack([(weight.sum(dims) * i).sum() for dims in ((0, 1), (0, 2), (1, 2))]) / weight.sum()
    step = centre - torch.tensor([x, y, z])
    torch.testing.assert_close(field[:, z, y, x].double(), step / step.norm(), rtol=0, atol=1e-3)


def test_z_of_a_score_counts_from_the_largest_cluster():
    """A few right rotations far above the rest do not belong to the background."""
    background = torch.linspace(0.0, 1.0, 101)
    alone = z_score(background, 3.0)
    assert alone == pytest.approx((3.0 - 0.5) / float(background.std()), rel=1e-5)
    assert z_score(torch.cat([background, torch.tensor([2.9, 3.0])]), 3.0) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
def test_placing_matrix_takes_viewers_coordinates(mirror):
    """A blob's place in the moving map, as headers have it, is taken to its place in the reference."""
    rotation, shift = motion(13)
    reference = Volume(blobs(28).values, 3.0, (5.0, -7.0, 11.0))
    moved = blobs(28, rotation=rotation, shift_px=shift, mirror=mirror)
    moving = Volume(moved.values, 3.0, nstart=(4, 5, -6))
    matrix = placing_matrix(align_map(moving, reference), moving, reference)
    assert float(torch.linalg.det(matrix[:, :3])) == pytest.approx(-1.0 if mirror else 1.0)
    at = torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64)
    there = (rotation @ at + shift) * torch.tensor([1.0, 1.0, -1.0 if mirror else 1.0]).double()
    start = 3.0 * (there + 14) + torch.tensor(moving.place_A)
    end = 3.0 * (at + 14) + torch.tensor(reference.place_A)
    assert float((matrix[:, :3] @ start + matrix[:, 3] - end).norm()) < 0.5


@pytest.mark.data
def test_a_fitted_model_stays_where_it_is(data_dir):
    """The crop of EMD-20026, which is no cube, and the map of its fitted model: no turn, no shift."""
    pair = fitted_model(data_dir)
    found = align_map(pair.moving, pair.reference, hand="same", mode="full")
    assert float(torch.rad2deg(geodesic_angle(found.rotation, pair.rotation))) < 1.0
    assert float(found.shift_A.norm()) < 1.0


@pytest.mark.data
def test_a_known_turn_of_1ake_is_found_in_anothers_map(data_dir):
    """Our map of 1AKE after a random turn, against the simulated map of another program."""
    pair = known_turn(data_dir, 3)
    found = align_map(pair.moving, pair.reference)
    assert found.hand == 1
    assert float(torch.rad2deg(geodesic_angle(found.rotation, pair.rotation))) < FOUND_DEG


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
