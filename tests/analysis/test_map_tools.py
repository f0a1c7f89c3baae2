"""Laws of the map tools: a feature keeps its physical place, symmetry is exact where it can be, scaling scales."""

from __future__ import annotations

import pytest
import torch

from cryorbit.analysis.map_tools import (
    crop_map,
    difference_map,
    filter_map,
    resample_map,
    scaled_to,
    symmetrise_map,
)
from cryorbit.analysis.transform_map import mirror_z, transform_map
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import soft_sphere_mask
from cryorbit.fourier.shells import shell_sum
from cryorbit.geometry.symmetry import point_group

PLACE_A = 0.02
"""Centre of mass of a blob of deviation 6 A on voxels of 2 to 5 A, in float32."""

TURNED = 2e-3
"""Splines on a twofold oversampled grid, of blobs of 1.6 voxels, relative to the largest density."""


def blob(n: int, at_px: tuple[float, float, float] = (3.0, -2.0, 4.0), **header: object) -> Volume:
    """One Gaussian of 2 voxels, at voxels (x, y, z) from index N // 2; 3 A per voxel."""
    x = torch.arange(n, dtype=torch.float64) - n // 2
    gx, gy, gz = (torch.exp(-((x - c) ** 2) / 8.0) for c in at_px)
    return Volume((gz[:, None, None] * gy[:, None] * gx).float(), 3.0, **header)


def shown_at(volume: Volume) -> torch.Tensor:
    """Where viewers show the centre of mass (x, y, z), in angstrom."""
    values = volume.values.double()
    i = torch.arange(volume.box, dtype=torch.float64) * volume.pixel_size_A
    total = values.sum()
    centre = torch.stack([(values.sum(dims) * i).sum() / total for dims in ((0, 1), (0, 2), (1, 2))])
    return centre + torch.tensor(volume.place_A, dtype=torch.float64)


HEADERS = [{}, {"origin_A": (10.0, -20.0, 7.5)}, {"nstart": (-12, 3, 5)}]


@pytest.mark.parametrize("header", HEADERS, ids=["none", "ORIGIN", "NSTART"])
@pytest.mark.parametrize("n", [32, 33])
def test_a_feature_stays_where_viewers_show_it(n, header):
    """Cropping, padding, resampling and filtering change the grid or the values, never the place."""
    volume = blob(n, **header)
    results = {
        "crop": crop_map(volume, box=27),
        "crop even": crop_map(volume, box=26),
        "pad": crop_map(volume, box=40),
        "coarser": resample_map(volume, box=24),
        "finer": resample_map(volume, box=51),
        "pixel": resample_map(volume, pixel_size_A=2.37),
        "pixel and box": resample_map(volume, pixel_size_A=4.1, box=30),
        "filter": filter_map(volume, b_factor_A2=200.0),
    }
    for name, result in results.items():
        assert float((shown_at(result) - shown_at(volume)).abs().max()) < PLACE_A, name


@pytest.mark.parametrize("n", [40, 41])
def test_resampling_meets_the_pixel_size_and_keeps_values(n):
    """The voxel size is the one asked for to 1e-4, the box covers the same field, the maximum is the same."""
    finer = resample_map(blob(n, (0, 0, 0)), pixel_size_A=1.937)
    assert finer.pixel_size_A == pytest.approx(1.937, rel=1e-4)
    assert abs(finer.box * 1.937 - n * 3.0) < 1.937
    assert float(finer.values.max()) == pytest.approx(1.0, abs=1e-3)
    there_and_back = resample_map(resample_map(blob(n), box=2 * n), box=n)
    torch.testing.assert_close(there_and_back.values, blob(n).values, rtol=0, atol=1e-5)


def test_resampling_wants_something_to_do():
    """Neither box nor pixel size, or senseless ones, are named."""
    with pytest.raises(BadInput, match="neither"):
        resample_map(blob(16))
    with pytest.raises(BadInput, match="positive"):
        resample_map(blob(16), pixel_size_A=-1.0)
    with pytest.raises(BadInput, match="positive"):
        crop_map(blob(16), box=0)


SMALL = [(name, n) for name in ("C1", "C3", "C7", "D1", "D2", "D7", "T") for n in (20, 21)]


@pytest.mark.parametrize(
    ("name", "n"), [*SMALL, ("O", 20), ("O", 21), ("I1", 20), ("I2", 21), ("I3", 20), ("I4", 21)]
)
def test_a_symmetrised_phantom_is_invariant(name, n):
    """A phantom drawn with a symmetry is left alone by the group, and is what symmetrising one unit of it gives."""
    generator = torch.Generator().manual_seed(2)
    x = torch.arange(n, dtype=torch.float64) - n // 2
    points = torch.randn(6, 3, generator=generator, dtype=torch.float64) * n * 0.09
    group = point_group(name)
    points = torch.einsum("gij,pj->gpi", group, points).reshape(-1, 3)
    g = torch.exp(-((x - points[..., None]) ** 2) / (2 * 1.6**2))
    exact = torch.einsum("bz,by,bx->zyx", g[:, 2], g[:, 1], g[:, 0])
    phantom = Volume((exact / exact.max()).float(), 3.0)
    inside = soft_sphere_mask(n, radius_px=n / 2 - 4, edge_px=2.0)
    for element in group[[1 % len(group), len(group) // 2, len(group) - 1]]:
        moved = transform_map(phantom, rotation=element, shift_A=torch.zeros(3))
        assert float(((moved.values - phantom.values) * inside).abs().max()) < TURNED
    one_unit = points.view(len(group), -1, 3)[0]
    g = torch.exp(-((x - one_unit[..., None]) ** 2) / (2 * 1.6**2))
    lopsided = Volume((torch.einsum("bz,by,bx->zyx", g[:, 2], g[:, 1], g[:, 0]) / exact.max()).float(), 3.0)
    mean = symmetrise_map(lopsided, symmetry=name).values * len(group)
    assert float(((mean - phantom.values) * inside).abs().max()) < TURNED


@pytest.mark.parametrize("n", [24, 25])
def test_flipping_keeps_the_header_and_reverses_z(n):
    """Index N // 2 keeps its place; a feature above the middle comes to lie below it."""
    volume = blob(n, (3, -2, 4), origin_A=(5.0, 6.0, 7.0))
    flipped = mirror_z(volume)
    assert flipped.origin_A == volume.origin_A
    middle = n // 2 * 3.0
    before, after = (shown_at(v) - torch.tensor(v.place_A) - middle for v in (volume, flipped))
    torch.testing.assert_close(after, before * torch.tensor([1.0, 1.0, -1.0]).double(), rtol=0, atol=0.02)


@pytest.mark.parametrize("n", [30, 31])
def test_the_difference_of_a_map_and_its_filtered_copy_is_nothing(n):
    """Scaling by shells undoes any radial filter; what only one map has is what remains, of its sign."""
    a = blob(n, (0, 0, 0))
    noise = 0.01 * torch.randn(n, n, n, generator=torch.Generator().manual_seed(0))
    full = Volume(a.values + noise, 3.0, (1.0, 2.0, 3.0))
    filtered = filter_map(full, b_factor_A2=80.0)
    nothing = difference_map(full, filtered)
    inner = shell_sum(torch.fft.rfftn(nothing.values).abs() ** 2, n=n, ndim=3)
    assert float(inner[:-1].max()) < 1e-4 * float(
        shell_sum(torch.fft.rfftn(full.values).abs() ** 2, n=n, ndim=3).max()
    )
    extra = blob(n, (6, 6, 0))
    more = Volume(full.values + 0.3 * extra.values, 3.0, (1.0, 2.0, 3.0))
    change = difference_map(more, filtered, low_pass_A=9.0)
    assert change.origin_A == (1.0, 2.0, 3.0)
    z, y, x = torch.unravel_index(change.values.argmax(), change.values.shape)
    assert (int(x), int(y), int(z)) == (n // 2 + 6, n // 2 + 6, n // 2)


def test_maps_that_do_not_fit_are_refused():
    """Box and pixel size are named, with the remedy."""
    with pytest.raises(BadInput, match="map align"):
        scaled_to(blob(20), blob(22))
    with pytest.raises(BadInput, match="pixel sizes differ"):
        difference_map(blob(20), Volume(blob(20).values, 4.0))
