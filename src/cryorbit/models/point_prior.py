"""A learned prior of protein chains: C-alpha positions in angstrom, as a denoiser that turns with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryorbit.errors import BadInput
from cryorbit.models.pose_encoder import seeded
from cryorbit.models.prior_card import CardedPrior
from cryorbit.models.score import LEVEL_FEATURES, level_features, preconditioning
from cryorbit.nn.point_graph import PointChains, point_chains
from cryorbit.nn.se3_points import NoisyPoints, PointNetwork, centred

CONDITIONS = LEVEL_FEATURES + 1


@dataclass(frozen=True, kw_only=True)
class PointPriorShape:
    """Sizes of the network, and the units it works in; all of it stands in the checkpoint's card."""

    hidden: int = 32
    """Features per residue and per pair."""
    layers: int = 3
    """Rounds of messages."""
    neighbours: int = 40
    """Senders per residue in chains longer than `dense_up_to`."""
    dense_up_to: int = 128
    """Residues up to which all pairs are connected."""
    length_scale_A: float = 10.0
    """Angstrom per unit of the network's coordinates; one number for all structures."""
    size_factor_A: float = 2.2
    """Radius of gyration of n residues is size_factor_A n^size_power; it sets the scale of noise, not of coordinates."""
    size_power: float = 0.38
    """See size_factor_A."""
    bond_A: float = 3.8
    """Distance of successive C-alphas across a trans peptide bond; errors of bonds are shown to the network."""

    def __post_init__(self) -> None:
        if min(self.length_scale_A, self.size_factor_A, self.bond_A) <= 0:
            raise BadInput("PointPriorShape: lengths have to be positive. Give them in angstrom.")


class PointPrior(CardedPrior[PointPriorShape, PointNetwork]):
    """Network, units and preconditioning.

    Coordinates x = (position - centre of mass) / length_scale_A; no structure is scaled by a size of its own. Weights of
    a new network are drawn from `generator`, or torch's global state.
    """

    KIND: ClassVar[str] = "points"
    SHAPE: ClassVar[type[PointPriorShape]] = PointPriorShape

    def __init__(self, shape: PointPriorShape, *, generator: torch.Generator | None = None) -> None:
        self.shape = shape
        with seeded(generator):
            self.network = PointNetwork(
                shape.hidden,
                shape.layers,
                conditions=CONDITIONS,
                neighbours=shape.neighbours,
                dense_up_to=shape.dense_up_to,
            )

    def to_latent(
        self, position_A: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n 3"]:
        """From angstrom to the coordinates of the network, the centre of mass taken away."""
        return centred(position_A, mask) / self.shape.length_scale_A

    def to_angstrom(self, x: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
        """From the coordinates of the network to angstrom, about the centre of mass."""
        return x * self.shape.length_scale_A

    def sigma_data(self, residues: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Standard deviation per coordinate of chains of so many residues, Rg / sqrt(3), in units; float64."""
        law = self.shape.size_factor_A * residues.to(torch.float64) ** self.shape.size_power
        return law / math.sqrt(3) / self.shape.length_scale_A

    def denoiser(
        self, mask: Bool[Tensor, "b n"], chain: Int[Tensor, "b n"], residue: Int[Tensor, "b n"]
    ) -> PointDenoiser:
        """The denoiser of a batch of these chains.

        Parameters
        ----------
        mask
            Where there is a residue, shape (b, n).
        chain, residue
            Number of the chain and place in it, integers, shape (b, n). Names of chains carry no meaning.
        """
        chains = point_chains(mask, chain, residue)
        return PointDenoiser(self, chains, self.sigma_data(mask.sum(1)))


@dataclass(frozen=True, eq=False)
class PointDenoiser:
    """D(x; sigma) of given chains (`models.score.Denoiser`); x has shape (b, n, 3) and needs no centre of mass."""

    prior: PointPrior
    chains: PointChains
    spread: Float[Tensor, "b"]

    @property
    def sigma_data(self) -> float:
        """Mean over the batch of the standard deviation per coordinate, in units of `length_scale_A`."""
        return float(self.spread.mean())

    def project(self, x: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
        """Onto the space that samples live in: no centre of mass, zero where there is no residue."""
        return centred(x, self.chains.mask)

    def __call__(self, x: Float[Tensor, "b n 3"], sigma: Float[Tensor, "b"]) -> Float[Tensor, "b n 3"]:
        """Mean of the clean coordinates given the noisy ones."""
        shape = self.prior.shape
        x, spread = self.project(x), self.spread.to(x)
        c = preconditioning(sigma, spread)
        given = NoisyPoints(
            x * c.into[:, None, None],
            sigma * c.into,
            shape.bond_A / shape.length_scale_A * c.into,
            conditions(4 * c.noise, self.chains.mask.sum(1)).to(x),
        )
        moved = self.prior.network(given, self.chains)
        return x * c.skip[:, None, None] + moved * c.out[:, None, None]


def conditions(log_level: Float[Tensor, "b"], residues: Int[Tensor, "b"]) -> Float[Tensor, "b c"]:
    """Smooth features of ln(sigma / sigma_data) and of the number of residues."""
    size = torch.log(residues.to(log_level) / 64)
    return torch.cat((level_features(log_level), size[:, None]), dim=1)
