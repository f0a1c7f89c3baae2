"""Bring one map onto another: rotation, shift and hand, found from nothing or refined from a start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryorbit.analysis.align_refine import Motion, Target, refine
from cryorbit.analysis.align_search import Candidates, search_rotations, search_translations
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.spectrum import Spectrum, low_band
from cryorbit.analysis.transform_map import mirror_z, transform_map
from cryorbit.data import Volume
from cryorbit.errors import BadInput

_FINE_KMAX = 32
"""Most shells the refinement looks at: so many of a ribosome's box fix the angle to 0.02 degrees."""

_MIDDLE_RESOLUTION_A = 12.0
"""Where rotations are searched and hands compared, if the maps reach that far."""

UNDETERMINED_GAP = 0.02
"""Below this difference of scores the hand of a map is not decided."""


@dataclass(frozen=True, eq=False)
class MapAlignment:
    """A map brought onto a reference: aligned(x) = given(rotation @ x + shift), mirrored first if hand is -1.

    Parameters
    ----------
    hand
        +1, or -1 if the moving map was mirrored (z reversed about index N // 2) first.
    score
        Correlation of the whitened maps over the shells used, low ones counting more; 1 for equal maps.
    scores
        The best score of each hand tried.
    significance
        Standard deviations of the best start above all rotations tried: unrelated maps give about 5.
        NaN when nothing was searched.
    """

    rotation: Float[Tensor, "3 3"]
    shift_A: Float[Tensor, "3"]
    hand: int
    score: float
    scores: dict[int, float]
    significance: float
    aligned: Volume

    @property
    def hand_gap(self) -> float:
        """How much better the chosen hand is than the other; NaN if only one was tried."""
        other = self.scores.get(-self.hand)
        return math.nan if other is None else self.score - other


def _shells_to(resolution_A: float, reference: Volume) -> int:
    """Number of shells up to a resolution, within 0.8 of Nyquist."""
    wanted = int(reference.box * reference.pixel_size_A / resolution_A)
    return max(4, min(wanted, int(0.4 * reference.box)))


def _on_same_grid(moving: Volume, reference: Volume) -> Volume:
    """The moving map on the reference's grid, low-passed first where the reference is coarser."""
    same = abs(moving.pixel_size_A - reference.pixel_size_A) < 1e-3 * reference.pixel_size_A
    if same and moving.box == reference.box:
        return moving
    one = torch.eye(3, dtype=torch.float64)
    edge_A = moving.box * moving.pixel_size_A
    kmax = int(edge_A / (2.0 * reference.pixel_size_A)) - 1
    if kmax < 2:
        raise BadInput(
            f"align: a map of {edge_A:.0f} A cannot be compared on a grid of {reference.pixel_size_A:g} A. "
            "Check the pixel sizes in the headers."
        )
    smooth = low_band(moving, kmax=kmax) if kmax < moving.box // 2 - 1 else moving
    return transform_map(smooth, rotation=one, shift_A=torch.zeros(3), like=reference)


def _centre_of_mass(volume: Volume) -> Float[Tensor, "3"]:
    """Centre of the density above two standard deviations, as a fraction of the box from index N // 2."""
    values = volume.values
    weight = (values - values.mean() - 2.0 * values.std()).clamp_min(0.0)
    x = (torch.arange(volume.box, device=values.device) - volume.box // 2).to(values) / volume.box
    total = weight.sum().clamp_min(1e-30)
    return torch.stack([(weight.sum(dim) * x).sum() / total for dim in ((0, 1), (0, 2), (1, 2))])


def _starts(moving: Volume, reference: Volume, *, middle: int) -> tuple[list[Candidates], Spectrum, Volume]:
    """Candidates of both searches, for one hand, with the maps cut to the middle band they are refined in."""
    small_reference, small_moving = low_band(reference, kmax=middle), low_band(moving, kmax=middle)
    spectrum = Spectrum.of(small_moving, gradient=True)
    everywhere = search_translations(spectrum, small_reference)
    centre = _centre_of_mass(small_reference)
    carried = everywhere.rotation[0] @ centre + everywhere.shift[0]
    reference_spectrum = Spectrum.of(small_reference)
    found = [everywhere]
    for centre_moving in (carried, _centre_of_mass(small_moving)):
        if len(found) > 1 and (centre_moving - carried).norm() < 0.25 / middle:
            continue
        found.append(
            search_rotations(
                spectrum,
                reference_spectrum,
                centre_moving=centre_moving,
                centre_reference=centre,
                kmax=middle,
                keep=12,
            )
        )
    return found, spectrum, small_reference


def _search(moving: Volume, reference: Volume, *, middle: int) -> tuple[Motion, float]:
    """The best motion of one hand after refinement in the middle band, and the significance of its start."""
    found, spectrum, small = _starts(moving, reference, middle=middle)
    first = found[0]
    coarse = Target.of(small, spectrum, kmax=min(10, middle))
    starts = Motion(first.rotation[:16], first.shift[:16], first.score[:16])
    starts = refine(spectrum, coarse, starts, steps=8)
    best = starts.take(starts.score.argsort(descending=True)[:4])
    rotation = torch.cat([best.rotation, *(c.rotation for c in found[1:])])
    shift = torch.cat([best.shift, *(c.shift for c in found[1:])])
    fine = Target.of(small, spectrum, kmax=middle)
    motion = refine(spectrum, fine, Motion(rotation, shift, rotation.new_zeros(len(rotation))), steps=4)
    motion = refine(spectrum, fine, motion.take(motion.score.argsort(descending=True)[:3]), steps=8)
    return motion.take(motion.score.argmax()[None]), max(c.significance for c in found)


def _polish(moving: Volume, reference: Volume, start: Motion, *, kmax: int) -> Motion:
    """Last refinement over all shells, each weighted by how well the maps agree there."""
    small_reference, small_moving = low_band(reference, kmax=kmax), low_band(moving, kmax=kmax)
    spectrum = Spectrum.of(small_moving, gradient=True)
    motion = refine(spectrum, Target.of(small_reference, spectrum, kmax=kmax), start, steps=6)
    edge_A = small_moving.box * small_moving.pixel_size_A
    placed = transform_map(
        small_moving, rotation=motion.rotation[0], shift_A=motion.shift[0] * edge_A, like=small_reference
    )
    agreement = fourier_shell_correlation(placed, small_reference).correlation.clamp(0.0, 0.98)
    weight = torch.zeros(kmax + 2, dtype=torch.float64)
    shells = min(len(agreement), kmax + 2)
    weight[:shells] = (agreement / (1.0 - agreement**2)).cpu()[:shells]
    if float(weight[1 : kmax + 1].sum()) <= 0:
        return motion
    target = Target.of(small_reference, spectrum, kmax=kmax, shell_weight=weight)
    polished = refine(spectrum, target, motion, steps=6)
    return Motion(polished.rotation, polished.shift, motion.score)


def _result(
    moving: Volume,
    reference: Volume,
    motion: Motion,
    *,
    hand: int,
    scores: dict[int, float],
    significance: float,
) -> MapAlignment:
    """Turn the given map into place at full size."""
    edge_A = reference.box * reference.pixel_size_A
    u, _, vt = torch.linalg.svd(motion.rotation[0].double())
    rotation, shift_A = u @ vt, motion.shift[0].double() * edge_A
    given = moving if hand == 1 else mirror_z(moving)
    aligned = transform_map(given, rotation=rotation, shift_A=shift_A, like=reference)
    return MapAlignment(rotation, shift_A, hand, float(motion.score[0]), scores, significance, aligned)


def align_map(
    moving: Volume, reference: Volume, *, hand: Literal["both", "same", "other"] = "both"
) -> MapAlignment:
    """Turn, shift and, if that fits better, mirror a map so that it lies on the reference.

    Rotations are searched over all of SO(3) twice: with every translation at once at low resolution, and by
    spherical harmonics at 12 A about the centres found; the best are refined in six parameters.

    Parameters
    ----------
    moving, reference
        Maps with their pixel sizes; boxes and pixel sizes may differ. The result has the reference's grid.
    hand
        Which hands of the moving map to try.

    Raises
    ------
    BadInput
        If a map is constant, or the pixel sizes leave nothing to compare.
    """
    for name, volume in (("moving", moving), ("reference", reference)):
        if not bool(torch.isfinite(volume.values).all()) or float(volume.values.std()) == 0:
            raise BadInput(f"align: the {name} map is constant or not finite. Give a map with density in it.")
    dtype = torch.float32
    target = Volume(reference.values.to(dtype), reference.pixel_size_A)
    source = _on_same_grid(Volume(moving.values.to(dtype), moving.pixel_size_A), target)
    middle = min(_shells_to(_MIDDLE_RESOLUTION_A, target), 18)
    tried: dict[int, tuple[Motion, float]] = {}
    for sign, name in ((1, "same"), (-1, "other")):
        if hand in ("both", name):
            tried[sign] = _search(source if sign == 1 else mirror_z(source), target, middle=middle)
    scores = {sign: float(motion.score[0]) for sign, (motion, _) in tried.items()}
    best = max(scores, key=lambda sign: scores[sign])
    motion, significance = tried[best]
    polished = _polish(
        source if best == 1 else mirror_z(source),
        target,
        motion,
        kmax=min(_FINE_KMAX, _shells_to(0.0001, target)),
    )
    return _result(
        moving,
        reference,
        Motion(polished.rotation, polished.shift, motion.score),
        hand=best,
        scores=scores,
        significance=significance,
    )


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
    dtype = torch.float32
    target = Volume(reference.values.to(dtype), reference.pixel_size_A)
    source = _on_same_grid(Volume(moving.values.to(dtype), moving.pixel_size_A), target)
    if hand == -1:
        source = mirror_z(source)
    edge_A = target.box * target.pixel_size_A
    start = Motion(
        rotation.to(target.values)[None], shift_A.to(target.values)[None] / edge_A, target.values.new_zeros(1)
    )
    middle = min(_shells_to(_MIDDLE_RESOLUTION_A, target), 18)
    spectrum = Spectrum.of(low_band(source, kmax=middle), gradient=True)
    small = low_band(target, kmax=middle)
    for kmax in sorted({min(8, middle), middle}):
        start = refine(spectrum, Target.of(small, spectrum, kmax=kmax), start, steps=8)
    polished = _polish(source, target, start, kmax=min(_FINE_KMAX, _shells_to(0.0001, target)))
    motion = Motion(polished.rotation, polished.shift, start.score)
    scores = {hand: float(start.score[0])}
    return _result(moving, reference, motion, hand=hand, scores=scores, significance=math.nan)
