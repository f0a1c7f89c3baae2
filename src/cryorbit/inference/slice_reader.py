"""The slice encoder with a pose model's map as its filters: exact posteriors of a stack's images, nothing trained."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.data import Volume
from cryorbit.fourier.resample import fourier_resample
from cryorbit.geometry.groups import act_on_images, act_on_rotation
from cryorbit.inference.observations import crop_images
from cryorbit.inference.predictor import PosePosterior, Predictor
from cryorbit.inference.ring_em import NOISE_FLOOR
from cryorbit.models.pose_encoder import PosePrediction
from cryorbit.models.slice_encoder import SliceEncoder
from cryorbit.models.slice_learned import SliceSettings

ORDER = 2
"""Of the grid of rotations: cells of 15 degrees, each the sum over eight finer ones."""
BLOCK = 32


class SliceReader:
    """Posteriors of any images of a predictor's stack, on a grid of rotations and of shifts.

    CTFs are read along x on each ring: astigmatism is left out.
    """

    def __init__(self, predictor: Predictor) -> None:
        facts, self.observed = predictor.model.facts, predictor.observed
        self.box, self.pixel_A = facts.box_px, facts.coarsest_pixel_A
        sd_px = facts.shift_sd_A / self.pixel_A
        self.encoder = SliceEncoder(
            SliceSettings(
                box=self.box,
                order=ORDER,
                learned=False,
                max_radius=self.box // 2 - 3,
                shift_px=min(max(math.ceil(2.4 * sd_px), 1), 4),
            )
        ).eval()
        self.radii = self.encoder.polar.radii().float()
        self.encoder.set_noise(self.observed.noise_at(self.radii, floor=NOISE_FLOOR))
        full = predictor.model.map.values * predictor.scale
        # Coefficients of a transform grow with the number of voxels; those of the images are kept as they were.
        small = fourier_resample(full, self.box, ndim=3) * (len(full) / self.box) ** 3
        self.encoder.set_map(Volume(small, self.pixel_A))

    def images(self, rows: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b h h"], Float[Tensor, "b r"]]:
        """Images without the phase of beam tilt, otherwise as they are, cropped, and their CTF on the rings."""
        box, points = self.observed.box, torch.stack((self.radii, torch.zeros_like(self.radii)), -1)
        ky, kx = torch.meshgrid(torch.arange(box) - box // 2, torch.arange(box // 2 + 1), indexing="ij")
        plane = torch.stack((kx, ky), -1).float()
        transforms = self.observed.undo_odd_phase(self.observed.transforms(rows), rows, plane)
        return crop_images(transforms, self.box), self.observed.ctf(rows, points)

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "b h h"], ctf: Float[Tensor, "b r"]) -> PosePrediction:
        """Posterior of each image."""
        return self.encoder(images, ctf=ctf)

    def hypotheses(self, rows: Int[Tensor, "b"], *, top: int) -> PosePosterior:
        """The most probable cells, those at different places before others."""
        parts = (self.predict(*self.images(part)) for part in rows.split(BLOCK))
        return PosePosterior.joined([PosePosterior.of(p, top=top, pixel_A=self.pixel_A) for p in parts])


def moved_images(images: Float[Tensor, "b h h"], element: int) -> Float[Tensor, "b h h"]:
    """The images moved by a D4 element about index h // 2; at even h, edges that fall out come in opposite."""
    box = images.shape[-1]
    mark = torch.zeros(box, box)
    mark[box // 2, box // 2] = 1.0
    y, x = divmod(int(act_on_images(mark, element).argmax()), box)
    return act_on_images(images, element).roll((box // 2 - y, box // 2 - x), (-2, -1))


def moved_rows(grid: Float[Tensor, "cells 3 3"], element: int) -> Int[Tensor, "cells"]:
    """For each cell the cell that an element of D4 brings there: p(moved image) = p(image)[moved_rows]."""
    flat = act_on_rotation(grid, element).reshape(-1, 9)
    return torch.cat([(part.reshape(-1, 9) @ flat.mT).argmax(1) for part in grid.split(512)])
