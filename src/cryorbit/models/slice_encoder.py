"""The slice encoder: images to log-probabilities of all rotations, exactly equivariant under turns of the image.

A rotation is R = in_plane_rotation(psi) frame_v. Everything is read out as f(v, psi) = sum over m of exp(i m psi) G_m(v),
where G_m is linear in the angular harmonics of order m of something that lives on circles: SO(2) induced to SO(3). Two
branches add up. The *map* branch takes the circles of the image itself, and the map's slices as filters: f is then the
exact log-likelihood |X - C T_v(psi)|^2, averaged over finer cells and over trial shifts. The *learned* branch has free
filters, on the image's circles and on features of a polar network. Both obey the mirror: an image with y -> -y predicts
Rx(pi) R where the image predicted R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryorbit.data import Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.harmonics import view_harmonics
from cryorbit.geometry.so3_grid import direction_frame, n_in_plane, n_pixels, so3_grid
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction
from cryorbit.models.so3_losses import n_cells, parents
from cryorbit.nn.polar import (
    MirrorPairs,
    OrderwiseLinear,
    PolarRings,
    PolarSettings,
    PolarTrunk,
    angular_harmonics,
    in_plane_matrix,
    mirror_circle,
    orderwise,
    read_out,
    shift_circle,
)
from cryorbit.physics.project import prepare, project_prepared


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
    frames
        One rotation per view.
    rings, m_max
        Of the circles that come in.
    """

    series: Tensor

    def __init__(
        self, settings: SliceSettings, frames: Float[Tensor, "v 3 3"], *, rings: int, m_max: int
    ) -> None:
        super().__init__()
        self.settings, self.m_max = settings, m_max
        self.pairs = MirrorPairs.of_frames(frames)
        by_views = settings.readout == "views"
        self.orders = m_max + 1 if by_views else min(m_max, settings.l_max) + 1
        if not by_views:
            for m, basis in enumerate(view_harmonics(settings.l_max, frames.double(), m_max=m_max)):
                self.register_buffer(
                    f"basis_{m}",
                    torch.view_as_real((basis.mT / (settings.l_max + 1)).to(torch.complex64)),
                    persistent=False,
                )
        outputs = n_pixels(settings.order) if by_views else (settings.l_max + 1) ** 2
        self.linear = OrderwiseLinear(self.orders, rings, outputs, scale=0.0)  # starts uniform
        self.bias = nn.Parameter(torch.zeros(n_pixels(settings.order)))
        self.shift = nn.Parameter(torch.zeros(rings))
        channels = round(32 * settings.width) if settings.depth else 0
        if channels:
            self.trunk = PolarTrunk(rings, channels, depth=settings.depth)
            self.features = OrderwiseLinear(self.orders, channels, outputs, scale=0.0)
        self.register_buffer("series", series_of(settings.order, self.orders), persistent=False)

    def forward(self, circle: Float[Tensor, "b r t"]) -> Float[Tensor, "b cells"]:
        """Logits of all cells."""
        features, weight = self.parts(circle)
        level = 0.5 * (self.bias + self.bias[self.pairs.partner])
        return (read_out(features, weight, self.series) + level[:, None]).flatten(1)

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
        out = []
        for m, w in enumerate(weight):
            basis = self.get_buffer(f"basis_{m}")
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


def series_of(order: int, orders: int) -> Float[Tensor, "p m2"]:
    """The in-plane series at the angles of `so3_grid(order)`."""
    n = n_in_plane(order)
    return in_plane_matrix(orders, n, start_rad=math.pi / n).float()


def trial_shifts(radius_px: float, step_px: float) -> Float[Tensor, "s 2"]:
    """Points of a square lattice within a radius, the origin among them."""
    reach = math.floor(radius_px / step_px + 1e-9)
    axis = torch.arange(-reach, reach + 1) * step_px
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1).reshape(-1, 2).float()
    return points[points.norm(dim=1) <= radius_px + 1e-6]


class SliceEncoder(PoseEncoder):
    """Map branch plus learned branch; see the module. Without `set_map` only the learned branch speaks."""

    grid: Tensor
    templates: Tensor | None
    power: Tensor | None
    noise: Tensor
    shifts: Tensor

    def __init__(self, settings: SliceSettings) -> None:
        super().__init__()
        self.settings, self.how, self.box = settings, settings, settings.box
        radius = (self.box - 1) // 2 if settings.max_radius is None else settings.max_radius
        m_max = math.ceil(2 * math.pi * radius / 3) if settings.m_max is None else settings.m_max
        # Twice the highest order, so that no order of the image folds onto one that is used.
        self.polar = PolarSettings(
            box=self.box, n_angles=24 * math.ceil(2 * m_max / 24 + 0.5), max_radius=radius
        )
        self.m_max = m_max
        self.rings = PolarRings(self.polar)
        self.register_buffer("grid", so3_grid(settings.order).reshape(-1, 3, 3), persistent=False)
        self.register_buffer("noise", torch.ones(len(self.polar.radii())))
        self.register_buffer("templates", None)
        self.register_buffer("power", None)
        self.register_buffer(
            "shifts", trial_shifts(settings.shift_px, settings.shift_step_px), persistent=False
        )
        self.log_temperature = nn.Parameter(torch.zeros(()))
        n_rings = len(self.polar.radii())
        frames = self.frames(settings.order)
        self.learned = (
            LearnedBranch(settings, frames, rings=n_rings, m_max=m_max) if settings.learned else None
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        for name in ("templates", "power"):  # there only once a map was set
            value = state_dict.get(prefix + name)
            setattr(self, name, None if value is None else torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    @staticmethod
    def frames(order: int) -> Float[Tensor, "v 3 3"]:
        """One rotation per view of the grid of `order`."""
        return direction_frame(torch.arange(n_pixels(order)), order=order).float()

    def set_noise(self, power: Float[Tensor, "r"] | float) -> None:
        """Noise power of the transform's coefficients on each ring (box^2 sigma^2 for white noise of sigma)."""
        self.noise = torch.as_tensor(power, dtype=torch.float32).expand(len(self.polar.radii())).clone()

    def set_map(self, volume: Volume) -> None:
        """Take the slices of this map, of the images' box and on their scale, as filters of the map branch."""
        if volume.box != self.box:
            raise BadInput(
                f"SliceEncoder: the map has {volume.box} pixels, the images {self.box}. Resample the map first."
            )
        prepared, circles = prepare(volume), []
        for part in self.template_frames().split(1024):
            pose = Pose(part.to(volume.values), volume.values.new_zeros(len(part), 2))
            circles.append(self.rings(project_prepared(prepared, pose)))
        self._keep(torch.cat(circles))

    def template_frames(self) -> Float[Tensor, "v 3 3"]:
        """The rotations that the map branch wants projections at."""
        return self.frames(self.how.order + self.how.fine)

    def set_projections(self, images: Float[Tensor, "v h h"]) -> None:
        """Take these projections at `template_frames()` as filters of the map branch."""
        self.check_box(images)
        if len(images) != len(self.template_frames()):
            raise BadInput(
                f"SliceEncoder: {len(images)} projections for {len(self.template_frames())} frames."
            )
        self._keep(torch.cat([self.rings(part) for part in images.split(1024)]))

    def _keep(self, circle: Float[Tensor, "v r t"]) -> None:
        harmonics = angular_harmonics(circle, self.m_max).conj() * self.polar.n_angles
        self.templates = torch.view_as_real(harmonics).permute(2, 3, 1, 0).contiguous()  # m, 2, r, v
        self.power = circle.square().sum(-1).mT.contiguous()  # r, v

    def map_logits(
        self, circle: Float[Tensor, "b r t"], ctf: Float[Tensor, "b r"] | None
    ) -> tuple[Float[Tensor, "b cells"], Float[Tensor, "b cells 2"]]:
        """Log-likelihood of each cell, and the mean shift in it."""
        if self.templates is None or self.power is None:
            raise BadInput(
                "SliceEncoder: there is no map yet. Call set_map(volume), or use the learned branch."
            )
        fine, cool = self.how.order + self.how.fine, torch.exp(-self.log_temperature)
        weight = self.polar.weights().to(circle) / self.noise
        scale = weight if ctf is None else weight * ctf
        series = series_of(fine, self.m_max + 1).to(circle)
        norm = -0.5 * (scale if ctf is None else scale * ctf) @ self.power
        scores = []
        for shifted in shift_circle(circle * scale[..., None], self.shifts, self.polar).unbind(1):
            values = read_out(angular_harmonics(shifted, self.m_max), self.templates, series)
            values = (values + norm[..., None]).flatten(1) * cool
            scores.append(parents(values, order=fine, levels=self.how.fine))
        if len(scores) == 1:
            return scores[0], scores[0].new_zeros(()).expand(*scores[0].shape, 2)
        each = torch.stack(scores, -1)
        return torch.logsumexp(each, -1), each.softmax(-1) @ self.shifts

    def whitened(
        self, circle: Float[Tensor, "b r t"], ctf: Float[Tensor, "b r"] | None = None
    ) -> Float[Tensor, "b r t"]:
        """What the learned branch sees: CTF-filtered circles whose noise has one spread on all rings."""
        scale = (self.polar.weights().to(circle) * self.polar.n_angles / self.noise).sqrt()
        return circle * (scale if ctf is None else scale * ctf)[..., None]

    def forward(
        self, images: Float[Tensor, "b h h"], *, ctf: Float[Tensor, "b r"] | None = None
    ) -> PosePrediction:
        """Logits on the grid of rotations.

        Parameters
        ----------
        ctf
            Values of each image's transfer function on the rings (`polar.radii()` Fourier pixels); 1 unless given.
        """
        self.check_box(images)
        circle = self.rings(images)
        cells = n_cells(self.how.order)
        logits = circle.new_zeros(len(images), cells)
        shift = circle.new_zeros(()).expand(len(images), cells, 2)
        if self.templates is not None:
            logits, shift = self.map_logits(circle, ctf)
        if self.learned is not None:
            white = self.whitened(circle, ctf)
            logits = logits + self.learned(white)
            if self.templates is None:
                shift = self.learned.shift_px(white)[:, None].expand(-1, cells, 2)
        grid = self.grid.to(logits).expand(len(images), -1, 3, 3)
        return PosePrediction(grid, logits, shift, 1 / cells)
