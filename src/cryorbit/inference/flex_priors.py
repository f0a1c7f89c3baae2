"""What is expected of a molecule's motion before any image is seen, as nats per image."""

from __future__ import annotations

import torch
from torch import Tensor

from cryorbit.data import Gaussians
from cryorbit.inference.flex_settings import FlexSettings
from cryorbit.models.deformation import GaussianModel
from cryorbit.models.motion_priors import (
    clash_energy,
    elastic_energy,
    neighbour_pairs,
    pair_lengths,
    smoothness,
    without_rigid_motion,
)


class MotionPriors:
    """The priors that the settings ask for, about the distances between anchors.

    Parameters
    ----------
    anchors
        Gaussians of the consensus.
    unit_A
        The pixel size.
    """

    def __init__(self, anchors: Gaussians, settings: FlexSettings, *, unit_A: float) -> None:
        self.settings = settings
        self.pairs = neighbour_pairs(anchors.position_A)
        self.rest = pair_lengths(anchors.position_A / unit_A, self.pairs)
        self.least = 0.5 * float(self.rest.median())

    def __call__(self, model: GaussianModel, gaussians: Gaussians) -> Tensor:
        """Nats per image of conformations of the model."""
        s, total = self.settings, torch.zeros(())
        position = gaussians.position_A / model.unit_A
        if s.elastic:
            total = total + s.elastic * elastic_energy(position, self.rest, self.pairs)
        if s.smooth:
            total = total + s.smooth * smoothness(position - model.position, self.pairs)
        if s.clash:
            total = total + s.clash * clash_energy(position, self.pairs, least=self.least)
        if s.refine_poses:
            # A soft gauge: what poses can do is not the motion's to do.
            moved = position - model.position.detach()
            weight = gaussians.amplitude.detach().mean(0)
            rigid = moved - without_rigid_motion(moved, model.position.detach(), weight)
            total = total + rigid.square().sum(-1).mean()
        return total
