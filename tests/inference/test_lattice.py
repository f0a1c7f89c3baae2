"""Laws of the lattice: slices read from it are projections, slices added to it solve to the map."""

import math

import pytest
import torch

from cryorbit.fourier.centred import fft_centred
from cryorbit.inference.half_maps import shell_correlation
from cryorbit.inference.lattice import Lattice, Sums, on_image_grid
from cryorbit.inference.refine import half_disk
from cryorbit.physics.interpolation import gather
from physics_models import GaussianBlobs, uniform_rotations

N = 32
READS = 2e-2
"""A trilinear read of a twice padded map, relative to the r.m.s. of the slice, particle within 0.3 N."""


def _blobs():
    return GaussianBlobs.random(30, radius_px=8.0, sigma_px=1.2, seed=6)


def _samples(n, *, radius=14.0, seed=1, box=N):
    """Exact transforms of n projections at random poses on the half disk, and where they lie."""
    rotation = uniform_rotations(n, seed=seed)
    points = half_disk(radius, inner=0.0)
    plane = fft_centred(_blobs().images(box, rotation).to(torch.complex128), dims=(-2, -1))
    values = plane[:, points[:, 1].long() + box // 2, points[:, 0].long() + box // 2]
    at = points[:, :1] * rotation[:, None, 0].float() + points[:, 1:] * rotation[:, None, 1].float()
    return at, values.to(torch.complex64)


@pytest.mark.parametrize("box", [31, 32])
def test_slices_of_a_map_are_its_projections(box):
    """Read from to_half(map), a slice is the image's transform; images may be odd, the lattice is even."""
    at, values = _samples(4, radius=12.0, box=box)
    half = Lattice(N).to_half(_blobs().values(N).float())
    # Fourier pixels of another box are N / box of the lattice's.
    found = gather(half, at * (2 * N / box))
    assert float((found - values).abs().square().mean().sqrt() / values.abs().square().mean().sqrt()) < READS


def _solved(at, values, weights, *, radius=14):
    lattice = Lattice(N)
    raw = lattice.zeros()
    lattice.add(raw, at, values * weights, weights)
    return lattice, raw, Sums.of(lattice, raw)


def test_many_slices_solve_to_the_map():
    """1000 projections, weighted by squared CTFs: shell correlation with the map > 0.99 at every radius."""
    at, values = _samples(1000)
    which = torch.arange(1000.0)[:, None]
    weights = torch.sin(at.square().sum(-1) / 30 + which).square()
    lattice, _, sums = _solved(at, values, weights)
    found = lattice.to_map(sums.solve(1e-4 * lattice.shell_mean(sums.weight, 16), radius=14))
    truth = _blobs().values(N).float()
    correlation = shell_correlation(found, truth, 15)
    assert float(correlation[1:14].min()) > 0.99
    assert float((found * truth).sum() / truth.square().sum()) == pytest.approx(1.0, abs=0.03)


def test_completed_sums_are_hermitian():
    """On the plane x = 0 numerator(-k) = conj numerator(k) and weight is even; raw sums stay as they are."""
    at, values = _samples(20)
    _, raw, sums = _solved(at, values, torch.rand(values.shape, generator=torch.Generator().manual_seed(0)))
    before = raw.clone()
    plane, weight = sums.numerator[1:, 1:, 0], sums.weight[1:, 1:, 0]
    torch.testing.assert_close(plane, plane.flip(0, 1).conj())
    torch.testing.assert_close(weight, weight.flip(0, 1))
    assert torch.equal(raw, before)


def test_added_samples_keep_their_mass():
    """The weights of both halves of the lattice sum to twice those added: each point and its mate."""
    at, values = _samples(20)
    weights = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
    _, _, sums = _solved(at, values, weights)
    total = sums.weight[:, :, 1:].double().sum() * 2 + sums.weight[:, :, 0].double().sum()
    # Points with x below 1 also reach beyond the plane x = 0, where mates are not kept.
    inside = at[..., 0].abs() * 2 >= 1
    low, high = 2 * weights[inside].double().sum(), 2 * weights.double().sum()
    assert float(low) <= float(total) * (1 + 1e-5)
    assert float(total) <= float(high) * (1 + 1e-5)


def test_order_of_adding_does_not_matter():
    """Sums are linear: two parts one after the other are the whole."""
    at, values = _samples(12)
    weights = torch.ones(values.shape)
    lattice, whole, _ = _solved(at, values, weights)
    raw = lattice.zeros()
    for part in (slice(5, None), slice(0, 5)):
        lattice.add(raw, at[part], values[part], weights[part])
    torch.testing.assert_close(raw, whole, rtol=1e-4, atol=1e-3)


def test_shells_are_rounded_radii():
    """Shell of a lattice point: half its distance from the origin, rounded; means are over shells."""
    lattice = Lattice(6)
    shells = lattice.shells()
    assert shells.shape == (12, 12, 7)
    for z, y, x in [(6, 6, 0), (7, 7, 1), (8, 6, 0), (6, 4, 3), (0, 5, 0), (9, 9, 3)]:
        assert int(shells[z, y, x]) == round(math.dist((z, y, x), (6, 6, 0)) / 2)
    torch.testing.assert_close(lattice.shell_mean(shells.float(), 5), torch.arange(5.0))


def test_solve_stops_at_the_radius():
    """Beyond `radius` the solution is zero, and an added weight only shrinks it."""
    at, values = _samples(50)
    lattice, _, sums = _solved(at, values, torch.ones(values.shape))
    plain = sums.solve(torch.full((16,), 1e-6), radius=9)
    assert float(plain[lattice.shells() > 9].abs().max()) == 0
    damped = sums.solve(torch.full((16,), 5.0), radius=9)
    assert bool((damped.abs() <= plain.abs() + 1e-6).all())


@pytest.mark.parametrize("box", [31, 32])
def test_maps_of_images_have_their_scale_and_origin(box):
    """Slices of images of any box, added up on the even lattice beside it, give the map on the images' own voxels."""
    lattice = Lattice(box + box % 2)
    at, values = _samples(1000, box=box)
    raw = lattice.zeros()
    lattice.add(raw, at, values, torch.ones(values.shape))
    sums = Sums.of(lattice, raw)
    on_lattice = lattice.to_map(sums.solve(1e-4 * lattice.shell_mean(sums.weight, 16), radius=14))
    found, truth = on_image_grid(on_lattice, box), _blobs().values(box).float()
    assert float(shell_correlation(found, truth, 15)[1:14].min()) > 0.99
    assert float((found * truth).sum() / truth.square().sum()) == pytest.approx(1.0, abs=0.03)
