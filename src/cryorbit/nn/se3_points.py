"""Networks on chains of points that turn and move with them, and tell a chain from its mirror image.

Features are invariants, coordinates move along vectors: everything commutes with rotations and does not see translations.
It is SE(3), not E(3): triple products of a chain's own directions change sign in a mirror, so a right-handed helix is not
a left-handed one (with distances alone it would be; Satorras, Hoogeboom, Welling 2021 is that network). Directions along
the chain are divided by a softened length, so all is smooth where points coincide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cryorbit.errors import BadInput
from cryorbit.nn.point_graph import CLIP, Edges, PointChains, make_edges

_RADIAL = 16
_INVARIANTS = _RADIAL + 3 + 3 + 9 + 1
_TINY = 0.005
"""Keeps lengths differentiable where points coincide, in units of the points' spread."""
_SOFT = 0.2
"""Length, in units of the points' spread, below which a direction fades: a third of a bond of a folded protein."""
_NEAR = 4
"""Neighbours along the chain up to here weigh the same however many other points there are; the rest is averaged."""


def centred(x: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n 3"]:
    """Points with their mean taken away, and zero where the mask is false: the space that point clouds live in."""
    if mask is None:
        return x - x.mean(1, keepdim=True)
    there = mask[..., None].to(x)
    mean = (x * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)
    return (x - mean) * there


def soft_direction(v: Float[Tensor, "*batch 3"], softness: float = _SOFT) -> Float[Tensor, "*batch 3"]:
    """Vectors v / sqrt(|v|^2 + softness^2): a direction for long vectors, smooth and zero at zero.

    >>> soft_direction(torch.zeros(3)).tolist()
    [0.0, 0.0, 0.0]
    """
    return v * (v.square().sum(-1, keepdim=True) + softness**2).rsqrt()


def chain_frames(x: Float[Tensor, "b n 3"], chains: PointChains) -> Float[Tensor, "b n 3 3"]:
    """Rows t, c, t x c of each point: along the chain, to the inside of its bend, and the normal of both.

    They turn with the points. In a mirror the third changes sign against what the mirror makes of it. Zero where a
    neighbour along the chain is missing.
    """
    before, after = chains.at_previous(x), chains.at_next(x)
    inner = (chains.has_previous & chains.has_next)[..., None].to(x)
    t, c = soft_direction((after - before) * inner), soft_direction((after + before - 2 * x) * inner)
    return torch.stack((t, c, torch.linalg.cross(t, c)), dim=2)


def radial_basis(distance: Float[Tensor, "*batch"], count: int = _RADIAL) -> Float[Tensor, "*batch {count}"]:
    """Gaussians in exp(-distance), so that short distances are told apart best (Unke and Meuwly 2019, PhysNet)."""
    centre = torch.linspace(0.0, 1.0, count, dtype=distance.dtype, device=distance.device)
    exponent = (-((count - 1) ** 2) / 2) * (torch.exp(-distance)[..., None] - centre).square()
    # Below single precision's normal numbers, products take ten times as long.
    return torch.exp(exponent.clamp_min(-30.0))


def triple_products(x: Float[Tensor, "b n 3"], chains: PointChains) -> Float[Tensor, "b n 2"]:
    """Sine and cosine of the pseudo-dihedral of points i-1, i, i+1, i+2, times lengths that fade it where bonds vanish.

    With soft bond directions a, b, c: a . (b x c), which a mirror turns round, and (a x b) . (b x c). Polynomials, where
    the dihedral's own sine and cosine are not defined for straight or vanishing bonds.
    """
    after = chains.at_next(x)
    bond = soft_direction((after - x) * chains.has_next[..., None].to(x))
    a, c = chains.at_previous(bond), chains.at_next(bond)
    normal, following = torch.linalg.cross(a, bond), torch.linalg.cross(bond, c)
    return torch.stack(((a * following).sum(-1), (normal * following).sum(-1)), dim=-1)


@dataclass(frozen=True, eq=False)
class NoisyPoints:
    """What a network is told of a noisy chain.

    Parameters
    ----------
    x
        Points of about unit variance per coordinate, no centre of mass, shape (b, n, 3).
    step
        Size of the noise in the same unit, shape (b,): how far a unit of output moves a point.
    bond
        Length of a clean bond in the same unit, shape (b,).
    condition
        Whatever else is known, shape (b, c).
    """

    x: Tensor
    step: Tensor
    bond: Tensor
    condition: Tensor


class PointLayer(nn.Module):
    """Messages along edges; features, then points, take them in."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.film = nn.Linear(hidden, 2 * hidden)
        self.at_receiver = nn.Linear(hidden, hidden)
        self.at_sender = nn.Linear(hidden, hidden, bias=False)
        self.at_edge = nn.Linear(_INVARIANTS, hidden, bias=False)
        self.at_offset = nn.Embedding(2 * CLIP + 2, hidden)
        self.for_condition = nn.Linear(hidden, hidden, bias=False)
        self.message = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(hidden, 1)
        self.pull = nn.Linear(hidden, 2)
        self.update = nn.Sequential(nn.Linear(4 * hidden + 4, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.push = nn.Linear(hidden, 3)
        for last in (self.pull, self.push):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self, h: Tensor, x: Tensor, given: NoisyPoints, embedded: Tensor, chains: PointChains, edges: Edges
    ) -> tuple[Tensor, Tensor]:
        """New features, and how far each point is to move in units of the step."""
        there = chains.mask[..., None].to(x)
        scale, shift = self.film(embedded)[:, None].chunk(2, dim=-1)
        normed = self.norm(h) * (1 + scale) + shift
        frames = chain_frames(x, chains)
        vector, invariant = edge_geometry(x, frames, given, edges)
        mixed = self.at_edge(invariant) + self.at_offset(edges.offset)
        mixed = mixed + edges.of_senders(self.at_sender(normed))
        mixed = mixed + (self.at_receiver(normed) + self.for_condition(embedded)[:, None])[:, :, None]
        message = nn.functional.silu(self.message(nn.functional.silu(mixed)))
        gate = torch.sigmoid(self.gate(message))[..., 0]
        weight = torch.stack(edges.weights(_NEAR, x), dim=2) * gate[:, :, None]
        gathered = (weight @ message).flatten(2)
        saturating, linear = self.pull(message).unbind(-1)
        pull = (saturating / (1 + vector.norm(dim=-1)) + linear) * weight.sum(2)
        u = (pull[:, :, None] @ vector)[:, :, 0]

        everywhere = chains.mean(normed)[:, None].expand_as(normed)
        own = torch.cat((triple_products(x, chains), bond_errors(x, given, chains)), dim=-1)
        h = (h + self.update(torch.cat((normed, gathered, everywhere, own), -1))) * there
        u = u + (self.push(h)[:, :, None] @ frames)[:, :, 0]
        return h, u * there


def edge_geometry(x: Tensor, frames: Tensor, given: NoisyPoints, edges: Edges) -> tuple[Tensor, Tensor]:
    """Vectors from receivers to senders, shape (b, n, k, 3), and what a rotation leaves alone of each pair.

    That is the distance, where each stands in the other's frame, how the frames are turned, and for bonds how far from
    their length they are in units of the noise.
    """
    vector = edges.of_senders(x) - x[:, :, None]
    distance = (vector.square().sum(-1) + _TINY**2).sqrt()
    direction = soft_direction(vector)
    at_receiver = direction @ frames.mT
    if edges.sender is None:
        at_sender = -at_receiver.transpose(1, 2)  # the same arrow seen from its other end
        b, n = x.shape[:2]
        turned = (frames.flatten(1, 2) @ frames.flatten(1, 2).mT).view(b, n, 3, n, 3)
        turned = turned.permute(0, 1, 3, 2, 4).flatten(-2)
    else:
        theirs = edges.of_senders(frames.flatten(2)).unflatten(-1, (3, 3))
        at_sender = (theirs * direction[..., None, :]).sum(-1)
        turned = (frames[:, :, None] @ theirs.mT).flatten(-2)
    bonded = (edges.offset - CLIP).abs() == 1
    error = _relative(distance, given) * bonded
    return vector, torch.cat((radial_basis(distance), at_receiver, at_sender, turned, error[..., None]), -1)


def bond_errors(x: Tensor, given: NoisyPoints, chains: PointChains) -> Float[Tensor, "b n 2"]:
    """How far the bonds to the next and from the previous point are from their length, in units of the noise."""
    length = ((chains.at_next(x) - x).square().sum(-1, keepdim=True) + _TINY**2).sqrt()
    error = _relative(length[..., 0], given)[..., None] * chains.has_next[..., None].to(x)
    return torch.cat((error, chains.at_previous(error)), dim=-1)


def _relative(length: Tensor, given: NoisyPoints) -> Tensor:
    """(length - bond) / noise, squashed to -1 .. 1 where it is large."""
    shape = (-1, *[1] * (length.dim() - 1))
    error = (length - given.bond.view(shape)) / (2 * given.step.view(shape) + _TINY)
    return error * (1 + error.square()).rsqrt()


class PointNetwork(nn.Module):
    """From noisy chains of points to a vector for each, in units of the noise: F of `models.score`.

    Parameters
    ----------
    hidden
        Features per point and edge.
    layers
        Rounds of messages; each sees the points where the rounds before have moved them.
    conditions
        Numbers of `NoisyPoints.condition`.
    neighbours, dense_up_to
        Molecules of up to `dense_up_to` points have edges between all of them, larger ones from `neighbours` senders
        to every point.
    """

    def __init__(
        self, hidden: int, layers: int, *, conditions: int, neighbours: int = 40, dense_up_to: int = 128
    ) -> None:
        super().__init__()
        if min(hidden, layers, conditions, neighbours, dense_up_to) < 1 or neighbours > dense_up_to:
            raise BadInput(
                f"PointNetwork: wanted sizes of 1 or more and neighbours <= dense_up_to, got hidden {hidden}, layers "
                f"{layers}, conditions {conditions}, neighbours {neighbours}, dense_up_to {dense_up_to}."
            )
        self.neighbours, self.dense_up_to = neighbours, dense_up_to
        self.embed = nn.Sequential(
            nn.Linear(conditions, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.start = nn.Parameter(torch.randn(hidden))
        self.layers = nn.ModuleList(PointLayer(hidden) for _ in range(layers))

    def forward(self, given: NoisyPoints, chains: PointChains) -> Float[Tensor, "b n 3"]:
        """Vectors without a mean; zero where there is no point."""
        large = chains.mask.sum(1) > self.dense_up_to
        if not bool(large.any()):
            return self._move(given, chains, None)
        if bool(large.all()):
            return self._move(given, chains, self.neighbours)
        out = torch.empty_like(given.x)
        # Each sample goes the way of its own size, so that its result does not hang on what shares its batch.
        for part, neighbours in ((large, self.neighbours), (~large, None)):
            some = NoisyPoints(given.x[part], given.step[part], given.bond[part], given.condition[part])
            out[part] = self._move(some, chains.samples(part), neighbours)
        return out

    def _move(self, given: NoisyPoints, chains: PointChains, neighbours: int | None) -> Tensor:
        x, step = given.x, given.step[:, None, None]
        edges = make_edges(x, chains, neighbours=neighbours)
        embedded = self.embed(given.condition)
        h = self.start.expand(*x.shape[:2], -1) * chains.mask[..., None].to(x)
        total = torch.zeros_like(x)
        for layer in self.layers:
            h, u = layer(h, x + step * total, given, embedded, chains, edges)
            total = centred(total + u, chains.mask)
        return total
