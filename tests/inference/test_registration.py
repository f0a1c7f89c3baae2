"""Laws of registration: the motion between two half maps is found, told as poses, kept to what a symmetry leaves free."""

from __future__ import annotations

import pytest
import torch

from cryorbit.geometry.rotations import matrix_to_rotvec, rotvec_to_matrix
from cryorbit.geometry.symmetry import point_group
from cryorbit.inference.half_maps import HalfMaps
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.registration import SmallMotion, motion_between
from physics_models import GaussianBlobs, uniform_rotations

N = 32
FIRST_ORDER = 0.05
"""Relative: a turn of 0.02 is fitted to first order, by slopes of the mean of the two maps."""


def blobs() -> GaussianBlobs:
    return GaussianBlobs.random(25, radius_px=8.0, sigma_px=1.5, seed=4)


def maps_of(first: GaussianBlobs, second: GaussianBlobs) -> HalfMaps:
    a, b = first.values(N).float(), second.values(N).float()
    lattice = Lattice(N)
    return HalfMaps(lattice, (lattice.to_half(a), lattice.to_half(b)), (a, b), (a, b), torch.ones(5))


def moved(b: GaussianBlobs, turn: torch.Tensor, step: torch.Tensor) -> GaussianBlobs:
    """The density seen from a second frame: x1 = Q x2 + u, so x2 = Q^T (x1 - u)."""
    return GaussianBlobs((b.centre_px - step) @ turn, b.weight, b.sigma_px)


TURN = torch.tensor([0.02, -0.01, 0.015], dtype=torch.float64)
STEP = torch.tensor([0.1, -0.2, 0.15], dtype=torch.float64)


@pytest.mark.parametrize("box", [32, 65])
def test_a_known_motion_is_found(box):
    second = moved(blobs(), rotvec_to_matrix(TURN), STEP)
    found = motion_between(maps_of(blobs(), second), torch.eye(3)[None], box=box)
    assert (matrix_to_rotvec(found.turn).double() - TURN).norm() < FIRST_ORDER * TURN.norm()
    assert (found.step_px.double() * N / box - STEP).norm() < FIRST_ORDER * STEP.norm()


def test_moved_poses_show_the_same_images():
    """Projecting the second frame's density at a pose, and the first's at the moved pose, puts every blob at one place."""
    turn = rotvec_to_matrix(TURN)
    second = moved(blobs(), turn, STEP)
    rotation = uniform_rotations(5, seed=1)
    shift = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other, other_shift = SmallMotion(turn, STEP).moved(rotation, shift)
    at_second = second.centre_px @ rotation.mT
    at_first = blobs().centre_px @ other.mT
    gap = (at_second[..., :2] + shift[:, None]) - (at_first[..., :2] + other_shift[:, None])
    assert gap.abs().max() < 1e-12


@pytest.mark.parametrize(("name", "free"), [("C4", 1), ("D2", 0), ("O", 0)])
def test_a_symmetry_keeps_its_axes(name, free):
    second = moved(blobs(), rotvec_to_matrix(TURN), STEP)
    found = motion_between(maps_of(blobs(), second), point_group(name).float(), box=N)
    turn = matrix_to_rotvec(found.turn)
    assert turn[:2].abs().max() < 1e-6
    assert found.step_px[:2].abs().max() < 1e-5
    assert (turn[2].abs() > 1e-3) == bool(free)
