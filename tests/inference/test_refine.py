"""Laws of pose refinement: its slope is the misfit's, it finds the pose and knows how well."""

import math
from functools import lru_cache
from itertools import pairwise

import pytest
import torch

from cryorbit.geometry.rotations import geodesic_angle, rotvec_to_matrix
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.refine import DiskData, half_disk, refine_poses
from cryorbit.physics.interpolation import gather
from physics_models import GaussianBlobs, uniform_rotations

BOX, RADIUS = 32, 11.0
SHIFT_SD_PX = 50.0
"""A prior so wide that it does not show."""
KINKS = 2e-2
"""Relative: trilinear slopes jump at lattice planes, so a finite difference mixes two cells."""

READS = 5e-2
"""Relative: a trilinear read of a twice padded map is off by some 1 % of the largest value."""


def _blobs():
    return GaussianBlobs.random(25, radius_px=8.0, sigma_px=1.3, seed=4)


@lru_cache(maxsize=2)
def _half(turned: bool = False):
    blobs = _blobs()
    centres = blobs.centre_px @ _turn().T if turned else blobs.centre_px
    return Lattice(BOX).to_half(GaussianBlobs(centres, blobs.weight, 1.3).values(BOX).float())


def _turn():
    return uniform_rotations(1, seed=8)[0]


def _poses(n, seed=2):
    shifts = 1.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return uniform_rotations(n, seed=seed).float(), shifts


def _slices(half, rotation, points):
    at = points[:, :1] * rotation[:, None, 0] + points[:, 1:] * rotation[:, None, 1]
    return gather(half, 2 * at)


def _data(rotation, shift_px, *, scale=1.0, noise_seed=None):
    """Images of the lattice map itself, CTF sin(r^2 / 20 + i), white noise of unit power if seeded."""
    points = half_disk(RADIUS)
    which = torch.arange(len(rotation), dtype=torch.float32)[:, None] % 3
    ctf = scale * torch.sin(points.square().sum(1) / 20 + 0.4 + which)
    phase = -(shift_px @ points.T) * (2 * math.pi / BOX)
    images = _slices(_half(), rotation, points) * torch.polar(ctf, phase)
    if noise_seed is not None:
        g = torch.Generator().manual_seed(noise_seed)
        images = images + torch.randn(images.shape, generator=g, dtype=torch.complex64)
    return DiskData(images, ctf, points, BOX)


def _misfit(data, rotation, shift_px, half=None, shift_sd_px=SHIFT_SD_PX):
    half = _half() if half is None else half
    found = refine_poses(data, half, rotation, shift_px, iterations=0, shift_sd_px=shift_sd_px)
    empty = torch.view_as_real(data.transform).double().square().sum((1, 2))
    return empty - found.log_likelihood.double()


def _near(rotation, shift_px, *, angle_rad, shift, seed=5):
    g = torch.Generator().manual_seed(seed)
    turn = torch.nn.functional.normalize(torch.randn(len(rotation), 3, generator=g), dim=1) * angle_rad
    return rotvec_to_matrix(turn) @ rotation, shift_px + shift * torch.randn(shift_px.shape, generator=g)


def test_half_disk_has_one_of_each_friedel_pair():
    """With its mirror image it is every whole point of the ring inner <= |k| <= radius, once."""
    points = half_disk(5.3, inner=1.2)
    both = torch.cat((points, -points)).long()
    axis = torch.arange(-6, 7)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    size = (x.square() + y.square()).float().sqrt()
    inside = (size <= 5.3) & (size >= 1.2)
    assert {tuple(p) for p in both.tolist()} == set(zip(x[inside].tolist(), y[inside].tolist(), strict=True))
    assert len(both) == int(inside.sum())


def test_within_keeps_the_inner_disk():
    """`within` cuts every field alike."""
    data = _data(*_poses(2)).within(6.0)
    torch.testing.assert_close(data.points, half_disk(6.0))
    assert data.transform.shape == data.ctf.shape == (2, len(data.points))


def test_misfit_of_the_true_pose_is_the_prior_alone():
    """Noise-free data: 0 at the truth, with the shift's prior t^2 / (2 sd^2) on top."""
    rotation, shift_px = _poses(4)
    data = _data(rotation, shift_px)
    prior = shift_px.double().square().sum(1) / (2 * 3.0**2)
    power = data.transform.abs().square().sum(1)
    found = _misfit(data, rotation, shift_px, shift_sd_px=3.0)
    assert float(((found - prior).abs() / power).max()) < 1e-6


def test_slope_is_that_of_the_misfit():
    """The analytic gradient in the three angles and two shifts is a finite difference of the misfit."""
    from cryorbit.inference.refine import _evaluate

    rotation, shift_px = _poses(6)
    data = _data(rotation, shift_px, scale=0.1)
    rotation, shift_px = _near(rotation, shift_px, angle_rad=0.1, shift=0.3)
    slope = _evaluate(data, _half(), rotation, shift_px, 2.0, 2.0).gradient
    numeric = torch.empty(6, 5, dtype=torch.float64)
    for j in range(5):
        step = torch.zeros(1, 5, dtype=torch.float64)
        step[0, j] = 2e-3 if j < 3 else 1e-2
        ends = []
        for sign in (1, -1):
            turned = rotvec_to_matrix(sign * step[:, :3]) @ rotation.double()
            moved = shift_px.double() + sign * step[:, 3:]
            ends.append(_misfit(data, turned.float(), moved.float(), shift_sd_px=2.0))
        numeric[:, j] = (ends[1] - ends[0]) / (2 * step.sum())
    error = (slope - numeric).abs().amax(0) / numeric.abs().amax(0)
    assert float(error.max()) < KINKS


def test_curvature_is_that_of_the_misfit():
    """At the truth, where residuals vanish, the normal matrix is the second difference of the misfit."""
    from cryorbit.inference.refine import _evaluate

    rotation, shift_px = _poses(6)
    data = _data(rotation, shift_px, scale=0.1)
    normal = _evaluate(data, _half(), rotation, shift_px, SHIFT_SD_PX, 2.0).normal.double()
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        step = torch.randn(1, 5, generator=g, dtype=torch.float64) * torch.tensor(
            [0.01, 0.01, 0.01, 0.05, 0.05]
        )
        ends = [
            _misfit(
                data,
                (rotvec_to_matrix(s * step[:, :3]) @ rotation.double()).float(),
                shift_px + s * step[:, 3:].float(),
            )
            for s in (1, -1)
        ]
        numeric = ends[0] + ends[1] - 2 * _misfit(data, rotation, shift_px)
        analytic = torch.einsum("ni,bij,nj->b", step, normal, step)
        torch.testing.assert_close(numeric, analytic, rtol=0.05, atol=0)


@pytest.mark.parametrize(("angle_rad", "shift"), [(0.05, 0.5), (0.15, 1.0)])
def test_the_true_pose_is_found(angle_rad, shift):
    """From noise-free data and a start that is off by this much, to 1e-3 rad and 1e-2 px."""
    truth = _poses(24)
    data = _data(*truth)
    start = _near(*truth, angle_rad=angle_rad, shift=shift)
    coarse = refine_poses(data.within(6.0), _half(), *start, iterations=4, shift_sd_px=SHIFT_SD_PX)
    found = refine_poses(
        data, _half(), coarse.rotation, coarse.shift_px, iterations=8, shift_sd_px=SHIFT_SD_PX
    )
    assert float(geodesic_angle(found.rotation, truth[0]).max()) < 1e-3
    assert float((found.shift_px - truth[1]).abs().max()) < 1e-2


def test_steps_never_make_it_worse():
    """The log-likelihood does not fall with more iterations, from any start; rotations stay rotations."""
    truth = _poses(16)
    data = _data(*truth, scale=0.05, noise_seed=1)
    start = uniform_rotations(16, seed=11).float(), torch.zeros(16, 2)
    values = []
    for iterations in range(5):
        found = refine_poses(data, _half(), *start, iterations=iterations, shift_sd_px=5.0)
        values.append(found.log_likelihood)
    assert all(bool((b >= a).all()) for a, b in pairwise(values))
    identity = found.rotation @ found.rotation.transpose(1, 2)
    torch.testing.assert_close(identity, torch.eye(3).expand(16, 3, 3), rtol=0, atol=1e-5)
    assert bool((torch.linalg.det(found.rotation) > 0).all())


def test_predicted_error_is_the_scatter_over_noise():
    """angle_sd_deg is the r.m.s. error per angle over 100 draws of the noise, within 30 %, pose by pose."""
    draws, ratios = 100, []
    for k in range(3):
        rotation, shift_px = (x[k : k + 1].expand(draws, *x.shape[1:]) for x in _poses(3))
        data = _data(rotation, shift_px, scale=0.7, noise_seed=k)
        found = refine_poses(data, _half(), rotation, shift_px, iterations=4, shift_sd_px=SHIFT_SD_PX)
        error = geodesic_angle(found.rotation, rotation).square().mean().div(3).sqrt().rad2deg()
        ratios.append(float(found.angle_sd_deg.mean() / error))
    assert all(0.7 < r < 1.3 for r in ratios), ratios


def test_no_frame_is_special():
    """Map and poses turned together: the same misfit, to the accuracy of reading the lattice."""
    rotation, shift_px = _poses(12)
    data = _data(rotation, shift_px)
    start = _near(rotation, shift_px, angle_rad=0.1, shift=0.3)
    here = _misfit(data, *start)
    there = _misfit(data, start[0] @ _turn().float().T, start[1], half=_half(turned=True))
    torch.testing.assert_close(there, here, rtol=READS, atol=0)


def test_a_narrow_prior_holds_the_shift():
    """With a prior far narrower than the data the shift goes to 0."""
    rotation, shift_px = _poses(4)
    data = _data(rotation, shift_px, scale=1e-3)
    found = refine_poses(data, _half(), rotation, shift_px, iterations=6, shift_sd_px=1e-3)
    assert float(found.shift_px.abs().max()) < 1e-3
