"""Symmetry expansion: one row per symmetric copy of a particle, and back to one row per particle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.data.particles import ParticleStack
from cryorbit.data.pose import Pose
from cryorbit.errors import BadInput
from cryorbit.geometry.symmetry import canonical_name, point_group

SOURCE, COPY = "cryorbitSourceId", "cryorbitSymmetryCopy"
"""Columns of an expanded STAR table: the particle's own id, and which element of the group (0: none)."""

SOURCE_COLUMNS = (SOURCE, "sym_expand/src_uid")
COPY_COLUMNS = (COPY, "sym_expand/idx")
"""The same in STAR and in cryoSPARC tables."""

_SAME_ROTATION = 0.02
"""Largest element difference, about a degree: angles in files have few digits, and locally refined ones stray more."""

_LOOKED_AT = 20
"""Particles whose copies are compared with the groups."""


def expand_by_symmetry(stack: ParticleStack, symmetry: str) -> ParticleStack:
    """Every particle once per element g of the group, at the pose A g, which explains the same image.

    The copies of a particle follow one another, the particle as it was first. Half sets, CTF, shifts and all
    columns are repeated; ids get `#2`, `#3` and so on behind them. `expansion_columns` tells where rows come from.

    Parameters
    ----------
    symmetry
        Point group in RELION's settings.

    Raises
    ------
    BadInput
        If there are no poses, the stack is expanded already, or the group is unknown.
    """
    if stack.pose is None:
        raise BadInput(
            f"{stack.source}: no poses, and only poses can be expanded. Refine the particles first."
        )
    known = stack.tables.get("particles")
    if known is not None and any(name in known.columns for name in SOURCE_COLUMNS):
        raise BadInput(f"{stack.source}: is expanded by symmetry already. Collapse it first.")
    group = point_group(symmetry)
    order = len(group)
    rows = torch.arange(len(stack)).repeat_interleave(order)
    copy = np.tile(np.arange(order), len(stack))
    wide = stack.select(rows)
    assert wide.pose is not None
    element = group.to(stack.pose.rotation)[torch.from_numpy(copy)]
    ids = [f"{i}#{k + 1}" if k else str(i) for i, k in zip(wide.ids.tolist(), copy.tolist(), strict=True)]
    return replace(
        wide,
        pose=Pose(
            torch.where(_is_first(copy), wide.pose.rotation, wide.pose.rotation @ element), wide.pose.shift_A
        ),
        ids=np.array(ids, dtype=object),
    )


def expansion_columns(stack: ParticleStack, order: int) -> dict[str, np.ndarray]:
    """What an expanded table says of where its rows come from, for the dialect that the stack was read in.

    Parameters
    ----------
    stack
        Before the expansion.
    order
        Elements of the group.
    """
    copy = np.tile(np.arange(order), len(stack))
    known = stack.tables.get("particles")
    if known is not None and "uid" in known.columns:
        return {
            "sym_expand/src_uid": np.repeat(known["uid"].to_numpy(np.uint64), order),
            "sym_expand/idx": copy.astype(np.uint32),
        }
    return {SOURCE: np.repeat(stack.ids.astype(str), order), COPY: copy}


def _is_first(copy: np.ndarray) -> Tensor:
    """Rows that stay as they were to the last bit, shape (n, 1, 1)."""
    return torch.from_numpy(copy == 0)[:, None, None]


def collapse_expansion(
    stack: ParticleStack, source: np.ndarray, *, best_by: str | None = None
) -> ParticleStack:
    """One row per particle, in the order of first appearance, without the columns of the expansion.

    Parameters
    ----------
    source
        Per row, what is the same for all copies of a particle.
    best_by
        Column whose largest value decides which copy stays; None keeps the copy 0 where the table says which
        that is, else the first.

    Raises
    ------
    BadInput
        If there is no such column, or not one source per row.
    """
    if len(source) != len(stack):
        raise BadInput(f"{stack.source}: {len(stack)} rows but {len(source)} sources. Give one per row.")
    first, particle = np.unique(source.astype(str), return_index=True, return_inverse=True)[1:]
    rank = _preference(stack, best_by)
    # Sort by particle, then by preference, and take the head of each; ties go to the earlier row.
    order = np.lexsort((np.arange(len(stack)), rank, particle))
    heads = np.flatnonzero(np.diff(particle[order], prepend=-1))
    chosen = order[heads][np.argsort(first, kind="stable")]
    kept = stack.select(torch.from_numpy(chosen))
    tables = dict(kept.tables)
    if "particles" in tables:
        tables["particles"] = tables["particles"].drop(
            columns=[*SOURCE_COLUMNS, *COPY_COLUMNS], errors="ignore"
        )
    ids = np.array([str(i).partition("#")[0] for i in kept.ids.tolist()], dtype=object)
    return replace(kept, ids=ids, tables=tables)


def _preference(stack: ParticleStack, best_by: str | None) -> np.ndarray:
    """Per row, lower is better."""
    table = stack.tables.get("particles")
    if best_by is None:
        copy = [table[name] for name in COPY_COLUMNS if table is not None and name in table.columns]
        return copy[0].to_numpy(np.int64) if copy else np.zeros(len(stack), np.int64)
    if table is None or best_by not in table.columns:
        raise BadInput(f"{stack.source}: has no column {best_by} to choose by. Name one that it has.")
    try:
        return -table[best_by].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{stack.source}: column {best_by} holds no numbers. Name one that does.") from error


def symmetry_of_expansion(
    rotation: Float[Tensor, "n 3 3"], source: np.ndarray
) -> tuple[int, str | None] | None:
    """How often each particle is listed, and the group that its poses are related by; None if that differs.

    The group is None where the copies are related by none of the point groups in RELION's settings.
    """
    names, particle, counts = np.unique(source.astype(str), return_inverse=True, return_counts=True)
    order = int(counts[0])
    if order == 1 or not (counts == order).all():
        return None
    rows = np.argsort(particle, kind="stable").reshape(len(names), order)[:_LOOKED_AT]
    poses = rotation[torch.from_numpy(rows)].double()
    relative = poses[:, :1].mT @ poses
    for name in _groups_of(order):
        group = point_group(name).to(relative)
        far = (relative[:, :, None] - group).abs().amax((-2, -1))
        complete = far.amin(1).amax() < _SAME_ROTATION and far.amin(2).amax() < _SAME_ROTATION
        if bool(complete):
            return order, name
    return order, None


def _groups_of(order: int) -> list[str]:
    """Names of the point groups with so many elements."""
    found = [f"C{order}"] + ([f"D{order // 2}"] if order % 2 == 0 else [])
    found += {12: ["T"], 24: ["O"], 60: ["I1", "I2", "I3", "I4"]}.get(order, [])
    return [canonical_name(name) for name in found]
