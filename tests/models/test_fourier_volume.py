"""The lattice decoder against a plain twin, and against the projector of the same map."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from torch import Tensor

from cryorbit.data import Pose, Volume
from cryorbit.models.fourier_volume import LatticeVolume, LatticeVolumeSettings
from cryorbit.physics.lattice import half_plane
from cryorbit.physics.project import prepare, project, slices, transforms_of
from laws import ROUND_OFF
from physics_models import GaussianBlobs, uniform_rotations

TRILINEAR = {1: 0.1, 2: 0.02}
"""Relative error of slices of blobs within 0.25 of the box, by padding; measured 0.075 and 0.012."""


def random_volume(box: int) -> Volume:
    g = torch.Generator().manual_seed(0)
    return Volume(torch.randn(box, box, box, generator=g, dtype=torch.float64), 1.5)


def plain_slices(pairs: Tensor, rotation: Tensor, points: Tensor, padding: Literal[1, 2]) -> Tensor:
    """The specification: eight corners of the whole lattice one after the other, gradients by autograd."""
    half, edge = torch.view_as_complex(pairs), pairs.shape[0]
    at = padding * (points @ rotation[:, :2])
    floor, total = at.detach().floor(), 0
    for corner in torch.tensor(list(itertools.product((0, 1), repeat=3))):
        cell = floor + corner
        weight = (1 - (at - cell).abs()).prod(-1)
        # A point with x < 0 is read at its mate, whose cell has x from 0 on.
        mate = (floor[..., 0] + 1 <= 0) & (at.detach()[..., 0] < 0)
        x, y, z = torch.where(mate[..., None], -cell, cell).long().unbind(-1)
        value = half[z + edge // 2, y + edge // 2, x]
        total = total + weight * torch.where(mate, value.conj(), value)
    return torch.as_tensor(total)


def hermitian_plane(gradient: Tensor) -> Tensor:
    """The part of a gradient along transforms of real maps."""
    half = torch.view_as_complex(gradient).clone()
    plane = half[:, :, 0]
    half[:, :, 0] = (plane + plane.flip(0, 1).roll((1, 1), (0, 1)).conj()) / 2
    return torch.view_as_real(half)


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("box", [9, 10])
def test_values_and_gradients_are_those_of_the_plain_twin(box: int, padding: Literal[1, 2]):
    """Slices, gradient to every lattice point and to the rotations, float64."""
    settings = LatticeVolumeSettings(box=box, padding=padding)
    decoder = LatticeVolume(settings, generator=torch.Generator().manual_seed(1)).double()
    rotation = uniform_rotations(4).requires_grad_()
    plane = half_plane(box, step=1, radius=box / 2 - 1.01, dtype=torch.float64)
    points = torch.stack((plane.kx, plane.ky), 1) + 0.003
    found = decoder.slices(rotation, points)
    expected = plain_slices(decoder.pairs, rotation, points, padding)
    g = torch.Generator().manual_seed(2)
    upstream = torch.randn(found.shape, dtype=torch.complex128, generator=g)
    to_pairs, to_rotation = torch.autograd.grad(found, (decoder.pairs, rotation), upstream)
    to_pairs_plain, to_rotation_plain = torch.autograd.grad(expected, (decoder.pairs, rotation), upstream)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(to_pairs, hermitian_plane(to_pairs_plain), rtol=0, atol=1e-11)
    torch.testing.assert_close(to_rotation, to_rotation_plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("box", [11, 12])
def test_the_map_of_the_decoder_of_a_map_is_the_map(box: int, padding: Literal[1, 2]):
    """`of` and `volume` are inverse: nothing of the map is lost on the lattice, Nyquist of an unpadded one apart."""
    volume = random_volume(box)
    decoder = LatticeVolume.of(volume, amplitude=7.0, padding=padding)
    torch.testing.assert_close(decoder.volume(1.5).values, volume.values, rtol=0, atol=1e-11)


@pytest.mark.parametrize("box", [11, 12])
def test_slices_are_those_of_the_projector(box: int):
    """Twice padded, the decoder of a map and the `fast` projector read the same lattice."""
    volume, rotation = random_volume(box), uniform_rotations(3)
    plane = half_plane(box, step=1, radius=box / 2 - 1.01, dtype=torch.float64)
    found = LatticeVolume.of(volume).slices(rotation, torch.stack((plane.kx, plane.ky), 1))
    expected = slices(prepare(volume), rotation).flatten(1)[:, plane.position]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("box", [23, 24])
def test_slices_are_transforms_of_projections(box: int, padding: Literal[1, 2]):
    """Fourier slice theorem for `volume()` in any view, within what trilinear reading leaves."""
    model = GaussianBlobs.random(20, radius_px=0.25 * box, sigma_px=1.0)
    decoder = LatticeVolume.of(Volume(model.values(box), 1.0), padding=padding)
    rotation = uniform_rotations(5)
    plane = half_plane(box, step=1, radius=box / 2 - 1.01, dtype=torch.float64)
    found = decoder.slices(rotation, torch.stack((plane.kx, plane.ky), 1)).detach()
    images = project(decoder.volume(1.0), Pose(rotation, rotation.new_zeros(5, 2)))
    expected = transforms_of(images).flatten(1)[:, plane.position]
    assert float((found - expected).norm() / expected.norm()) < TRILINEAR[padding]


def test_optimisers_keep_the_map_real_to_the_last_bit():
    """After steps of Adam the plane x = 0 still is its own conjugate mirror image."""
    decoder = LatticeVolume(LatticeVolumeSettings(box=8), generator=torch.Generator().manual_seed(3))
    before, optimiser = decoder.pairs.detach().clone(), torch.optim.Adam(decoder.parameters(), lr=0.1)
    plane = half_plane(8, step=1, radius=2.9)
    points = torch.stack((plane.kx, plane.ky), 1)
    for seed in range(5):
        optimiser.zero_grad()
        decoder.slices(uniform_rotations(4, seed=seed).float(), points).abs().square().sum().backward()
        optimiser.step()
    assert not torch.equal(before, decoder.pairs)
    assert torch.equal(hermitian_plane(decoder.pairs.detach()), decoder.pairs)


def test_a_fresh_map_is_a_ball_without_symmetry():
    """Unit size below half of Nyquist, most of the mass in a quarter of the box, unlike its mirror image."""
    decoder = LatticeVolume(
        LatticeVolumeSettings(box=24, amplitude=5.0), generator=torch.Generator().manual_seed(4)
    )
    values = decoder.volume(1.0).values
    axis = torch.arange(24.0) - 12
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    power = values.square()
    assert float(power[radius <= 9].sum() / power.sum()) > 0.99
    inner = values[1:, 1:, 1:]
    assert float(((inner - inner.flip(0)).norm() / inner.norm()).detach()) > 0.5
    half = torch.view_as_complex(decoder.pairs.detach())
    assert float(half.abs().square()[18:30, 18:30, :6].mean().sqrt()) > 0.5


def test_a_confined_map_is_zero_outside():
    """Outside the soft sphere nothing is left, inside nothing changes."""
    decoder = LatticeVolume.of(random_volume(16), amplitude=2.0)
    before = decoder.volume(1.0).values
    decoder.confine(radius_px=4.0, edge_px=2.0)
    after = decoder.volume(1.0).values
    axis = torch.arange(16.0) - 8
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    tolerance = 100 * ROUND_OFF[torch.float64]
    assert float(after[radius > 6.01].abs().max()) < tolerance
    torch.testing.assert_close(after[radius < 2.99], before[radius < 2.99], rtol=0, atol=tolerance)
