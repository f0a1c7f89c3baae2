"""Families of deformations: a low-rank basis, rigid parts, a coarse mesh, an MLP per Gaussian, and sums of them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from cryorbit.geometry.rotations import rotvec_to_matrix
from cryorbit.models.deformation import Deformation, coefficient_net

_SMALL = 0.1
"""Factor on last layers of residual fields, which start near zero."""


class BasisDeformation(Deformation):
    """Displacement = sum_k c_k(z) B_k: `rank` modes, each a vector per Gaussian, with learned coefficients.

    A rigid turn about any axis lies in its span: x -> R x is linear in the nine entries of R, whatever the angle. What the
    modes cost is one product of matrices, a thousandth of an MLP evaluated at every Gaussian.
    """

    def __init__(self, latent: int, n: int, *, rank: int, width: int) -> None:
        super().__init__(latent)
        self.coefficients = coefficient_net(latent, rank, width=width)
        self.basis = nn.Parameter(0.3 * torch.randn(rank, 3 * n) / math.sqrt(rank))

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b n 3"]:
        """Displacements, in units."""
        return (self.coefficients(z) @ self.basis).unflatten(-1, (-1, 3))


class MeshDeformation(Deformation):
    """Displacements of coarse nodes, a low-rank basis each, carried to the Gaussians by normalised Gaussian weights.

    Smooth by construction over the distance between nodes: neighbours cannot move apart.
    """

    def __init__(
        self, latent: int, position: Float[Tensor, "n 3"], *, nodes: int, rank: int, width: int
    ) -> None:
        super().__init__(latent)
        node = cluster_centres(position, nodes)
        self.nodes = BasisDeformation(latent, len(node), rank=rank, width=width)
        self.register_buffer("weight", soft_assignment(position, node))
        self.weight: Tensor

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b n 3"]:
        """Displacements, in units."""
        return self.weight @ self.nodes(z)


class PartsDeformation(Deformation):
    """Rigid parts: each Gaussian belongs softly to parts that turn about their centres and shift as z says.

    Displacement_j = sum_p w_jp (R_p(z) (x_j - c_p) + c_p + t_p(z) - x_j), linear blend skinning. Assignment, centres and
    motions are learned; at first the parts are clusters and nothing moves.
    """

    def __init__(self, latent: int, position: Float[Tensor, "n 3"], *, parts: int, width: int) -> None:
        super().__init__(latent)
        centre = cluster_centres(position, parts)
        self.register_buffer("position", position.detach().clone())
        self.position: Tensor
        self.centre = nn.Parameter(centre)
        self.logit = nn.Parameter(soft_assignment(position, centre).clamp_min(1e-4).log())
        self.motion = coefficient_net(latent, 6 * len(centre), width=width, last=_SMALL)

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b n 3"]:
        """Displacements, in units."""
        turn, shift = self.motion(z).unflatten(-1, (-1, 6)).split(3, dim=-1)
        weight = self.logit.softmax(-1)
        rotation = rotvec_to_matrix(turn)
        # sum_p w_p (R_p x + o_p), with o_p = c_p + t_p - R_p c_p: nine and three numbers per Gaussian, blended.
        offset = self.centre + shift - (rotation @ self.centre[..., None])[..., 0]
        blended = torch.einsum("np,bpij->bnij", weight, rotation)
        moved = torch.einsum("bnij,nj->bni", blended, self.position) + weight @ offset
        return moved - self.position


class FieldDeformation(Deformation):
    """An MLP at every Gaussian, conditioned by z through a scale and a shift per hidden unit (FiLM, Perez et al. 2018).

    What a Gaussian is, its embedding, is learned from its place and evaluated once for all images of a step. The last
    layer starts small.
    """

    def __init__(self, latent: int, position: Float[Tensor, "n 3"], *, width: int, out: int = 3) -> None:
        super().__init__(latent)
        self.register_buffer("features", place_features(position))
        self.features: Tensor
        self.embed = nn.Sequential(
            nn.Linear(self.features.shape[1], width), nn.SiLU(), nn.Linear(width, width)
        )
        self.film = coefficient_net(latent, 4 * width, width=width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, out)
        with torch.no_grad():
            self.last.weight.mul_(_SMALL)
            self.last.bias.zero_()

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b n out"]:
        """Displacements, in units."""
        scale1, shift1, scale2, shift2 = self.film(z)[:, None].chunk(4, dim=-1)
        hidden = nn.functional.silu(self.embed(self.features) * (1 + scale1) + shift1)
        hidden = nn.functional.silu(self.second(hidden) * (1 + scale2) + shift2)
        return self.last(hidden)


class SumDeformation(Deformation):
    """Two deformations added: rigid parts and what they leave."""

    def __init__(self, first: Deformation, second: Deformation) -> None:
        super().__init__(first.latent)
        self.first, self.second = first, second

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b n 3"]:
        """Displacements, in units."""
        return self.first(z) + self.second(z)


def cluster_centres(position: Float[Tensor, "n 3"], count: int) -> Float[Tensor, "c 3"]:
    """Centres of at most `count` clusters of points (k-means++ and Lloyd's rounds), the same every time."""
    count = min(count, len(position))
    points = position.detach().double().numpy()
    centre, label = kmeans2(points, count, iter=20, minit="++", rng=0)
    held = torch.from_numpy(label).unique()
    return torch.from_numpy(centre)[held].to(position)


def soft_assignment(position: Float[Tensor, "n 3"], centre: Float[Tensor, "c 3"]) -> Float[Tensor, "n c"]:
    """Gaussian weights of the centres at each point, rows summing to 1; the width is the centres' mean spacing."""
    if len(centre) == 1:
        return torch.ones_like(position[:, :1])
    between = torch.cdist(centre, centre).fill_diagonal_(math.inf)
    width = between.min(1).values.mean()
    return (-0.5 * (torch.cdist(position.detach(), centre) / width).square()).softmax(-1)


def place_features(position: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
    """Places and sines and cosines of them at four octaves below the molecule's size."""
    centred = position.detach() - position.detach().mean(0)
    scaled = centred / centred.norm(dim=1).max().clamp_min(1e-6)
    octaves = torch.pi * 2.0 ** torch.arange(4).to(scaled)
    waves = (scaled[..., None] * octaves).flatten(1)
    return torch.cat((scaled, waves.sin(), waves.cos()), 1)
