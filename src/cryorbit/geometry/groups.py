"""C4 and D4: turns and reflections of the pixel grid, and what they do to images, shifts and poses.

An element acts on positions by its 2 x 2 matrix g and on images by (g I)(x) = I(g^-1 x). From the
image-formation law I(x) = sum over z of V(A^T (x, z)) follows that g I is the image of the same map at the
pose rho(g) A with rho(g) = [[g, 0], [0, det g]]: a factor on the **left**, diag(1, -1, -1) where the image
goes from y to -y and diag(-1, 1, -1) where it goes from x to -x.

Elements 0-3 are turns by 0, 90, 180, 270 degrees from x towards y; 4-7 the reflection y -> -y followed by
those turns. C4 is the first four.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from cryorbit.errors import BadInput

PlaneGroup = Literal["C4", "D4"]


def _order(group: PlaneGroup) -> int:
    if group not in ("C4", "D4"):
        raise BadInput(f"Group {group!r} is not one of 'C4', 'D4'.")
    return 4 if group == "C4" else 8


def plane_matrices(group: PlaneGroup = "D4", *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "g 2 2"]:
    """The matrix of each element on (x, y).

    >>> (plane_matrices("D4")[1] @ torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    [0.0, 1.0]
    """
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=dtype)
    turns = [torch.eye(2, dtype=dtype)]
    for _ in range(3):
        turns.append(quarter @ turns[-1])
    rotations = torch.stack(turns)
    if _order(group) == 4:
        return rotations
    return torch.cat([rotations, rotations @ torch.diag(torch.tensor([1.0, -1.0], dtype=dtype))])


def pose_matrices(group: PlaneGroup = "D4", *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "g 3 3"]:
    """rho(g) of each element: the rotation that multiplies a pose on the left when g acts on the image."""
    plane = plane_matrices(group, dtype=dtype)
    out = plane.new_zeros(len(plane), 3, 3)
    out[:, :2, :2] = plane
    out[:, 2, 2] = torch.linalg.det(plane).round()
    return out


def multiplication_table(group: PlaneGroup = "D4") -> Int[Tensor, "g g"]:
    """table[a, b] is the element a b: first b acts, then a."""
    plane = plane_matrices(group)
    products = plane[:, None] @ plane[None]
    return ((products[:, :, None] - plane) ** 2).sum((-2, -1)).argmin(-1)


def inverse_table(group: PlaneGroup = "D4") -> Int[Tensor, "g"]:
    """The inverse of each element."""
    return (multiplication_table(group) == 0).int().argmax(1)


def act_on_images(images: Shaped[Tensor, "*batch h h"], element: int) -> Shaped[Tensor, "*batch h h"]:
    """The images moved by a D4 element about the centre of the pixel array: an exact permutation of pixels.

    For an even box that centre is (box - 1) / 2, half a pixel off the origin box // 2; `act_on_shift`
    accounts for it.
    """
    if not 0 <= element < 8:
        raise BadInput(f"D4 has elements 0 ... 7, got {element}.")
    if element >= 4:
        images = images.flip(-2)
    return torch.rot90(images, element % 4, dims=(-1, -2))


def act_on_rotation(rotation: Float[Tensor, "*batch 3 3"], element: int) -> Float[Tensor, "*batch 3 3"]:
    """rho(g) A: the rotation of the pose of the moved image."""
    return pose_matrices(dtype=rotation.dtype)[element].to(rotation.device) @ rotation


def act_on_shift(shift_px: Float[Tensor, "*batch 2"], element: int, *, box: int) -> Float[Tensor, "*batch 2"]:
    """Where the particle centre sits after `act_on_images`, in pixels from index box // 2, (x, y).

    g (s + h) - h with h = 1/2 pixel per axis for an even box and 0 for an odd one.
    """
    half = 0.5 if box % 2 == 0 else 0.0
    plane = plane_matrices(dtype=shift_px.dtype)[element].to(shift_px.device)
    return (shift_px + half) @ plane.mT - half


def orbit_of_images(
    images: Shaped[Tensor, "*batch h h"], *, group: PlaneGroup = "D4"
) -> Shaped[Tensor, "*batch g h h"]:
    """Every element's action side by side, on a new axis before the pixels."""
    return torch.stack([act_on_images(images, g) for g in range(_order(group))], -3)
