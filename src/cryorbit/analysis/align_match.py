"""One hand of a map against a reference on the same grid: search over all motions, and the last refinement."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cryorbit.analysis.align_grid import centre_of_mass, shells_to, whitened
from cryorbit.analysis.align_partial import Shared, best_overlay, distinct, search_fields
from cryorbit.analysis.align_refine import Motion, Target, correlation, refine
from cryorbit.analysis.align_search import (
    COARSE_KMAX,
    Candidates,
    search_rotations,
    search_translations,
    z_score,
)
from cryorbit.analysis.fsc import fourier_shell_correlation
from cryorbit.analysis.spectrum import Spectrum, low_band
from cryorbit.analysis.transform_map import mirror_z, transform_map
from cryorbit.data import Volume

_FINE_KMAX = 32
"""Most shells the refinement looks at: so many of a ribosome's box fix the angle to 0.02 degrees."""


@dataclass(frozen=True, eq=False)
class Found:
    """Best motion of one hand, and its z."""

    motion: Motion
    z: float


@dataclass(frozen=True, eq=False)
class Pair:
    """Two maps on one grid, and the shells of the middle band."""

    moving: Volume
    reference: Volume
    middle: int

    def of_hand(self, hand: int) -> Pair:
        """The moving map mirrored if hand is -1."""
        return self if hand == 1 else replace(self, moving=mirror_z(self.moving))

    def low(self, kmax: int) -> tuple[Volume, Volume]:
        """Both maps limited to a band, moving first."""
        return low_band(self.moving, kmax=kmax), low_band(self.reference, kmax=kmax)


def _rotation_starts(
    small_moving: Volume, small_reference: Volume, spectrum: Spectrum, best: Candidates, *, kmax: int
) -> list[Candidates]:
    """Candidates by spherical harmonics about the centres that the first search, and the density, suggest."""
    centre = centre_of_mass(small_reference)
    carried = best.rotation[0] @ centre + best.shift[0]
    reference = Spectrum.of(small_reference)
    found: list[Candidates] = []
    for centre_moving in (carried, centre_of_mass(small_moving)):
        if found and (centre_moving - carried).norm() < 0.25 / kmax:
            continue
        found.append(
            search_rotations(
                spectrum, reference, centre_moving=centre_moving, centre_reference=centre, kmax=kmax, keep=12
            )
        )
    return found


def _z(spectrum: Spectrum, reference: Volume, tried: Candidates, motion: Motion) -> float:
    """The z of a refined motion against all rotations tried, both at the resolution of the search."""
    kmax = min(COARSE_KMAX, reference.box // 2 - 1)
    level = torch.ones(kmax + 2, dtype=torch.float64, device=reference.values.device)
    target = Target.of(reference, spectrum, kmax=kmax, shell_weight=level)
    return z_score(tried.score, float(correlation(spectrum, target, motion)[0]))


def search_full(pair: Pair) -> Found:
    """The best motion of one hand, whole maps compared."""
    small_moving, small = pair.low(pair.middle)
    spectrum = Spectrum.of(small_moving, gradient=True)
    first = search_translations(spectrum, small, kmax=min(COARSE_KMAX, pair.middle))
    more = _rotation_starts(small_moving, small, spectrum, first, kmax=pair.middle)
    coarse = Target.of(small, spectrum, kmax=min(10, pair.middle))
    starts = refine(
        spectrum, coarse, Motion(first.rotation[:16], first.shift[:16], first.score[:16]), steps=8
    )
    best = starts.take(starts.score.argsort(descending=True)[:4])
    # as the maps are given is a start as well: many are nearly aligned
    as_given = torch.eye(3).to(best.rotation)[None]
    rotation = torch.cat([as_given, best.rotation, *(c.rotation for c in more)])
    shift = torch.cat([best.shift.new_zeros(1, 3), best.shift, *(c.shift for c in more)])
    fine = Target.of(small, spectrum, kmax=pair.middle)
    motion = refine(spectrum, fine, Motion(rotation, shift, rotation.new_zeros(len(rotation))), steps=4)
    motion = refine(spectrum, fine, motion.take(motion.score.argsort(descending=True)[:3]), steps=8)
    motion = motion.take(motion.score.argmax()[None])
    return Found(motion, _z(spectrum, small, first, motion))


def search_partial(pair: Pair, extra: Motion | None) -> Found:
    """The best motion of one hand, compared within the support of the smaller map."""
    small_moving, small = pair.low(pair.middle)
    spectrum = Spectrum.of(small_moving, gradient=True)
    fields = search_fields(small_moving, small)
    whole = search_translations(spectrum, small, kmax=min(COARSE_KMAX, pair.middle))
    parts = [(c.rotation[:64], c.shift[:64]) for c in (fields, whole)]
    if extra is not None:
        parts.append((extra.rotation, extra.shift))
    rotation, shift = (torch.cat(columns) for columns in zip(*parts, strict=True))
    coarse = Target.of(small, spectrum, kmax=min(10, pair.middle))
    starts = refine(spectrum, coarse, Motion(rotation, shift, rotation.new_zeros(len(rotation))), steps=6)
    motion = best_overlay(
        whitened(small_moving, kmax=pair.middle),
        whitened(small, kmax=pair.middle),
        distinct(starts, keep=24),
        shared=Shared.between(small_moving, small),
    )
    return Found(motion, _z(spectrum, small, whole, motion))


def polish(pair: Pair, start: Motion) -> Motion:
    """Last refinement over all shells, each weighted by how well the maps agree there."""
    kmax = min(_FINE_KMAX, shells_to(0.0001, pair.reference))
    small_moving, small_reference = pair.low(kmax)
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
        return Motion(motion.rotation, motion.shift, start.score)
    target = Target.of(small_reference, spectrum, kmax=kmax, shell_weight=weight)
    polished = refine(spectrum, target, motion, steps=6)
    return Motion(polished.rotation, polished.shift, start.score)


def under_shared_mask(pair: Pair, motion: Motion) -> Pair:
    """Both maps times the support of the smaller one: what only the larger one has is noise to the other."""
    shared = Shared.between(pair.moving, pair.reference)
    edge_A = pair.reference.box * pair.reference.pixel_size_A
    rotation, shift_A = motion.rotation[0].double(), motion.shift[0].double() * edge_A
    if not shared.of_moving:  # carry the mask from the reference to the moving map
        rotation, shift_A = rotation.T, -rotation.T @ shift_A
    carried = transform_map(shared.mask, rotation=rotation, shift_A=shift_A).values.clamp(0.0, 1.0)
    on_reference, on_moving = (carried, shared.mask.values)[:: 1 if shared.of_moving else -1]
    return replace(
        pair,
        moving=Volume(pair.moving.values * on_moving, pair.moving.pixel_size_A),
        reference=Volume(pair.reference.values * on_reference, pair.reference.pixel_size_A),
    )
