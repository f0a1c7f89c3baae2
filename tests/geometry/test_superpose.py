"""Laws of superposition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.geometry.superpose import kabsch
from laws import ROUND_OFF, rotations

F64 = torch.float64


def _points(n=7, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


@given(rotations(), st.tuples(*[st.floats(-100, 100)] * 3))
def test_a_rigid_motion_is_found(rotation, shift):
    """Points moved by R and t are superposed by R and t, with nothing left."""
    points, translation = _points(), torch.tensor(shift, dtype=F64)
    fixed = points @ rotation.mT + translation
    found = kabsch(points, fixed)
    torch.testing.assert_close(found.rotation, rotation, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.translation, translation, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.apply(points), fixed, rtol=0, atol=1e-10)
    assert found.rmsd < 1e-10


def test_mirror_images_are_not_superposed():
    """The answer is a rotation even where a reflection would fit better."""
    points = _points()
    found = kabsch(points, points * torch.tensor([1.0, 1.0, -1.0], dtype=F64))
    assert abs(torch.linalg.det(found.rotation) - 1) < ROUND_OFF[F64]
    assert found.rmsd > 0.1


def test_no_other_motion_is_nearer():
    """Noise added, the found motion has the least squared distance among many near it."""
    points = _points(20)
    fixed = points.roll(1, dims=-1) + 0.1 * _points(20, seed=1)
    found = kabsch(points, fixed)
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        turn = rotvec_to_matrix(0.05 * torch.randn(3, generator=generator, dtype=F64))
        jump = 0.05 * torch.randn(3, generator=generator, dtype=F64)
        other = points @ (turn @ found.rotation).mT + found.translation + jump
        assert ((other - fixed) ** 2).sum(-1).mean().sqrt() >= found.rmsd


def test_weights_and_batches():
    """A point of weight 0 does not count, and each member of a batch is superposed by itself."""
    points = torch.stack([_points(), _points(seed=1)])
    fixed = points.clone()
    fixed[:, 0] += 50
    weight = torch.ones(2, 7, dtype=F64)
    weight[:, 0] = 0
    found = kabsch(points, fixed, weight=weight)
    assert found.rmsd.shape == (2,)
    assert found.rmsd.max() < 1e-10


def test_senseless_sets_are_refused():
    """No points, or no weight, is named."""
    with pytest.raises(BadInput, match="no points"):
        kabsch(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(BadInput, match="not all 0"):
        kabsch(_points(), _points(), weight=torch.zeros(7, dtype=F64))
