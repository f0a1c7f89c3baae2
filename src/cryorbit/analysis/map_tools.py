"""Small operations on maps that keep every density where viewers show it: grid, symmetry, filters, differences."""

from __future__ import annotations

import torch
from torch import Tensor

from cryorbit.analysis.transform_map import transform_map
from cryorbit.data import Volume
from cryorbit.data.volume import moved_place
from cryorbit.errors import BadInput
from cryorbit.fourier.filters import apply_b_factor, high_pass, low_pass
from cryorbit.fourier.resample import box_crop, box_pad, fourier_resample
from cryorbit.fourier.shells import shell_sum, spread_shells
from cryorbit.geometry.symmetry import point_group

PIXEL_SIZE_WITHIN = 1e-4
"""Relative error of a pixel size asked for: 0.01 voxels over a box of 100."""

_MOST_PADDING = 128


def crop_map(volume: Volume, *, box: int) -> Volume:
    """The central `box` voxels per edge, or zeros around where that is larger; index N // 2 stays in its place.

    Raises
    ------
    BadInput
        If the box is not positive.
    """
    if box < 1:
        raise BadInput(f"crop: a box of {box} voxels makes no sense. Give a positive number.")
    change = box_crop if box < volume.box else box_pad
    values = change(volume.values, box, ndim=3)
    first = volume.box // 2 - box // 2
    origin, nstart = moved_place(volume.origin_A, volume.nstart, (first, first, first), volume.pixel_size_A)
    return Volume(values, volume.pixel_size_A, origin, nstart)


def resample_map(volume: Volume, *, box: int | None = None, pixel_size_A: float | None = None) -> Volume:
    """The same density on a finer or coarser grid, by its Fourier transform; index N // 2 stays in its place.

    Parameters
    ----------
    box
        New number of voxels per edge. Alone: of the same field of view. With a pixel size: the field of view follows,
        cut or padded with zeros.
    pixel_size_A
        New voxel size, met within 1e-4 (the map is padded before the transform to a box where that is so).

    Raises
    ------
    BadInput
        If neither is given, or one is not positive.
    """
    if box is None and pixel_size_A is None:
        raise BadInput("resample: neither a pixel size nor a box was given. Give one of them, or both.")
    if (box is not None and box < 2) or (pixel_size_A is not None and not pixel_size_A > 0):
        raise BadInput(f"resample: box {box} and pixel size {pixel_size_A} A: give positive numbers.")
    if pixel_size_A is None:
        assert box is not None
        return _on_box(volume, box)
    padded, fine = _padding_for(volume, pixel_size_A)
    wide = _on_box(crop_map(volume, box=padded), fine)
    wanted = round(volume.box * volume.pixel_size_A / pixel_size_A) if box is None else box
    return crop_map(wide, box=max(2, wanted))


def _padding_for(volume: Volume, pixel_size_A: float) -> tuple[int, int]:
    """The smallest padded box, and the box it becomes, that meet a pixel size; the best one if none does."""
    ratio = volume.pixel_size_A / pixel_size_A
    best = (float("inf"), volume.box, max(2, round(volume.box * ratio)))
    for padded in range(volume.box, volume.box + _MOST_PADDING + 1):
        fine = max(2, round(padded * ratio))
        error = abs(padded * ratio / fine - 1.0)
        if error < best[0] - 1e-12:
            best = (error, padded, fine)
        if error < PIXEL_SIZE_WITHIN:
            break
    return best[1], best[2]


def _on_box(volume: Volume, n: int) -> Volume:
    """Another number of voxels over the same field of view."""
    if n == volume.box:
        return volume
    pixel = volume.pixel_size_A * volume.box / n
    values = fourier_resample(volume.values, n, ndim=3)
    middle = volume.box // 2 * volume.pixel_size_A
    x, y, z = (p + middle - n // 2 * pixel for p in volume.place_A)
    moved = any(abs(v) > 1e-6 for v in (x, y, z))
    return Volume(values, pixel, (x, y, z) if moved else (0.0, 0.0, 0.0))


def symmetrise_map(volume: Volume, *, symmetry: str) -> Volume:
    """The mean over a point group about index N // 2, in RELION's settings.

    Raises
    ------
    BadInput
        If there is no such group.
    """
    group = point_group(symmetry)
    total = volume.values.clone()
    for element in group[1:]:
        total += transform_map(volume, rotation=element, shift_A=torch.zeros(3)).values
    return Volume(total / len(group), volume.pixel_size_A, volume.origin_A, volume.nstart)


def filter_map(
    volume: Volume,
    *,
    low_pass_A: float | None = None,
    high_pass_A: float | None = None,
    b_factor_A2: float = 0.0,
) -> Volume:
    """Low-pass, high-pass (angstrom) and exp(-B s^2 / 4): a negative B sharpens. In that order, all linear.

    Raises
    ------
    BadInput
        If a resolution is not positive.
    """
    values, pixel = volume.values, volume.pixel_size_A
    if low_pass_A is not None:
        values = low_pass(values, resolution_A=low_pass_A, pixel_size_A=pixel, ndim=3)
    if high_pass_A is not None:
        values = high_pass(values, resolution_A=high_pass_A, pixel_size_A=pixel, ndim=3)
    if b_factor_A2:
        values = apply_b_factor(values, b_factor_A2=b_factor_A2, pixel_size_A=pixel, ndim=3)
    return Volume(values, pixel, volume.origin_A, volume.nstart)


def scaled_to(moving: Volume, reference: Volume, *, mask: Volume | None = None) -> Volume:
    """The map with the reference's root mean square amplitude in every shell, measured under the mask.

    Raises
    ------
    BadInput
        If the boxes differ.
    """
    for name, other in (("second map", moving), ("mask", mask)):
        if other is not None and other.box != reference.box:
            raise BadInput(
                f"diff: the first map has box {reference.box}, the {name} {other.box}. "
                "Bring it onto the first with `cryorbit map align`."
            )
    n = reference.box
    under = 1.0 if mask is None else mask.values

    def power(values: Tensor) -> Tensor:
        return shell_sum(torch.fft.rfftn(values * under).abs().double() ** 2, n=n, ndim=3)

    ours, theirs = power(reference.values), power(moving.values)
    factor = torch.where(theirs > 0, (ours / theirs.clamp_min(1e-300)).sqrt(), 0.0)
    transform = torch.fft.rfftn(moving.values) * spread_shells(factor.to(moving.values), n=n, ndim=3)
    values = torch.fft.irfftn(transform, s=moving.values.shape)
    return Volume(values, reference.pixel_size_A, reference.origin_A, reference.nstart)


def difference_map(
    a: Volume, b: Volume, *, low_pass_A: float | None = None, mask: Volume | None = None
) -> Volume:
    """A minus B, B scaled to A's amplitude shell by shell (under the mask, if given); on A's grid.

    Both should be aligned and cut at the resolution that both reach: `low_pass_A`.

    Raises
    ------
    BadInput
        If boxes or pixel sizes differ.
    """
    if abs(a.pixel_size_A - b.pixel_size_A) > 1e-3 * a.pixel_size_A:
        raise BadInput(
            f"diff: pixel sizes differ: {a.pixel_size_A:g} A and {b.pixel_size_A:g} A. "
            "Bring one map onto the other with `cryorbit map align`."
        )
    scaled = scaled_to(b, a, mask=mask)
    change = Volume(a.values - scaled.values, a.pixel_size_A, a.origin_A, a.nstart)
    if mask is not None:
        change = Volume(change.values * mask.values, a.pixel_size_A, a.origin_A, a.nstart)
    return change if low_pass_A is None else filter_map(change, low_pass_A=low_pass_A)
