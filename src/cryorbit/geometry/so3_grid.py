"""Nested uniform grids: HEALPix on the sphere, HEALPix x in-plane angle on the rotations.

Order o has 12 * 4^o pixels of equal area, numbered so that the children of pixel p at order o + 1 are 4p ...
4p + 3 ("nested"). Gorski et al. 2005, ApJ 622, 759; the map between the sphere and the plane in which all
pixels are squares is that of Calabretta & Roukema 2007, MNRAS 381, 865. Everything is computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.geometry.conventions import in_plane_rotation, view_rotation

MAX_ORDER = 13
"""Finer pixels than 0.4 arc minutes are of no use here."""


def n_pixels(order: int) -> int:
    """Pixels on the sphere at `order`: 12 * 4^order.

    >>> n_pixels(2)
    192
    """
    if not 0 <= order <= MAX_ORDER:
        raise BadInput(f"HEALPix order {order} is not in 0 ... {MAX_ORDER}.")
    return 12 * 4**order


def n_in_plane(order: int) -> int:
    """In-plane angles at `order`: 6 * 2^order, whose step nearly equals the width of a pixel."""
    n_pixels(order)
    return 6 * 2**order


def spacing_deg(order: int) -> float:
    """Step of the in-plane angle, 60 / 2^order degrees; a HEALPix pixel is 58.6 / 2^order degrees wide."""
    return 360.0 / n_in_plane(order)


def healpix_directions(order: int, *, scheme: str = "nested") -> Float[Tensor, "pixels 3"]:
    """Unit vectors of all pixel centres, float64; `scheme` is "nested" or "ring" (north to south)."""
    index = torch.arange(n_pixels(order))
    if scheme == "ring":
        index = ring_to_nested(index, order=order)
    elif scheme != "nested":
        raise BadInput(f"HEALPix scheme {scheme!r} is not one of 'nested', 'ring'.")
    return pixel_to_direction(index, order=order)


def pixel_to_direction(
    index: Int[Tensor, "*batch"], *, order: int, u: float = 0.5, v: float = 0.5
) -> Float[Tensor, "*batch 3"]:
    """Unit vector of nested pixel `index`; `u`, `v` in [0, 1] choose the point in it (0.5: the centre)."""
    face, column, row = _split(index, order)
    side = 2.0**order
    return _face_to_sphere(face, (column.double() + u) / side, (row.double() + v) / side)


def direction_to_pixel(direction: Float[Tensor, "*batch 3"], *, order: int) -> Int[Tensor, "*batch"]:
    """Nested pixel that holds each direction (of any length but 0)."""
    n_pixels(order)
    face, x, y = _sphere_to_face(direction.double())
    side = 2**order
    column = (x * side).long().clamp(0, side - 1)
    row = (y * side).long().clamp(0, side - 1)
    return face * side * side + _interleave(column) + 2 * _interleave(row)


def children(index: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch 4"]:
    """The four pixels of the next order inside each nested pixel.

    >>> children(torch.tensor([5])).tolist()
    [[20, 21, 22, 23]]
    """
    return 4 * index[..., None] + torch.arange(4, device=index.device)


def ring_to_nested(index: Int[Tensor, "*batch"], *, order: int) -> Int[Tensor, "*batch"]:
    """Nested number of ring-ordered pixels."""
    lookup = torch.argsort(nested_to_ring(torch.arange(n_pixels(order)), order=order))
    return lookup.to(index.device)[index]


def nested_to_ring(index: Int[Tensor, "*batch"], *, order: int) -> Int[Tensor, "*batch"]:
    """Ring-ordered number of nested pixels: rings from north to south, longitude growing from 0 in each."""
    face, column, row = _split(index, order)
    side = 2**order
    # Ring 1 ... 4 side - 1 from the height in the plane; place in the ring from the longitude of the centre.
    ring = (2 + face // 4) * side - column - row - 1
    centre = 2 * (face % 4) + (face // 4 != 1).long()  # of the face, in units of 45 degrees
    across = centre * side + column - row  # longitude in the plane, in units of 45 degrees / side
    from_pole = torch.minimum(ring, 4 * side - ring)
    polar = from_pole < side
    length = 4 * torch.where(polar, from_pole, torch.full_like(ring, side))
    facet = centre // 2
    in_facet = (across - (2 * facet + 1) * side + from_pole - 1) // 2
    place = torch.where(polar, facet * from_pole + in_facet, torch.remainder(across, 8 * side) // 2)
    north = 2 * from_pole * (from_pole - 1)
    total = 12 * side * side
    start = torch.where(
        ring <= side,
        north,
        torch.where(polar, total - north - length, 2 * side * (side - 1) + (ring - side) * 4 * side),
    )
    return start + torch.remainder(place, length)


def _split(index: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Face, column (towards north-east) and row (towards north-west) of nested pixels."""
    count = n_pixels(order)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < count:
        given = f"{int(index.min())} ... {int(index.max())}"
        raise BadInput(f"HEALPix order {order} has pixels 0 ... {count - 1}; got {given}.")
    face, inside = index // 4**order, index % 4**order
    return face, _pick_even_bits(inside), _pick_even_bits(inside >> 1)


def _pick_even_bits(value: Tensor) -> Tensor:
    out = torch.zeros_like(value)
    for bit in range(MAX_ORDER):
        out |= ((value >> (2 * bit)) & 1) << bit
    return out


def _interleave(value: Tensor) -> Tensor:
    out = torch.zeros_like(value)
    for bit in range(MAX_ORDER):
        out |= ((value >> bit) & 1) << (2 * bit)
    return out


def _face_to_sphere(face: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Point (x, y) in [0, 1]^2 of a base face to the sphere, by way of the plane of squares."""
    quarter = math.pi / 4
    centre = quarter * (2 * (face % 4) + (face // 4 != 1).long()).double()
    height = (1 - face // 4).double() + x + y - 1  # -2 ... 2; the equatorial belt is -1 ... 1
    across = quarter * (x - y)
    polar = height.abs() > 1
    sigma = torch.where(polar, 2 - height.abs(), torch.ones_like(height))
    longitude = centre + torch.where(polar, across / sigma.clamp_min(1e-300), across)
    z = torch.where(polar, torch.sign(height) * (1 - sigma**2 / 3), height * 2 / 3)
    polar_sine = sigma * torch.sqrt((2 - sigma**2 / 3) / 3)
    sine = torch.where(polar, polar_sine, torch.sqrt((1 - z * z).clamp_min(0)))
    return torch.stack([sine * torch.cos(longitude), sine * torch.sin(longitude), z], -1)


def _sphere_to_face(direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `_face_to_sphere`."""
    length = direction.norm(dim=-1)
    z = direction[..., 2] / length
    sine = torch.hypot(direction[..., 0], direction[..., 1]) / length
    turns = torch.remainder(torch.atan2(direction[..., 1], direction[..., 0]) / (math.pi / 2), 4.0)
    # Polar caps: the face is the quadrant, sigma^2 = 3 (1 - |z|), written so that nothing cancels.
    facet = turns.long().clamp(0, 3)
    sigma = sine * torch.sqrt(3 / (1 + z.abs()))
    from_centre = (2 * (turns - facet) - 1) * sigma  # x - y
    north = z > 0
    sum_xy = torch.where(north, 2 - sigma, sigma)
    cap_face = facet + torch.where(north, 0, 8)
    # Belt: two families of diagonal lines cut it into squares.
    height = 1.5 * z
    along, against = turns + 0.5 * height, 0.5 * height - turns
    i, j = torch.floor(along + 0.5), torch.floor(against + 0.5)
    corner = (i + j == 2).double()  # the northern corner of an equatorial face
    i, j = i - corner, j - corner
    level = (i + j).long()
    belt_face = (i.long() - (level == 1).long()) % 4 + 4 - 4 * level
    cap = z.abs() > 2 / 3
    face = torch.where(cap, cap_face, belt_face)
    x = torch.where(cap, 0.5 * (sum_xy + from_centre), along + 0.5 - i)
    y = torch.where(cap, 0.5 * (sum_xy - from_centre), against + 0.5 - j)
    return face, x, y


def direction_frame(index: Int[Tensor, "*batch"], *, order: int) -> Float[Tensor, "*batch 3 3"]:
    """A rotation whose third row is the pixel's direction, and which turns smoothly over each base face.

    It is the frame at the centre of the base face carried along the great circle to the pixel.
    `view_rotation` would not do for nested cells: its frame turns by up to 90 degrees within a pixel at a
    pole.
    """
    direction = pixel_to_direction(index, order=order)
    start = pixel_to_direction(index // 4**order, order=0)
    # The shortest rotation that carries start to direction, M = I + [w] + [w]^2 / (1 + cos); A = V(start)
    # M^T.
    cosine = (start * direction).sum(-1)[..., None, None]
    w = torch.linalg.cross(start, direction)
    first = view_rotation(start)
    turned = torch.linalg.cross(w[..., None, :].expand_as(first), first, dim=-1)
    twice = torch.linalg.cross(w[..., None, :].expand_as(first), turned, dim=-1)
    return first + turned + twice / (1 + cosine)


@dataclass(frozen=True, eq=False)
class SO3Cells:
    """Cells of the nested grid on the rotations: a HEALPix pixel x an interval of the in-plane angle.

    Parameters
    ----------
    pixel
        Nested pixel at `order`, shape (...).
    in_plane
        Interval 0 ... 6 * 2^order - 1, shape (...).
    order
        Of both.
    """

    pixel: Int[Tensor, "..."]
    in_plane: Int[Tensor, "..."]
    order: int

    def __post_init__(self) -> None:
        if self.pixel.shape != self.in_plane.shape:
            shapes = f"{tuple(self.pixel.shape)} pixels but {tuple(self.in_plane.shape)} intervals"
            raise BadInput(f"SO3Cells: {shapes}. Give one interval per pixel.")

    def psi_rad(self) -> Float[Tensor, "..."]:
        """Centre of the in-plane interval, relative to `direction_frame`."""
        return (self.in_plane.double() + 0.5) * (2 * math.pi / n_in_plane(self.order))

    def rotation(self, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
        """House rotations A of the centres, shape (..., 3, 3): in-plane rotation times `direction_frame`."""
        frame = direction_frame(self.pixel, order=self.order)
        return (in_plane_rotation(self.psi_rad()) @ frame).to(dtype)

    def subdivide(self) -> SO3Cells:
        """The 8 cells of the next order inside each, shape (..., 8): equal volumes, nothing lost."""
        pixel = children(self.pixel)[..., :, None].expand(*self.pixel.shape, 4, 2)
        half = torch.arange(2, device=self.in_plane.device)
        in_plane = (2 * self.in_plane[..., None] + half)[..., None, :].expand(*self.pixel.shape, 4, 2)
        return SO3Cells(pixel.flatten(-2), in_plane.flatten(-2), self.order + 1)


def so3_cells(order: int) -> SO3Cells:
    """All 72 * 8^order cells, shape (pixels, in-plane intervals)."""
    pixel = torch.arange(n_pixels(order))[:, None].expand(-1, n_in_plane(order))
    return SO3Cells(pixel, torch.arange(n_in_plane(order)).expand_as(pixel), order)


def so3_grid(order: int, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "pixels angles 3 3"]:
    """All rotations of the grid, shape (12 * 4^order, 6 * 2^order, 3, 3): 60 / 2^order degrees apart.

    >>> so3_grid(0).shape
    torch.Size([12, 6, 3, 3])
    """
    frame = direction_frame(torch.arange(n_pixels(order)), order=order)
    step = 2 * math.pi / n_in_plane(order)
    psi = (torch.arange(n_in_plane(order), dtype=torch.float64) + 0.5) * step
    return (in_plane_rotation(psi) @ frame[:, None]).to(dtype)
