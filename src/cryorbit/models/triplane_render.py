"""Projections of tri-planes in two ways: integrals along rays, and a map that is sliced in Fourier space.

Images of electrons are sums along parallel, transparent rays: no sample hides another one. A map is made once and serves
any number of views, so `project_triplanes` is what to use; `line_integrals` knows nothing of voxels and is its judge.
Rays sample an image at its pixels and alias what is finer than they are; slices leave out what lies beyond the Nyquist
circle. For proteins at a resolution of three voxels the two agree to 2 %, at two voxels to 7 %; to 1 % at either where
both have pixels of half the size (`benchmarks.triplanes`).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data import Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.fourier.grid import pixel_grid
from cryorbit.models.triplane import TriplaneDecoder
from cryorbit.physics.project import Mode, project


def project_triplanes(
    decoder: TriplaneDecoder,
    planes: Float[Tensor, "3 c n n"],
    pose: Pose,
    *,
    pixel_size_A: float,
    mode: Mode = "exact",
) -> Float[Tensor, "v n n"]:
    """The density at n^3 voxels, once, and a central slice of its transform per view (`physics.project`).

    In the decoder's unit times pixels; differentiable in planes, decoder and pose.
    """
    return project(Volume(decoder.at_voxels(planes[None])[0], pixel_size_A), pose, mode=mode)


def line_integrals(
    decoder: TriplaneDecoder,
    planes: Float[Tensor, "3 c n n"],
    rotation: Float[Tensor, "v 3 3"],
    *,
    step_px: float = 0.5,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "v n n"]:
    """The density integrated along one ray per pixel, in the decoder's unit times pixels; nothing outside the planes' cube.

    Parameters
    ----------
    rotation
        x_lab = rotation @ x_particle; rays run along z of the lab.
    step_px
        Distance of the samples, at most half a voxel: a band-limited density has no finer detail.
    generator
        Given: each sample lies anywhere within its step (stratified, without bias at any step). None: in its middle.

    Raises
    ------
    BadInput
        If the step is not in 0 to 0.5.
    """
    if not 0 < step_px <= 0.5:
        raise BadInput(f"line_integrals: a step of {step_px} voxels. Give one above 0 and up to 0.5.")
    n = planes.shape[-1]
    count = math.ceil(math.sqrt(3) * n / step_px)
    edge = (torch.arange(count).to(planes) - count / 2) * step_px
    plane = pixel_grid(n, ndim=2, device=planes.device, dtype=planes.dtype).flatten(0, 1)
    views = []
    for turn in rotation.to(planes):
        within = planes.new_full((len(plane), count), 0.5)
        if generator is not None:
            within = torch.rand(within.shape, generator=generator).to(planes)
        depth = edge + within * step_px
        lab = torch.cat((plane[:, None].expand(-1, count, -1), depth[..., None]), dim=-1)
        points = (lab @ turn).flatten(0, 1)
        low, high = -(n // 2) - 0.5, n - n // 2 - 0.5
        inside = ((points >= low) & (points < high)).all(1).nonzero()[:, 0]
        density = planes.new_zeros(len(points)).index_copy(
            0, inside, decoder.at_points(planes, points[inside])
        )
        views.append(density.view(n, n, count).sum(2) * step_px)
    return torch.stack(views)
