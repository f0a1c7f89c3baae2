"""Pose errors and consistent subsets through a run: when it converged, and in which state it dwelt before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryorbit.analysis.pose_error import CONSISTENT_BELOW, pose_errors
from cryorbit.analysis.pose_subsets import consistent_subsets
from cryorbit.data import Pose
from cryorbit.errors import BadInput

CONVERGED_BELOW = 0.1
"""Mean squared Frobenius error below which a run counts as converged: 12.8 degrees."""


@dataclass(frozen=True, eq=False)
class PoseSnapshot:
    """Rotations of some particles at one moment of a run: `row` says which, `time` when, in any rising unit."""

    time: float
    row: Int[Tensor, "m"]
    rotation: Float[Tensor, "m 3 3"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PoseHistory:
    """What s snapshots of a run are worth against the truth."""

    time: Float[Tensor, "s"]
    time_label: str
    """What `time` counts, with its unit, as an axis label."""
    mse: Float[Tensor, "s"]
    """Least mean of |R_pred Q - R|_F^2 over frames and hands; chance is 6."""
    medse: Float[Tensor, "s"]
    size: Float[Tensor, "s k"]
    """Share of the particles in the subset of each of k particles, in its better hand; NaN where a snapshot has fewer."""
    hand: Float[Tensor, "s k"]
    """+1 where that is the predicted hand, -1 where the mirrored one."""
    fraction_a: Float[Tensor, "s"]
    """Share of particles right in the hand that the last snapshot has."""
    fraction_b: Float[Tensor, "s"]
    fraction_union: Float[Tensor, "s"]

    def converged_at(self) -> float | None:
        """Time of the first snapshot from which the mean error stays below 0.1; None if it does not end there."""
        good = self.mse < CONVERGED_BELOW
        if not bool(good[-1]):
            return None
        bad = torch.nonzero(~good)[:, 0]
        return float(self.time[int(bad[-1]) + 1 if len(bad) else 0])

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name, to be stored."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def pose_history(
    snapshots: Iterable[PoseSnapshot],
    truth: Float[Tensor, "n 3 3"],
    *,
    time_label: str = "Image visits",
    group: str | Float[Tensor, "g 3 3"] | None = None,
    n_images: int = 300,
) -> PoseHistory:
    """Compare snapshots of a run with the truth, one by one as they come.

    Parameters
    ----------
    snapshots
        In order of time; each may hold other particles.
    truth
        True rotations of all particles.
    time_label
        Axis label of the snapshots' time.
    group, n_images
        As in `consistent_subsets`.

    Raises
    ------
    BadInput
        If there is no snapshot, or one is of particles that the truth does not have.
    """
    times, numbers, sizes, hands = [], [], [], []
    for shot in snapshots:
        if len(shot.row) == 0 or int(shot.row.max()) >= len(truth):
            raise BadInput(
                f"pose_history: a snapshot of rows up to {int(shot.row.max()) if len(shot.row) else 'none'} "
                f"but {len(truth)} true rotations. Give the truth of all particles."
            )
        true = truth[shot.row.to(truth.device)]
        nowhere = true.new_zeros(len(true), 2)
        errors = pose_errors(
            Pose(shot.rotation, nowhere), Pose(true, nowhere), group=group, n_candidates=n_images
        )
        subsets = consistent_subsets(
            shot.rotation, true, group=group, below=(CONSISTENT_BELOW,), n_images=n_images
        )
        times.append(shot.time)
        fractions = (subsets.fraction_a, subsets.fraction_b, subsets.fraction_union)
        numbers.append([errors.mse, errors.medse, *(float(f[0]) for f in fractions)])
        sizes.append(subsets.size[0])
        hands.append(subsets.hand[0].double())
    if not times:
        raise BadInput("pose_history: no snapshot. Keep the poses of a run as it goes, then compare them.")
    table = torch.tensor(numbers, dtype=torch.float64)
    a, b, flip = table[:, 2], table[:, 3], 1.0
    if b[-1] > a[-1]:  # name the hands by how the run ended
        a, b, flip = b, a, -1.0
    return PoseHistory(
        time=torch.tensor(times, dtype=torch.float64),
        time_label=time_label,
        mse=table[:, 0],
        medse=table[:, 1],
        size=_padded(sizes),
        hand=flip * _padded(hands),
        fraction_a=a,
        fraction_b=b,
        fraction_union=table[:, 4],
    )


def _padded(parts: list[Tensor]) -> Float[Tensor, "s k"]:
    out = torch.full((len(parts), max(len(p) for p in parts)), torch.nan, dtype=torch.float64)
    for i, part in enumerate(parts):
        out[i, : len(part)] = part
    return out


__all__ = ["CONVERGED_BELOW", "PoseHistory", "PoseSnapshot", "pose_history"]
