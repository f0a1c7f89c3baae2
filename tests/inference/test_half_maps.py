"""Laws of half maps: noise does not correlate with noise, signal does, and what is shared is said to be."""

import torch

from cryorbit.fourier.centred import fft_centred
from cryorbit.inference.half_maps import shell_correlation, solve_halves
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.observations import support_mask
from cryorbit.inference.refine import half_disk
from physics_models import GaussianBlobs, uniform_rotations

N, RADIUS, JOINED = 32, 14, 4.0


def _sums(count, *, seed, signal=0.0, noise=1.0):
    lattice = Lattice(N)
    raw = lattice.zeros()
    points = half_disk(RADIUS, inner=0.0)
    rotation = uniform_rotations(count, seed=seed)
    g = torch.Generator().manual_seed(seed)
    values = noise * torch.randn(count, len(points), generator=g, dtype=torch.complex64)
    if signal:
        blobs = GaussianBlobs.random(30, radius_px=8.0, sigma_px=1.0, seed=6)
        plane = fft_centred(blobs.images(N, rotation).to(torch.complex128), dims=(-2, -1))
        values = values + signal * plane[:, points[:, 1].long() + N // 2, points[:, 0].long() + N // 2]
    axes = rotation.float()
    at = points[:, :1] * axes[:, None, 0] + points[:, 1:] * axes[:, None, 1]
    lattice.add(raw, at, values.to(torch.complex64), torch.ones(values.shape))
    return lattice, raw


def _mask():
    return support_mask(N, 11.0)


def _halves(**options):
    (lattice, a), (_, b) = _sums(400, seed=1, **options), _sums(400, seed=2, **options)
    return solve_halves((a, b), lattice, _mask(), radius=RADIUS, joined_radius=JOINED)


def test_noise_does_not_correlate():
    """From noise every shell is within 3 / sqrt(n) of 0, n the independent coefficients the mask leaves.

    Joining the low shells for refinement does not show in the curve.
    """
    solved = _halves()
    shells = torch.arange(1.0, RADIUS)
    independent = (2 * torch.pi * shells.square() * float(_mask().square().mean())).clamp_min(1.0)
    assert bool((solved.correlation[1:RADIUS].abs() < 3 / independent.sqrt()).all())
    assert solved.radius_at(0.8) == 0


def test_signal_correlates():
    """Without noise the halves agree to sampling, and `radius_at` is the last shell."""
    solved = _halves(signal=1.0, noise=0.0)
    assert float(solved.correlation[1:RADIUS].min()) > 0.99
    assert solved.radius_at(0.5) == RADIUS


def test_low_shells_are_shared_for_refinement():
    """The regularised halves share low shells, so that they stay in register; their own maps do not."""
    solved = _halves(signal=0.05)
    low = solved.lattice.shells() <= 2
    first, second = (h[low] for h in solved.halves)
    # Each is masked and filtered by its own weights, so equal to a few per cent only.
    assert float((first - second).abs().square().sum() / first.abs().square().sum()) < 1e-2
    a, b = solved.maps
    assert float((a - b).abs().max()) > 0.1 * float(a.abs().max())


def test_radius_stops_where_the_correlation_first_falls():
    """The last shell before the first fall below the threshold, whatever comes later."""
    solved = _halves(signal=0.3)
    object.__setattr__(solved, "correlation", torch.tensor([1.0, 0.9, 0.8, 0.2, 0.9, 0.1]))
    assert [solved.radius_at(t) for t in (0.95, 0.85, 0.5, 0.15, 0.05)] == [0, 1, 2, 4, 5]


def test_correlation_is_the_normalised_product_per_shell():
    """1 with itself, -1 with its negative, scale-free, symmetric."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(15, 15, 15, generator=g) for _ in range(2))
    torch.testing.assert_close(shell_correlation(a, a, 8), torch.ones(8))
    torch.testing.assert_close(shell_correlation(a, -3 * a, 8), -torch.ones(8))
    torch.testing.assert_close(shell_correlation(a, b, 8), shell_correlation(2 * b, a, 8))
