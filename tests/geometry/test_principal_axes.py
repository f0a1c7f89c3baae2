"""The orientation that a cloud's own shape decides."""

import pytest
import torch
from hypothesis import given, settings

from cryorbit.errors import BadInput
from cryorbit.geometry.principal_axes import principal_rotation
from laws import rotations

AXES_FOUND = 1e-9
"""Float64; eigenvectors of variances that differ by a factor of two or more."""


def cloud() -> torch.Tensor:
    """Lopsided along every axis."""
    g = torch.Generator().manual_seed(0)
    return torch.rand(40, 3, generator=g, dtype=torch.float64) ** 3 * torch.tensor([9.0, 5.0, 2.0]).double()


@given(rotations())
@settings(max_examples=25, deadline=None)
def test_turning_beforehand_changes_nothing(turn):
    """Points after it are the same however they stood before, and it is a rotation, not a mirror."""
    points = cloud()
    r, after = principal_rotation(points), principal_rotation(points @ turn.mT)
    torch.testing.assert_close(points @ turn.mT @ after.mT, points @ r.mT, rtol=0, atol=1e2 * AXES_FOUND)
    torch.testing.assert_close(after @ after.mT, torch.eye(3).double(), rtol=0, atol=AXES_FOUND)
    assert float(torch.linalg.det(after)) > 0


def test_axes_fall_in_variance_and_points_lean_to_plus():
    """Second moments are diagonal and fall; at least two third moments are positive."""
    points = cloud()
    found = (points - points.mean(0)) @ principal_rotation(points).mT
    moments = found.mT @ found
    assert float((moments - moments.diag().diag()).abs().max()) < AXES_FOUND * float(moments.max())
    assert moments.diag().tolist() == sorted(moments.diag().tolist(), reverse=True)
    assert int(((found**3).sum(0) > 0).sum()) >= 2


def test_weights_are_points_that_stand_there_more_often():
    points = cloud()
    weight = torch.ones(40).double()
    weight[:7] = 2.0
    twice = principal_rotation(torch.cat((points, points[:7])))
    torch.testing.assert_close(principal_rotation(points, weight), twice, rtol=0, atol=AXES_FOUND)


def test_a_mirror_image_stands_otherwise():
    """Hands are kept: the mirrored cloud does not end where the cloud does."""
    points = cloud()
    mirrored = points * torch.tensor([-1.0, 1, 1]).double()
    a, b = (p @ principal_rotation(p).mT for p in (points, mirrored))
    assert float((a - a.mean(0) - b + b.mean(0)).abs().max()) > 0.1


def test_clouds_without_shape_are_refused():
    with pytest.raises(BadInput, match="three"):
        principal_rotation(torch.zeros(2, 3))
    with pytest.raises(BadInput, match="three"):
        principal_rotation(torch.ones(4, 3), torch.zeros(4))
