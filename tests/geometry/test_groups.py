"""C4 and D4: the action on images is the action on poses, through the law of image formation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryorbit.errors import BadInput
from cryorbit.geometry.groups import (
    act_on_images,
    act_on_rotation,
    act_on_shift,
    inverse_table,
    multiplication_table,
    orbit_of_images,
    plane_matrices,
    pose_matrices,
)
from laws import ROUND_OFF, rotations

F64 = torch.float64
EXACT = ROUND_OFF[F64]


def _picture(rotation, shift_px, box):
    """The exact image of four unequal Gaussian balls at a pose: x_lab = A x + shift, origin at box // 2."""
    centres = torch.tensor([[4.0, 1.0, -2.0], [-3.0, 2.0, 1.0], [0.5, -4.0, 3.0], [1.0, 2.5, 5.0]], dtype=F64)
    weights = torch.tensor([1.0, 0.7, 1.3, 0.4], dtype=F64)
    at = (centres @ rotation.mT)[:, :2] + shift_px
    axis = torch.arange(box, dtype=F64) - box // 2
    x = torch.exp(-0.5 * ((axis - at[:, :1]) / 1.5) ** 2)
    y = torch.exp(-0.5 * ((axis - at[:, 1:]) / 1.5) ** 2)
    return torch.einsum("i,iy,ix->yx", weights, y, x)


@pytest.mark.parametrize("box", [24, 25])
@given(rotations(), st.integers(0, 7), st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_image_action_is_pose_action(box, rotation, element, shift):
    """Moving the pixels gives the image at rho(g) A and the moved shift, even boxes included."""
    shift_px = torch.tensor(shift, dtype=F64)
    moved_image = act_on_images(_picture(rotation, shift_px, box), element)
    moved_shift = act_on_shift(shift_px, element, box=box)
    expected = _picture(act_on_rotation(rotation, element), moved_shift, box)
    torch.testing.assert_close(moved_image, expected, rtol=0, atol=EXACT)


def test_reflection_table():
    """Image y -> -y multiplies the pose by diag(1, -1, -1) on the left, x -> -x by diag(-1, 1, -1)."""
    y_flip, x_flip = 4, 6
    image = torch.arange(12.0).reshape(3, 4)[:, :3]
    assert torch.equal(act_on_images(image, y_flip), image.flip(0))
    assert torch.equal(act_on_images(image, x_flip), image.flip(1))
    assert pose_matrices()[y_flip].diagonal().tolist() == [1.0, -1.0, -1.0]
    assert pose_matrices()[x_flip].diagonal().tolist() == [-1.0, 1.0, -1.0]


def test_a_quarter_turn_carries_x_to_y():
    """Element 1 moves a pixel on the positive x axis to the positive y axis."""
    image = torch.zeros(5, 5)
    image[2, 4] = 1
    assert act_on_images(image, 1)[4, 2] == 1


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_tables_are_those_of_a_group(group):
    """Associative, with identity 0 and inverses; matrices, pose matrices and images all follow the table."""
    table, inverse = multiplication_table(group), inverse_table(group)
    n = len(table)
    everyone = torch.arange(n)
    assert torch.equal(table[0], everyone)
    assert torch.equal(table[:, 0], everyone)
    assert torch.equal(table[everyone, inverse], torch.zeros(n, dtype=torch.long))
    assert torch.equal(table[table], table[everyone[:, None, None], table])
    image = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    plane, pose = plane_matrices(group), pose_matrices(group)
    for a in range(n):
        for b in range(n):
            assert torch.equal(
                act_on_images(act_on_images(image, b), a), act_on_images(image, int(table[a, b]))
            )
            assert torch.equal(plane[a] @ plane[b], plane[table[a, b]])
            assert torch.equal(pose[a] @ pose[b], pose[table[a, b]])


def test_pose_matrices_are_proper():
    """Every rho(g) is a rotation: a mirrored image is the image at another pose, not of another map."""
    torch.testing.assert_close(torch.linalg.det(pose_matrices()), torch.ones(8, dtype=F64))


def test_orbit_lists_every_element():
    """The orbit of a batch holds every moved image, on a new axis."""
    images = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0))
    orbit = orbit_of_images(images)
    assert orbit.shape == (3, 8, 5, 5)
    assert torch.equal(orbit[:, 5], act_on_images(images, 5))
    assert orbit_of_images(images, group="C4").shape == (3, 4, 5, 5)


def test_unknown_elements_and_groups_are_refused():
    """What does not exist is named."""
    with pytest.raises(BadInput, match="got 8"):
        act_on_images(torch.zeros(2, 2), 8)
