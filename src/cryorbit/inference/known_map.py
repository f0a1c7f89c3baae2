"""Poses of cropped images against one map: by exhaustive search, or from the hypotheses of an encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryorbit.geometry.so3_grid import healpix_directions
from cryorbit.geometry.symmetry import in_asymmetric_unit
from cryorbit.inference.amortised_data import TrainingImages
from cryorbit.inference.locate import Located, locate
from cryorbit.inference.observations import Observations
from cryorbit.inference.proposals import refine_proposals
from cryorbit.inference.ring_em import View, level_for, make_view
from cryorbit.models.pose_encoder import PoseEncoder

PROPOSALS = 8
"""Hypotheses of the encoder that are refined."""


@dataclass(frozen=True, eq=False)
class PoseSearch:
    """Exhaustive search of poses; called with rows of the stack, by several threads if they like."""

    observed: Observations
    half: Complex[Tensor, "p p h"]
    """Transform of the map on a lattice twice as fine as a Fourier pixel, see `Lattice.to_half`."""
    shift_sd_px: float
    """Spread of the shifts, pixels of the stack."""
    box: int = field(kw_only=True)
    """Images are cropped to this many pixels for the grid of poses."""
    grid_radius: int = field(kw_only=True)
    """Rings that the grid of poses is searched with, Fourier pixels. (A grid of three quarters of the final radius put
    2 % of the images of a 140 A particle, seen to 40 A, into a false mode.)"""
    radius: int = field(kw_only=True)
    """Frequencies that poses are refined with."""
    reach_sd: float = field(default=3.3, kw_only=True)
    """Shifts are searched out to so many times their spread."""
    group: Float[Tensor, "g 3 3"] = field(default_factory=lambda: torch.eye(3)[None], kw_only=True)
    """Rotations of the particle onto itself."""
    _making: Lock = field(default_factory=Lock, init=False, repr=False)

    def __call__(
        self,
        rows: Int[Tensor, "n"],
        *,
        known: tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 2"]] | None = None,
    ) -> Located:
        """Exact posterior of some images over the whole grid, its best modes refined; poses `known` before compete."""
        with self._making:  # the first call makes it, for all threads
            view = self._view
        return joined(
            locate(
                self.observed,
                rows[at],
                view,
                self.half,
                self.group,
                radius=self.radius,
                iterations=3,
                shift_sd_px=self.shift_sd_px,
                crop=self.box,
                known=None if known is None else (known[0][at], known[1][at]),
            )
            for at in torch.arange(len(rows)).split(16)
        )

    @cached_property
    def _view(self) -> View:
        """Grid of poses, its templates and shifts."""
        observed = self.observed
        level = level_for(self.grid_radius, observed.particle_radius_px, box=observed.box)
        directions = healpix_directions(level.order)
        if len(self.group) > 1:
            directions = directions[in_asymmetric_unit(directions, self.group.double())]
        return make_view(
            self.half,
            level,
            directions,
            n=self.box,
            box=observed.box,
            reach_px=min(max(self.reach_sd * self.shift_sd_px, level.shift_step_px), 0.35 * observed.box),
            shift_sd_px=self.shift_sd_px,
            ctf=observed.stack.ctf,
            pixel_size_A=observed.pixel_size_A,
        )


@dataclass(frozen=True, eq=False)
class KnownMap:
    """A map and the images whose poses it tells."""

    images: TrainingImages
    half: Complex[Tensor, "p p h"]
    """Transform of the map on twice as many lattice points as the cropped images have pixels, see `Lattice.to_half`."""
    shift_sd_px: float
    """Spread of the shifts, pixels of the stack."""
    grid_radius: int
    """See `PoseSearch`."""
    radius: int
    """Frequencies that poses are refined with."""

    def search(self, rows: Int[Tensor, "n"]) -> Located:
        """Exact posterior of some images over the whole grid, its best modes refined; see `PoseSearch`."""
        small = self.images.small
        search = PoseSearch(
            small.observed,
            self.half,
            self.shift_sd_px,
            box=self.images.box,
            grid_radius=self.grid_radius,
            radius=self.radius,
        )
        return search(small.rows[rows])

    def propose(self, encoder: PoseEncoder, rows: Int[Tensor, "n"], *, most: int = PROPOSALS) -> Located:
        """The best of the encoder's `most` likeliest hypotheses for some images, refined."""
        return refine_proposals(
            encoder,
            self.images,
            rows,
            self.half,
            radius=self.radius,
            shift_sd_px=self.shift_sd_px,
            most=most,
        )


def joined(parts: Iterable[Located]) -> Located:
    """Poses of several sets of images, one set after the other."""
    found = list(parts)
    return Located(*(torch.cat([getattr(p, name) for p in found]) for name in Located.__dataclass_fields__))
