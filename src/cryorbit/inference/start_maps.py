"""What the two halves of a refinement start from: a low-passed reference on the images' scale, or low-passed half maps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.fourier.filters import low_pass
from cryorbit.inference.half_maps import HalfMaps
from cryorbit.inference.lattice import Lattice
from cryorbit.inference.map_scale import fit_scale, map_for_images, slice_power
from cryorbit.inference.observations import Observations, RadiusFrom, support_mask
from cryorbit.inference.refine import half_disk

EDGE = 4
"""Shells beyond the radius that a start map has room for: its low-pass falls off within them."""

ROOM: dict[RadiusFrom, float] = {"variance": 1.25, "rim": 1.0, "user": 1.1}
"""Radius of the mask over the particle's. Neighbours and noise come in with more room; with less, the ends of a long
molecule go, coarse shells come out too weak, and poses make up for it by a turn of views that all share: 0.13 degrees on an
RNA polymerase with 1.15 times a measured radius, 0.03 with 1.22 or 1.4. Nothing is cut within a radius that was given."""


def start_maps(
    reference: Volume, observed: Observations, *, radius: int, snr: float | None = None
) -> HalfMaps:
    """The reference for both halves: low-passed at `radius` Fourier pixels, masked, on the images' scale.

    Parameters
    ----------
    snr
        Power of its projections over the noise, below `radius`; measured on the images unless given.

    Raises
    ------
    BadInput
        If the images hold no signal that goes with it.
    """
    field_A = observed.box * observed.pixel_size_A
    lattice = Lattice(min(2 * (radius + EDGE), observed.box + observed.box % 2))
    unit = map_for_images(reference, box_px=lattice.n, field_of_view_A=field_A)
    values = _smooth(unit.values, radius, field_A) * support(lattice, observed)
    half = lattice.to_half(values)
    scale = (
        fit_scale(observed, half, radius=radius).scale
        if snr is None
        else _scale_at(snr, half, observed, radius)
    )
    values = values * scale
    half = half * scale
    return HalfMaps(lattice, (half, half), (values, values), (values, values), torch.ones(radius + 1))


def below(maps: HalfMaps, radius: int, observed: Observations) -> HalfMaps:
    """Half maps low-passed at `radius` Fourier pixels."""
    field_A = observed.box * observed.pixel_size_A
    mask = support(maps.lattice, observed)
    first, second = (_smooth(m, radius, field_A) * mask for m in maps.filtered)
    halves = (maps.lattice.to_half(first), maps.lattice.to_half(second))
    return HalfMaps(maps.lattice, halves, maps.maps, (first, second), maps.correlation)


def support(lattice: Lattice, observed: Observations) -> Float[Tensor, "n n n"]:
    """A ball around the particle, with the room that its radius wants (see `observe`)."""
    scale = lattice.n / observed.box
    x, y, z = (c * scale for c in observed.centre_px)
    radius_px = ROOM[observed.radius_from] * observed.particle_radius_px * scale
    return support_mask(lattice.n, radius_px, centre_px=(x, y, z))


def _scale_at(snr: float, half: Tensor, observed: Observations, radius: int) -> float:
    """Scale at which the projections of a map have this power over the noise; the CTF counts as one half on average."""
    points = half_disk(radius)
    noise = observed.noise_at(points.norm(dim=1), floor=0.0).double().mean()
    signal = slice_power(half, points).mean() * (1.0 if observed.stack.ctf is None else 0.5)
    return float((snr * noise / signal).sqrt())


def _smooth(values: Tensor, radius: int, field_A: float) -> Tensor:
    pixel = field_A / values.shape[0]
    return low_pass(values, resolution_A=field_A / radius, pixel_size_A=pixel, ndim=3)
