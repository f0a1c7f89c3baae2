"""Bring one map onto another: rotation, shift and hand, found from nothing or refined from a start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.align_grid import on_same_grid, refuse_unusable, shells_to, working_cube
from cryorbit.analysis.align_match import Found, Pair, polish, search_full, search_partial, under_shared_mask
from cryorbit.analysis.align_refine import Motion, Target, refine
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.spectrum import Spectrum
from cryorbit.analysis.transform_map import mirror_z, transform_map
from cryorbit.data import Volume
from cryorbit.errors import BadInput
from cryorbit.geometry.symmetry import point_group

Mode = Literal["auto", "full", "partial"]
Hands = Literal["both", "same", "other"]

_MIDDLE_RESOLUTION_A = 12.0
"""Where rotations are searched and hands compared, if the maps reach that far."""

UNDETERMINED_GAP = 0.02
"""Below this difference of scores the hand of a map is not decided."""

HAND_RESOLUTION_A = 10.0
"""Maps whose voxels or agreement end before this resolution say little about their hand."""

DOUBTFUL_GAP = 0.08
"""Mode "auto" looks for a partial match too where the hands differ by less: a right match of full maps has more."""

SIGNIFICANT_Z = 5.5
"""Unrelated maps stay below this z, with few exceptions."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MapAlignment:
    """A map brought onto a reference: aligned(x) = given(rotation @ x + shift), mirrored first if hand is -1.

    Parameters
    ----------
    hand
        +1, or -1 if the moving map was mirrored (z reversed about index N // 2) first.
    score
        How well the maps agree, 1 for equal ones. Mode "full": correlation of the whitened maps over the shells
        used, low ones counting more. Mode "partial": the same, within the support of the smaller map.
    scores
        The best score of each hand tried.
    significance
        z of the match at low resolution against the best of every rotation tried, as VESPER counts it:
        unrelated maps stay below about 5. NaN when nothing was searched.
    mode
        Which of the two ways the result came from.
    agreement_A
        Resolution to which the aligned map and the reference agree (shell correlation 0.5).
    """

    rotation: Float[Tensor, "3 3"]
    shift_A: Float[Tensor, "3"]
    hand: int
    score: float
    scores: dict[int, float]
    significance: float
    aligned: Volume
    mode: Literal["full", "partial"] = "full"
    agreement_A: float = math.nan

    @property
    def hand_gap(self) -> float:
        """How much better the chosen hand is than the other; NaN if only one was tried."""
        other = self.scores.get(-self.hand)
        return math.nan if other is None else self.score - other

    @property
    def hand_verdict(self) -> Literal["same", "mirrored", "undetermined", "not tried"]:
        """What may be said of the hand; undetermined where the gap is small or nothing finer than 10 A is there."""
        if math.isnan(self.hand_gap):
            return "not tried"
        coarse = 2.0 * self.aligned.pixel_size_A > HAND_RESOLUTION_A
        if self.hand_gap < UNDETERMINED_GAP or coarse:
            return "undetermined"
        return "same" if self.hand == 1 else "mirrored"


def _least_turn(rotation: Float[Tensor, "3 3"], symmetry: str) -> Float[Tensor, "3 3"]:
    """Of the equivalent rotations Q g, for a reference with that symmetry, the one nearest to no turn."""
    equivalent = rotation @ point_group(symmetry).to(rotation)
    return equivalent[equivalent.diagonal(dim1=-2, dim2=-1).sum(-1).argmax()]


def _result(
    moving: Volume,
    reference: Volume,
    found: Found,
    *,
    edge_A: float,
    hand: int,
    scores: dict[int, float],
    mode: Literal["full", "partial"] = "full",
    symmetry: str = "C1",
) -> MapAlignment:
    """Turn the given map into place at full size."""
    u, _, vt = torch.linalg.svd(found.motion.rotation[0].double())
    rotation, shift_A = _least_turn(u @ vt, symmetry), found.motion.shift[0].double() * edge_A
    given = moving if hand == 1 else mirror_z(moving)
    aligned = transform_map(given, rotation=rotation, shift_A=shift_A, like=reference)
    agreement = fourier_shell_correlation(aligned, reference).resolution_A(0.5)
    return MapAlignment(
        rotation=rotation,
        shift_A=shift_A,
        hand=hand,
        score=float(found.motion.score[0]),
        scores=scores,
        significance=found.z,
        aligned=aligned,
        mode=mode,
        agreement_A=agreement,
    )


def _prepared(moving: Volume, reference: Volume, mask: Volume | None = None) -> Pair:
    """Both on one grid in single precision, the reference under its mask.

    Raises
    ------
    BadInput
        If a map cannot be used, or the mask has another box.
    """
    for name, volume in (("moving", moving), ("reference", reference)):
        refuse_unusable(name, volume)
    values = reference.values.to(torch.float32)
    if mask is not None:
        if mask.box != reference.box:
            raise BadInput(
                f"align: the mask has box {mask.box}, the reference {reference.box}. Make the mask from the reference."
            )
        values = values * mask.values.to(values)
    target = working_cube(Volume(values, reference.pixel_size_A), moving)
    source = on_same_grid(Volume(moving.values.to(torch.float32), moving.pixel_size_A), target)
    return Pair(source, target, min(shells_to(_MIDDLE_RESOLUTION_A, target), 18))


def placing_matrix(found: MapAlignment, moving: Volume, reference: Volume) -> Float[Tensor, "3 4"]:
    """The matrix (M | t) that takes a place in the moving map, as viewers show it, to its place in the reference.

    For coordinates (x, y, z) in angstrom that follow the headers' ORIGIN or NSTART. M has determinant `hand`.
    """
    middle_moving, middle_reference = (
        torch.tensor(v.place_A, dtype=torch.float64) + v.box // 2 * v.pixel_size_A
        for v in (moving, reference)
    )
    back = found.rotation.double().T
    mirror = torch.diag(torch.tensor([1.0, 1.0, float(found.hand)], dtype=torch.float64))
    turn = back @ mirror
    shift = middle_reference - back @ found.shift_A.double() - turn @ middle_moving
    return torch.cat([turn, shift[:, None]], 1)


def align_map(
    moving: Volume,
    reference: Volume,
    *,
    hand: Hands = "both",
    mode: Mode = "auto",
    mask: Volume | None = None,
    symmetry: str = "C1",
) -> MapAlignment:
    """Turn, shift and, if that fits better, mirror a map so that it lies on the reference.

    Rotations are searched over all of SO(3) twice: with every translation at once at low resolution, and by
    spherical harmonics at 12 A about the centres found; the best are refined in six parameters.

    Parameters
    ----------
    moving, reference
        Maps with their pixel sizes; boxes and pixel sizes may differ. The result has the reference's grid. Origins in
        the headers play no part: coordinates are counted from index N // 2.
    hand
        Which hands of the moving map to try.
    mode
        "full": the maps show the same particle. "partial": one shows a part of the other; directions of the
        density's slope are searched too, and only the support of the smaller map counts. "auto": full, and
        partial as well if that leaves the hand in doubt.
    mask
        On the reference's grid: only this part of the reference counts.
    symmetry
        Point group of the reference about its axes: of the equivalent motions the least turn is given.

    Raises
    ------
    BadInput
        If a map is constant or smaller than 10 voxels, the pixel sizes leave nothing to compare, the mask's box is
        another, or the point group is unknown.
    """
    point_group(symmetry)
    pair = _prepared(moving, reference, mask)
    hands = {"both": (1, -1), "same": (1,), "other": (-1,)}[hand]
    tried: dict[int, Found] = {}
    used: Literal["full", "partial"] = "partial" if mode == "partial" else "full"
    if mode != "partial":
        tried = {sign: search_full(pair.of_hand(sign)) for sign in hands}
    if mode == "partial" or (mode == "auto" and _doubtful(tried)):
        used = "partial"
        starts = {sign: found.motion for sign, found in tried.items()}
        tried = {sign: search_partial(pair.of_hand(sign), starts.get(sign)) for sign in hands}
    scores = {sign: float(found.motion.score[0]) for sign, found in tried.items()}
    best = max(scores, key=lambda sign: scores[sign])
    chosen = pair.of_hand(best)
    if used == "partial":
        chosen = under_shared_mask(chosen, tried[best].motion)
    return _result(
        moving,
        reference,
        Found(polish(chosen, tried[best].motion), tried[best].z),
        edge_A=pair.reference.box * pair.reference.pixel_size_A,
        hand=best,
        scores=scores,
        mode=used,
        symmetry=symmetry,
    )


def _doubtful(tried: dict[int, Found]) -> bool:
    """Whether the best match of whole maps is too little better than the other hand's, or not significant."""
    scores = sorted((float(f.motion.score[0]) for f in tried.values()), reverse=True)
    best_z = max(tried.values(), key=lambda f: float(f.motion.score[0])).z
    return best_z < SIGNIFICANT_Z or (len(scores) > 1 and scores[0] - scores[1] < DOUBTFUL_GAP)


def refine_alignment(
    moving: Volume,
    reference: Volume,
    *,
    rotation: Float[Tensor, "3 3"],
    shift_A: Float[Tensor, "3"],
    hand: int = 1,
) -> MapAlignment:
    """As `align_map`, from a start: x_moving = rotation @ x_reference + shift, mirrored first if hand is -1.

    `PoseErrors.gauge`, `.map_shift_A` and `.hand` are such a start for a map made from predicted poses.
    """
    pair = _prepared(moving, reference).of_hand(hand)
    like = pair.reference.values
    edge_A = pair.reference.box * pair.reference.pixel_size_A
    start = Motion(rotation.to(like)[None], shift_A.to(like)[None] / edge_A, like.new_zeros(1))
    small_moving, small = pair.low(pair.middle)
    spectrum = Spectrum.of(small_moving, gradient=True)
    for kmax in sorted({min(8, pair.middle), pair.middle}):
        start = refine(spectrum, Target.of(small, spectrum, kmax=kmax), start, steps=8)
    found = Found(polish(pair, start), math.nan)
    scores = {hand: float(start.score[0])}
    return _result(moving, reference, found, edge_A=edge_A, hand=hand, scores=scores)
