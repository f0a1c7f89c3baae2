"""Groups of particles whose poses fit together: how large they are, in which hand, and what the rest does.

S_i = {j : |R_pred,j Q_i - R_j|_F^2 < eps} with Q_i = R_pred,i^T R_i holds the particles that agree with particle i
(de Ruijter & Cesa, "Equivariant amortized inference of poses for cryo-EM", eq. 32). A converged run has one group that
holds everything. A map that mixes its two hands has one group per hand, which is why the mirrored poses F R_pred F are
asked as well; a map with a false rotation axis has two groups in one hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.pose_error import CONSISTENT_BELOW
from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import nearest_rotation
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.geometry.symmetry import point_group

SWEEP = (0.01, 0.03, 0.1, CONSISTENT_BELOW, 0.6, 1.2)
"""Squared distances that subsets are counted at: 4, 7, 13, 20, 32 and 46 degrees."""

LARGE_GROUP = 0.1
"""Share of the particles from which a second group counts as one in the verdict."""

AGREE_AT_LEAST = 0.3
"""Share of the particles that the two largest groups must hold before their state has a name."""

_CHUNK = 4_000_000
_GROUPS = 4
_GROUP_MIN_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class PoseGroup:
    """Particles that agree in one frame: hand +1 as predicted or -1 mirrored, share of all, gauge (R_pred Q = R)."""

    hand: int
    share: float
    gauge: Float[Tensor, "3 3"]


Kind = Literal["one hand", "hands mixed", "frames mixed", "astray", "none"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ConsistentSubsets:
    """Sizes of the subsets S_i of k particles among n, as shares of n, at several thresholds of |.|_F^2."""

    below: Float[Tensor, "t"]
    """The thresholds, rising."""
    row: Int[Tensor, "k"]
    """Which particles i the sizes are of."""
    size_a: Float[Tensor, "t k"]
    """|S_i| / n with the poses as predicted."""
    size_b: Float[Tensor, "t k"]
    """The same with all poses mirrored, F R_pred F."""
    fraction_a: Float[Tensor, "t"]
    """Share of particles within the threshold of the largest group's mean frame, in the predicted hand."""
    fraction_b: Float[Tensor, "t"]
    fraction_union: Float[Tensor, "t"]
    """Share within it in one hand or the other."""
    groups: tuple[PoseGroup, ...]
    """Disjoint groups, the largest first, each within 20 degrees of its own frame."""

    @property
    def size(self) -> Float[Tensor, "t k"]:
        """Size of each particle's subset in the hand where it is larger."""
        return torch.maximum(self.size_a, self.size_b)

    @property
    def hand(self) -> Int[Tensor, "t k"]:
        """+1 where a particle's subset is larger (or as large) in the predicted hand, else -1."""
        return torch.where(self.size_a >= self.size_b, 1, -1)

    @property
    def kind(self) -> Kind:
        """What state the poses are in, by the two largest groups."""
        first = self.groups[0] if self.groups else None
        second = self.groups[1] if len(self.groups) > 1 else None
        if first is None or sum(g.share for g in self.groups[:2]) < AGREE_AT_LEAST:
            return "none"
        if second is not None and second.share >= LARGE_GROUP:
            return "hands mixed" if second.hand != first.hand else "frames mixed"
        return "one hand" if first.share >= 0.9 else "astray"

    def verdict(self) -> str:
        """The state in one sentence."""
        if self.kind == "none":
            largest = self.groups[0].share if self.groups else 0.0
            return (
                f"No common frame: the largest consistent group holds {_percent(largest)} of the particles."
            )
        first = self.groups[0]
        rest = 1.0 - sum(g.share for g in self.groups[:2])
        astray = f", {_percent(rest)} astray" if rest >= 0.005 else ""
        if self.kind == "one hand":
            return f"One hand: {_percent(first.share)} of the particles agree in one frame."
        if self.kind == "astray":
            return f"One hand, many astray: {_percent(first.share)} agree in one frame, the others in none."
        shares = f"{100 * first.share:.0f}/{100 * self.groups[1].share:.0f} %{astray}"
        if self.kind == "hands mixed":
            return f"Two hands mixed: {shares}."
        angle = math.degrees(_angle(self.groups[0].gauge @ self.groups[1].gauge.T))
        return f"Two frames in one hand: {shares}, {angle:.0f} degrees apart."

    def mixing_plane(self) -> Float[Tensor, "3"] | None:
        """Normal, in the map's frame, of the mirror plane that carries one hand's group onto the other's; None if none.

        With Q_A and Q_B the two gauges, F Q_B Q_A^T is that reflection if the groups mix by a mirror plane of the map.
        """
        if self.kind != "hands mixed":
            return None
        a, b = sorted(self.groups[:2], key=lambda g: -g.hand)
        flip = torch.diag(a.gauge.new_tensor([1.0, 1.0, -1.0]))
        mirror = flip @ b.gauge @ a.gauge.T
        if _angle(-mirror) < math.radians(170):  # a reflection is minus a half turn
            return None
        return torch.linalg.eigh(0.5 * (mirror + mirror.T)).eigenvectors[:, 0]

    def summary(self) -> dict[str, float | str]:
        """The numbers for a table or a JSON file, at 20 degrees."""
        at = int((self.below - CONSISTENT_BELOW).abs().argmin())
        return {
            "subset_median": float(self.size[at].median()),
            "subset_largest": float(self.size[at].max()),
            "pose_state": self.kind,
            "pose_verdict": self.verdict(),
        }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _angle(rotation: Tensor) -> float:
    return math.acos(max(-1.0, min(1.0, (float(rotation.trace()) - 1.0) / 2.0)))


class _Hand:
    """Overlaps <R_pred Q, R S> of all particles in one hand; d = 6 - 2 overlap."""

    def __init__(self, rotation: Tensor, truth: Tensor, group: Tensor, rows: Tensor) -> None:
        self.relative = (rotation.mT @ truth).reshape(-1, 9)
        self.group = group
        self.candidates = self.relative[rows].reshape(-1, 3, 3)

    def squared(self, gauges: Float[Tensor, "k 3 3"]) -> Float[Tensor, "k n"]:
        """Least squared distance over the group, for each gauge and particle."""
        k, g = len(gauges), len(self.group)
        equivalents = (gauges[:, None] @ self.group.mT).reshape(k * g, 9)
        return 6.0 - 2.0 * (equivalents @ self.relative.T).reshape(k, g, -1).amax(1)

    def sizes(self, below: Tensor, free: Tensor) -> Int[Tensor, "t k"]:
        """Number of free particles within each threshold of each candidate's frame."""
        step = max(1, _CHUNK // max(1, len(self.relative) * len(self.group)))
        parts = []
        for gauges in self.candidates.split(step):
            d = self.squared(gauges)
            parts.append(torch.stack([((d < b) & free).sum(1) for b in below]))
        return torch.cat(parts, 1)

    def settled(self, gauge: Tensor, free: Tensor) -> Tensor:
        """Mean frame of the free particles that agree with it, from a start."""
        before: Tensor | None = None
        for _ in range(20):
            mates = (gauge @ self.group.mT).reshape(-1, 9)
            overlap, element = (mates @ self.relative.T).max(0)
            now = (6.0 - 2.0 * overlap < CONSISTENT_BELOW) & free
            if not now.any() or (before is not None and torch.equal(now, before)):
                break
            before = now
            gauge = nearest_rotation((self.relative[now].reshape(-1, 3, 3) @ self.group[element[now]]).sum(0))
        return gauge

    def largest(self, free: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The frame that most free particles agree with, and which do."""
        count = self.sizes(free.new_tensor([CONSISTENT_BELOW], dtype=torch.float64), free)[0] * free[rows]
        gauge = self.settled(self.candidates[count.argmax()], free)
        return gauge, (self.squared(gauge[None])[0] < CONSISTENT_BELOW) & free


def consistent_subsets(
    predicted: Float[Tensor, "n 3 3"],
    truth: Float[Tensor, "n 3 3"],
    *,
    group: str | Float[Tensor, "g 3 3"] | None = None,
    below: Sequence[float] = SWEEP,
    n_images: int = 300,
) -> ConsistentSubsets:
    """Sizes of the internally consistent subsets of predicted rotations, row by row against true ones.

    Parameters
    ----------
    predicted, truth
        Rotations of the same n particles in the same order; the predicted ones in any frame and hand.
    group
        The particle's symmetry in the true frame, by name or as matrices (g, 3, 3).
    below
        Thresholds of the squared Frobenius distance, d = 8 sin^2(theta / 2).
    n_images
        How many particles, evenly spaced through the list, have their subset counted (300 in the paper).

    Raises
    ------
    BadInput
        If the numbers of rotations differ or there is none.
    """
    n = len(truth)
    if len(predicted) != n or n == 0:
        raise BadInput(
            f"consistent_subsets: {len(predicted)} predicted rotations but {n} true ones. Join them by id."
        )
    true = truth.double()
    if group is None:
        matrices = torch.eye(3, dtype=true.dtype, device=true.device)[None]
    else:
        matrices = (point_group(group) if isinstance(group, str) else group).to(true)
    rows = torch.linspace(0, n - 1, min(n, n_images), device=true.device).round().long()
    limits = torch.tensor(sorted(below), dtype=torch.float64, device=true.device)
    rotation = predicted.double()
    hands = {
        1: _Hand(rotation, true, matrices, rows),
        -1: _Hand(mirror_pose_rotation(rotation), true, matrices, rows),
    }
    free = torch.ones(n, dtype=torch.bool, device=true.device)
    within = {}
    for sign, hand in hands.items():
        frame, _ = hand.largest(free, rows)
        within[sign] = hand.squared(frame[None]) < limits[:, None]
    return ConsistentSubsets(
        below=limits,
        row=rows,
        size_a=hands[1].sizes(limits, free).double() / n,
        size_b=hands[-1].sizes(limits, free).double() / n,
        fraction_a=within[1].double().mean(1),
        fraction_b=within[-1].double().mean(1),
        fraction_union=(within[1] | within[-1]).double().mean(1),
        groups=_groups(hands, rows, free),
    )


def _groups(hands: dict[int, _Hand], rows: Tensor, free: Tensor) -> tuple[PoseGroup, ...]:
    """Take out the largest group, then the largest of what is left, in either hand."""
    found: list[PoseGroup] = []
    free = free.clone()
    for _ in range(_GROUPS):
        best = max(
            ((sign, *hand.largest(free, rows)) for sign, hand in hands.items()), key=lambda b: int(b[2].sum())
        )
        sign, gauge, members = best
        share = float(members.double().mean())
        if found and share < _GROUP_MIN_SHARE:
            break
        found.append(PoseGroup(sign, share, gauge))
        free &= ~members
        if not free.any():
            break
    return tuple(found)


__all__ = [
    "AGREE_AT_LEAST",
    "LARGE_GROUP",
    "SWEEP",
    "ConsistentSubsets",
    "Kind",
    "PoseGroup",
    "consistent_subsets",
]
