"""Tri-planes: a density in space from three planes of features, one for each pair of axes, and a small network.

    density(x, y, z) = MLP(f_xy + f_yz + f_zx, f_xy f_yz f_zx),    f_xy = plane 0 at (x, y), and so on

A sum alone cannot tell a point off the axes from its mirror images; the product can. Planes are samples of periodic,
band-limited functions with the origin at index n // 2, for odd and even n: they are moved and resampled by their Fourier
transforms, and read at scattered points by a spline through them. The density itself is a network's, which is not
band-limited; it is held to band-limited maps between the voxels as well (`inference.triplane_fit`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.fourier.cubic_spline import spline_images
from cryorbit.fourier.grid import shift_phase
from cryorbit.fourier.resample import fourier_pad

AXES = ((0, 1), (1, 2), (2, 0))
"""(u, v) of each plane as numbers of (x, y, z); arrays are [v, u]. Turning x -> y -> z -> x turns plane 0 -> 1 -> 2 -> 0."""


def combine(
    xy: Float[Tensor, "*shape"], yz: Float[Tensor, "*shape"], zx: Float[Tensor, "*shape"], *, dim: int
) -> Float[Tensor, "*both"]:
    """Sum and product of what the planes say, one behind the other along `dim`."""
    return torch.cat((xy + yz + zx, xy * yz * zx), dim=dim)


def grid_features(planes: Float[Tensor, "b 3 c n n"]) -> Float[Tensor, "b c2 n n n"]:
    """Combined features of every voxel of the planes' own grid, axes z, y, x."""
    xy, yz, zx = planes.unbind(1)
    shape = (*xy.shape[:2], *xy.shape[-1:] * 3)
    return combine(
        xy[:, :, None].expand(shape),
        yz[..., None].expand(shape),
        zx.mT[:, :, :, None].expand(shape),
        dim=1,
    )


def point_features(
    planes: Float[Tensor, "3 c n n"], points_px: Float[Tensor, "m 3"]
) -> Float[Tensor, "m c2"]:
    """Combined features at points (x, y, z) in pixels of the planes from index n // 2.

    Off by the spline's error between the pixels (`fourier.cubic_spline`), exact at them.
    """
    parts = [
        spline_images(plane).read(points_px[:, list(uv)]) for plane, uv in zip(planes, AXES, strict=True)
    ]
    return combine(*parts, dim=1)


def resample_planes(planes: Float[Tensor, "*batch n n"], box: int) -> Float[Tensor, "*batch m m"]:
    """The same functions on more samples over the same field of view; nothing is lost.

    Raises
    ------
    BadInput
        If there were to be fewer: features are not what a smaller map would have. Crop the decoded map instead.
    """
    if box < planes.shape[-1]:
        raise BadInput(
            f"resample_planes: planes of {planes.shape[-1]} pixels do not become {box}. Decode them, and resample the map."
        )
    return fourier_pad(planes, box, ndim=2)


def moved_planes(
    planes: Float[Tensor, "b 3 c n n"], shift_px: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 3 c n n"]:
    """Planes of a density that is moved by +shift (x, y, z), circularly; exact below Nyquist."""
    uv = torch.stack([shift_px[:, list(axes)] for axes in AXES], dim=1)
    n = planes.shape[-1]
    phase = shift_phase(uv.flatten(0, 1), n=n).unflatten(0, (-1, 3))
    return torch.fft.irfft2(torch.fft.rfft2(planes) * phase[:, :, None], s=(n, n))


class TriplaneDecoder(nn.Module):
    """The network from combined features to a density, linear at its end: solvent may be negative.

    Parameters
    ----------
    channels
        Features per plane.
    hidden
        Width of its one hidden layer.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        if min(channels, hidden) < 1:
            raise BadInput(f"TriplaneDecoder: {channels} channels, {hidden} hidden. Give 1 or more of each.")
        self.channels = channels
        self.first = nn.Linear(2 * channels, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, features: Float[Tensor, "*batch c2"]) -> Float[Tensor, "*batch"]:
        """Density at each point, in the decoder's unit."""
        return self.last(nn.functional.silu(self.first(features)))[..., 0]

    def at_points(
        self, planes: Float[Tensor, "3 c n n"], points_px: Float[Tensor, "m 3"]
    ) -> Float[Tensor, "m"]:
        """Density at points (x, y, z) in pixels of the planes from index n // 2."""
        return self(point_features(planes, points_px))

    def at_voxels(
        self, planes: Float[Tensor, "b 3 c n n"], *, box: int | None = None
    ) -> Float[Tensor, "b m m m"]:
        """Maps over the planes' field of view, on their own grid or a finer one."""
        if box is not None:
            planes = resample_planes(planes, box)
        return self(grid_features(planes).movedim(1, -1))
