"""How far poses are from the truth, once the freedom that projections leave (frame, hand, centre) is out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryorbit.data import Pose
from cryorbit.errors import BadInput
from cryorbit.geometry.averaging import nearest_rotation
from cryorbit.geometry.conventions import mirror_pose_rotation
from cryorbit.geometry.symmetry import point_group

CONSISTENT_BELOW = 0.25
"""Squared Frobenius distance below which two poses agree: about 20 degrees."""

_CHUNK = 4_000_000  # distances held at a time: 32 MB in float64


@dataclass(frozen=True, eq=False, kw_only=True)
class PoseErrors:
    """Errors of predicted against true poses, d = |R_pred Q - R|_F^2 = 8 sin^2(theta / 2), chance mean 6.

    The map's frame is arbitrary, so Q turns it (on the right of the rotation); so is its hand, hence the
    mirrored poses F R_pred F, F = diag(1, 1, -1), are tried as well.
    """

    mse: float
    """Smallest mean of d over the candidate gauges Q_i = R_pred,i^T R_i, and over both hands."""
    medse: float
    """Smallest median of d over the candidates and both hands; its gauge may differ from the one of `mse`."""
    mse_refined: float
    """Mean of d under the refined `gauge`, which has no candidate's own error in it."""
    medse_refined: float
    hand: int
    """+1 as predicted, -1 mirrored: the hand with the smaller mean."""
    hand_a: float
    """Fraction of particles with d < 0.25 in the predicted hand, in that hand's refined gauge."""
    hand_b: float
    """The same in the mirrored hand. Both large: the map mixes the hands."""
    hand_union: float
    """Fraction of particles consistent in one hand or the other."""
    gauge: Float[Tensor, "3 3"]
    """Q of the better hand, mean over the consistent particles: x_predicted = Q x_true + `map_shift_A`."""
    offset_A: Float[Tensor, "3"]
    """Shift u of the centre in the true frame, shift_pred - shift = (R u)_xy; not in `shift_error_A`."""
    rotation: Float[Tensor, "n 3 3"]
    """Predicted rotations in the true frame and hand."""
    squared_error: Float[Tensor, "n"]
    """d per particle under `gauge`, least over the group."""
    rotation_error_deg: Float[Tensor, "n"]
    """Whole angle between predicted and true rotation."""
    view_error_deg: Float[Tensor, "n"]
    """Angle between viewing directions."""
    in_plane_error_deg: Float[Tensor, "n"]
    """What is left of the rotation after the views are brought together along the shortest arc."""
    shift_error_A: Float[Tensor, "n"]
    """Length of the shift error after taking out `offset_A`."""

    @property
    def map_shift_A(self) -> Float[Tensor, "3"]:
        """The c of x_predicted = gauge x_true + c: the true centre in the predicted (mirrored) map."""
        return -self.gauge @ self.offset_A

    def summary(self) -> dict[str, float | int]:
        """The numbers for a table or a JSON file."""
        return {
            "mse": self.mse,
            "medse": self.medse,
            "mse_refined": self.mse_refined,
            "medse_refined": self.medse_refined,
            "hand": self.hand,
            "hand_a": self.hand_a,
            "hand_b": self.hand_b,
            "hand_union": self.hand_union,
            "rotation_error_deg_median": float(self.rotation_error_deg.median()),
            "view_error_deg_median": float(self.view_error_deg.median()),
            "in_plane_error_deg_median": float(self.in_plane_error_deg.median()),
            "shift_error_A_median": float(self.shift_error_A.median()),
        }


@dataclass(frozen=True, eq=False)
class _Hand:
    """Errors in one hand."""

    rotation: Tensor  # (n, 3, 3) predicted, in this hand, gauge not applied
    mse: float
    medse: float
    gauge: Tensor
    squared: Tensor  # (n,) under the refined gauge
    partner: Tensor  # (n, 3, 3) the equivalent of the truth nearest to the prediction


def _distances(
    gauges: Float[Tensor, "k 3 3"], relative: Float[Tensor, "n 9"], group: Float[Tensor, "g 3 3"]
) -> Float[Tensor, "k n"]:
    """Least over S of |R_pred Q - R S|^2 = 6 - 2 max_S <Q S^T, R_pred^T R>, one matrix product."""
    k, g = gauges.shape[0], group.shape[0]
    equivalents = (gauges[:, None] @ group.mT).reshape(k * g, 9)
    overlap = (equivalents @ relative.T).reshape(k, g, -1).amax(1)
    return (6.0 - 2.0 * overlap).clamp_min(0.0)


def _refine_gauge(
    gauge: Tensor, relative: Float[Tensor, "n 9"], group: Float[Tensor, "g 3 3"]
) -> Float[Tensor, "3 3"]:
    """Procrustes mean of R_pred^T R S over the particles consistent with the gauge, until they settle."""
    consistent: Bool[Tensor, "n"] | None = None
    for _ in range(20):
        equivalents = (gauge @ group.mT).reshape(-1, 9)
        overlap, element = (equivalents @ relative.T).max(0)
        now = 6.0 - 2.0 * overlap < CONSISTENT_BELOW
        if not now.any() or (consistent is not None and torch.equal(now, consistent)):
            break
        consistent = now
        gauge = nearest_rotation((relative[now].reshape(-1, 3, 3) @ group[element[now]]).sum(0))
    return gauge


def _errors_in_hand(rotation: Tensor, truth: Tensor, group: Tensor, rows: Tensor) -> _Hand:
    """Best candidate gauges and the refined one for predictions that are already in this hand."""
    relative = (rotation.mT @ truth).reshape(-1, 9)
    candidates = relative[rows].reshape(-1, 3, 3)
    step = max(1, _CHUNK // (len(truth) * len(group)))
    means, medians, counts = [], [], []
    for start in range(0, len(candidates), step):
        d = _distances(candidates[start : start + step], relative, group)
        means.append(d.mean(1))
        medians.append(d.median(1).values)
        counts.append((d < CONSISTENT_BELOW).sum(1))
    mean, count = torch.cat(means), torch.cat(counts)
    most = torch.nonzero(count == count.max())[:, 0]
    best = most[mean[most].argmin()]
    gauge = _refine_gauge(candidates[best], relative, group)
    overlap, element = ((gauge @ group.mT).reshape(-1, 9) @ relative.T).max(0)
    partner = truth @ group[element]
    squared = (6.0 - 2.0 * overlap).clamp_min(0.0)
    return _Hand(rotation, float(mean.min()), float(torch.cat(medians).min()), gauge, squared, partner)


def centre_offset(
    rotation: Float[Tensor, "n 3 3"],
    difference_A: Float[Tensor, "n 2"],
    weight: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, "3"]:
    """The u that best explains difference = (R u)_xy in the least-squares sense, in its unit; an unseen component is 0."""
    rows = rotation[:, :2, :]
    each = 1.0 if weight is None else weight[:, None, None]
    normal = (rows.mT @ (each * rows)).sum(0)
    right = (rows.mT @ (each * difference_A[..., None])).sum(0)[:, 0]
    return torch.linalg.pinv(normal, rtol=1e-9, hermitian=True) @ right


def _degrees_between(a: Float[Tensor, "n 3"], b: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """Angle between unit vectors, accurate near 0 and 180 degrees."""
    return torch.rad2deg(2.0 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)))


def _in_plane_degrees(a: Float[Tensor, "n 3 3"], b: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n"]:
    """Rotation of a b^T about the view axis: its twist, the swing being the change of view."""
    relative = a @ b.mT
    sine = relative[:, 1, 0] - relative[:, 0, 1]
    cosine = relative[:, 0, 0] + relative[:, 1, 1]
    return torch.rad2deg(torch.atan2(sine, cosine).abs())


def _group_matrices(group: str | Tensor | None, like: Tensor) -> Float[Tensor, "g 3 3"]:
    if group is None:
        return torch.eye(3, dtype=like.dtype, device=like.device)[None]
    if isinstance(group, Tensor):
        return group.to(like)
    return point_group(group).to(like)


def pose_errors(
    predicted: Pose,
    truth: Pose,
    *,
    group: str | Float[Tensor, "g 3 3"] | None = None,
    n_candidates: int = 300,
) -> PoseErrors:
    """Compare predicted poses with true ones, row by row.

    Parameters
    ----------
    predicted, truth
        Poses of the same n particles, in the same order.
    group
        The particle's symmetry in the true frame, by name or as matrices (g, 3, 3): the error is the least
        over R S for S in the group.
    n_candidates
        How many particles, evenly spaced through the list, offer their own gauge.

    Raises
    ------
    BadInput
        If the numbers of poses differ or there is none.
    """
    n = len(truth)
    if len(predicted) != n or n == 0:
        raise BadInput(
            f"pose_errors: {len(predicted)} predicted poses but {n} true ones. Join them by id first."
        )
    # Single precision leaves matrices that are rotations to 1e-7, which is the square of 0.02 degrees.
    true_rotation, rotation = (nearest_rotation(p.rotation.double()) for p in (truth, predicted))
    true_shift = truth.shift_A.double()
    matrices = _group_matrices(group, true_rotation)
    rows = torch.linspace(0, n - 1, min(n, n_candidates), device=rotation.device).round().long()
    a = _errors_in_hand(rotation, true_rotation, matrices, rows)
    b = _errors_in_hand(mirror_pose_rotation(rotation), true_rotation, matrices, rows)
    hand, best = (1, a) if a.mse <= b.mse else (-1, b)

    aligned = best.rotation @ best.gauge
    difference = predicted.shift_A.double() - true_shift
    consistent = best.squared < CONSISTENT_BELOW
    used = consistent if int(consistent.sum()) >= 3 else torch.ones_like(consistent)
    offset = centre_offset(aligned[used], difference[used])
    residual = difference - (aligned[:, :2, :] @ offset)
    in_a, in_b = a.squared < CONSISTENT_BELOW, b.squared < CONSISTENT_BELOW
    return PoseErrors(
        mse=min(a.mse, b.mse),
        medse=min(a.medse, b.medse),
        mse_refined=float(best.squared.mean()),
        medse_refined=float(best.squared.median()),
        hand=hand,
        hand_a=float(in_a.double().mean()),
        hand_b=float(in_b.double().mean()),
        hand_union=float((in_a | in_b).double().mean()),
        gauge=best.gauge,
        offset_A=offset,
        rotation=aligned,
        squared_error=best.squared,
        rotation_error_deg=torch.rad2deg(2.0 * torch.asin((best.squared / 8.0).sqrt().clamp_max(1.0))),
        view_error_deg=_degrees_between(aligned[:, 2], best.partner[:, 2]),
        in_plane_error_deg=_in_plane_degrees(aligned, best.partner),
        shift_error_A=residual.norm(dim=-1),
    )


def degrees_from_squared(squared_error: float) -> float:
    """The angle whose squared Frobenius distance this is: 0.1 is 12.8 degrees.

    >>> round(degrees_from_squared(0.1), 1)
    12.8
    """
    return math.degrees(2.0 * math.asin(math.sqrt(min(squared_error, 8.0) / 8.0)))
