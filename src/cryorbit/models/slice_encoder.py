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
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryorbit.data import Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.so3_grid import so3_grid
from cryorbit.models.pose_encoder import PoseEncoder, PosePrediction
from cryorbit.models.slice_learned import LearnedBranch, SliceSettings, series_of, view_frames
from cryorbit.models.so3_losses import n_cells, parents
from cryorbit.nn.polar import PolarRings, PolarSettings, angular_harmonics, read_out, shift_circle
from cryorbit.nn.table import Table
from cryorbit.physics.project import prepare, project_prepared


def trial_shifts(radius_px: float, step_px: float) -> Float[Tensor, "s 2"]:
    """Points of a square lattice within a radius, the origin among them, float64."""
    reach = math.floor(radius_px / step_px + 1e-9)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64) * step_px
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1).reshape(-1, 2)
    return points[points.norm(dim=1) <= radius_px + 1e-6]


class SliceEncoder(PoseEncoder):
    """Map branch plus learned branch; see the module. Without `set_map` only the learned branch speaks."""

    templates: Tensor | None
    power: Tensor | None
    noise: Tensor

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
        self.cells = Table(partial(so3_grid, settings.order, dtype=torch.float64))
        self.register_buffer("noise", torch.ones(len(self.polar.radii())))
        self.register_buffer("templates", None)
        self.register_buffer("power", None)
        self.shifts = Table(partial(trial_shifts, settings.shift_px, settings.shift_step_px))
        self.log_temperature = nn.Parameter(torch.zeros(()))
        n_rings = len(self.polar.radii())
        self.learned = LearnedBranch(settings, rings=n_rings, m_max=m_max) if settings.learned else None

    @property
    def grid(self) -> Float[Tensor, "cells 3 3"]:
        """The rotations that logits are given for."""
        return self.cells().reshape(-1, 3, 3)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        for name in ("templates", "power"):  # there only once a map was set
            value = state_dict.get(prefix + name)
            setattr(self, name, None if value is None else torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def set_noise(self, power: Float[Tensor, "r"] | float) -> None:
        """Noise power of the transform's coefficients on each ring (box^2 sigma^2 for white noise of sigma)."""
        self.noise = torch.as_tensor(power).to(self.noise).expand(len(self.polar.radii())).clone()

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
        return view_frames(self.how.order + self.how.fine).to(self.noise)

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
        series, shifts = series_of(fine, self.m_max + 1).to(circle), self.shifts()
        norm = -0.5 * (scale if ctf is None else scale * ctf) @ self.power
        scores = []
        for shifted in shift_circle(circle * scale[..., None], shifts, self.polar).unbind(1):
            values = read_out(angular_harmonics(shifted, self.m_max), self.templates, series)
            values = (values + norm[..., None]).flatten(1) * cool
            scores.append(parents(values, order=fine, levels=self.how.fine))
        if len(scores) == 1:
            return scores[0], scores[0].new_zeros(()).expand(*scores[0].shape, 2)
        each = torch.stack(scores, -1)
        return torch.logsumexp(each, -1), each.softmax(-1) @ shifts

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
