"""The learned branch of the slice encoder: free filters on circles and polar features, read out at all rotations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryorbit.geometry.harmonics import view_harmonics
from cryorbit.geometry.so3_grid import direction_frame, n_in_plane, n_pixels
from cryorbit.nn.polar import (
    MirrorPairs,
    OrderwiseLinear,
    PolarTrunk,
    angular_harmonics,
    in_plane_matrix,
    mirror_circle,
    orderwise,
    read_out,
)
from cryorbit.nn.table import Table


@dataclass(frozen=True, kw_only=True)
class SliceSettings:
    """How a slice encoder is built."""

    name: Literal["slice"] = "slice"
    box: int = 32
    """Side of the images, pixels."""
    width: float = 1.0
    """Channels of the polar network relative to 32."""
    order: int = 2
    """Of the grid of rotations: spacing 60 / 2^order degrees."""
    max_radius: float | None = None
    """Outermost ring in Fourier pixels: the resolution used; all rings of the box unless given."""
    m_max: int | None = None
    """Highest angular order; 2 pi r / 3, for a particle of 2/3 of the box, unless given."""
    learned: bool = True
    """Have the learned branch."""
    depth: int = 2
    """Blocks of the polar network; 0 leaves the branch linear in the image."""
    readout: Literal["views", "harmonics"] = "harmonics"
    """Harmonics of the rotations up to degree `l_max`, or free values per view, which take more data."""
    l_max: int = 10
    """Of the read-out by harmonics: 10 for cells of 15 degrees, 14 for 7.5."""
    fine: int = 1
    """Levels by which the map branch refines the grid before it adds up probabilities per cell."""
    shift_px: float = 0.0
    """Trial shifts of the map branch lie within this radius, pixels."""
    shift_step_px: float = 1.0
    """Their spacing, pixels."""


class LearnedBranch(nn.Module):
    """Free filters: circles and polar features to logits of all cells, tied by the mirror; and a shift.

    Parameters
    ----------
    settings
        Of the encoder.
    rings, m_max
        Of the circles that come in.
    """

    def __init__(self, settings: SliceSettings, *, rings: int, m_max: int) -> None:
        super().__init__()
        self.settings, self.m_max = settings, m_max
        self.pairs = MirrorPairs.of_frames(view_frames(settings.order))
        by_views = settings.readout == "views"
        self.orders = m_max + 1 if by_views else min(m_max, settings.l_max) + 1
        if not by_views:
            self.basis = Table(partial(harmonics_of_views, settings.order, settings.l_max, self.orders))
        outputs = n_pixels(settings.order) if by_views else (settings.l_max + 1) ** 2
        self.linear = OrderwiseLinear(self.orders, rings, outputs, scale=0.0)  # starts uniform
        self.bias = nn.Parameter(torch.zeros(n_pixels(settings.order)))
        self.shift = nn.Parameter(torch.zeros(rings))
        channels = round(32 * settings.width) if settings.depth else 0
        if channels:
            self.trunk = PolarTrunk(rings, channels, depth=settings.depth)
            self.features = OrderwiseLinear(self.orders, channels, outputs, scale=0.0)
        self.series = Table(partial(series_of, settings.order, self.orders))

    def forward(self, circle: Float[Tensor, "b r t"]) -> Float[Tensor, "b cells"]:
        """Logits of all cells."""
        features, weight = self.parts(circle)
        level = 0.5 * (self.bias + self.bias[self.pairs.partner])
        return (read_out(features, weight, self.series()) + level[:, None]).flatten(1)

    def harmonics(self, circle: Float[Tensor, "b r t"]) -> Complex[Tensor, "b v m"]:
        """G_m of every view, without the level: logits are their series over the in-plane angle."""
        return orderwise(*self.parts(circle))

    def parts(
        self, circle: Float[Tensor, "b r t"]
    ) -> tuple[Complex[Tensor, "b c m"], Float[Tensor, "m 2 c v"]]:
        """Harmonics of circles and features, and the weights that read them, tied by the mirror."""
        m = self.orders - 1
        scale = math.sqrt(circle.shape[-1])
        harmonics = angular_harmonics(circle, m) * scale
        weight = self.to_views(self.linear.weight)
        weight = weight + self.reflected(weight)  # the mirrored image has the conjugate harmonics
        if self.settings.depth:
            both = self.trunk(torch.cat((circle, mirror_circle(circle))))
            here, there = (angular_harmonics(both, m) * scale).chunk(2)
            extra = self.to_views(self.features.weight)
            harmonics = torch.cat((harmonics, here, there.conj()), 1)
            weight = torch.cat((weight, extra, self.reflected(extra)), 2)
        return harmonics, weight

    def reflected(self, weight: Float[Tensor, "m 2 c v"]) -> Float[Tensor, "m 2 c v"]:
        """The weights that read Rx(pi) R where these read R, from conjugate harmonics."""
        complexes = torch.complex(weight[:, 0], weight[:, 1]).permute(1, 2, 0)
        return torch.view_as_real(self.pairs.reflect(complexes)).permute(2, 3, 0, 1)

    def to_views(self, weight: Float[Tensor, "m 2 c o"]) -> Float[Tensor, "m 2 c v"]:
        """Per order, weights towards the views: as they are, or by way of harmonics (l, n), l >= m."""
        if self.settings.readout == "views":
            return weight
        l_max, out = self.settings.l_max, []
        sizes = [(l_max + 1) ** 2 - m * m for m in range(self.orders)]
        for m, (w, basis) in enumerate(zip(weight, self.basis().split(sizes), strict=True)):
            real, imag = w[..., m * m :]
            out.append(
                torch.stack(
                    (real @ basis[..., 0] - imag @ basis[..., 1], real @ basis[..., 1] + imag @ basis[..., 0])
                )
            )
        return torch.stack(out)

    def shift_px(self, circle: Float[Tensor, "b r t"]) -> Float[Tensor, "b 2"]:
        """Shift of the particle: order 1 of the circles, which turns and mirrors as a vector does."""
        order_1 = angular_harmonics(circle, 1)[..., 1]
        # Turned by a, order 1 gains exp(i a): its real and imaginary parts are x and y.
        return torch.stack((order_1.real, order_1.imag), -1).mT @ self.shift


def view_frames(order: int) -> Float[Tensor, "v 3 3"]:
    """One rotation per view of the grid of `order`, float64."""
    return direction_frame(torch.arange(n_pixels(order)), order=order)


def harmonics_of_views(order: int, l_max: int, orders: int) -> Float[Tensor, "c v 2"]:
    """`view_harmonics` of the grid's views over l_max + 1, order after order, float64 real and imaginary parts."""
    each = view_harmonics(l_max, view_frames(order), m_max=orders - 1)
    return torch.view_as_real(torch.cat([basis.mT for basis in each]) / (l_max + 1))


def series_of(order: int, orders: int) -> Float[Tensor, "p m2"]:
    """The in-plane series at the angles of `so3_grid(order)`, float64."""
    n = n_in_plane(order)
    return in_plane_matrix(orders, n, start_rad=math.pi / n)
