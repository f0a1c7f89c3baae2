"""The device code of `splat_triton`, in Triton's dialect of Python: one program per image and Gaussian.

Imported on first use by `splat_triton`, since importing it imports Triton. Where Triton is missing the functions stay plain,
so that tools can read this file, and nothing calls them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

try:
    triton: Any = importlib.import_module("triton")
    tl: Any = importlib.import_module("triton.language")
except ImportError:
    triton = tl = None

if TYPE_CHECKING:
    constexpr = int
else:
    constexpr = getattr(
        tl, "constexpr", int
    )  # fixed at compile time: Triton goes by the name and by what it is


def _jit(function: Callable[..., Any]) -> Any:
    """Triton reads a function's source; whatever wraps it, such as a checker of arguments, is in the way."""
    return function if triton is None else triton.jit(inspect.unwrap(function))


@_jit
def _wrapped(pixel, size) -> Any:
    """Pixels below 2 size, back on the periodic grid."""
    return tl.where(pixel >= size, pixel - size, pixel)


@_jit
def _axis(at, half, size) -> Any:
    """One axis of a patch: offset of its first pixel from the centre, that pixel's place on the grid, how many follow."""
    start = tl.ceil(at - half)
    pixel = start.to(tl.int32) % size
    pixel = tl.where(pixel < 0, pixel + size, pixel)  # remainders have the sign of what was divided
    return start - at, pixel, tl.maximum(tl.ceil(2 * half).to(tl.int32), 1)


@_jit
def _total(part) -> Any:
    """The sum over a tile."""
    return tl.sum(tl.sum(part, axis=1), axis=0)


@_jit
def splat_patch(
    centre,
    weight,
    precision,
    reach,
    grid,
    to_centre,
    to_weight,
    to_precision,
    n,
    size,
    weight_step,
    precision_step,
    reach_step,
    dim: constexpr,
    isotropic: constexpr,
    to_grid: constexpr,
    rows: constexpr,
    columns: constexpr,
) -> None:
    """Adds one Gaussian's patch to its image's grid, or reads that patch and writes the Gaussian's gradients.

    Pointers to contiguous fields of `splat_torch.Cloud`; steps from one image to the next in elements, 0 where all share a
    field. A patch is walked in tiles of `rows` by `columns` pixels, neither larger than the grid.
    """
    program = tl.program_id(0)
    image = (program // n).to(tl.int64)
    j = program % n
    program = program.to(tl.int64)
    centre += program * dim
    reach += image * reach_step + j * dim
    offset_x, first_x, count_x = _axis(tl.load(centre), tl.load(reach), size)
    offset_y, first_y, count_y = _axis(tl.load(centre + 1), tl.load(reach + 1), size)
    if dim == 3:
        offset_z, z, count_z = _axis(tl.load(centre + 2), tl.load(reach + 2), size)
        own = grid + image * size * size * size
    else:
        offset_z, z, count_z = 0, 0, 1
        own = grid + image * size * size
    height = tl.load(weight + image * weight_step + j)
    p_xy, p_xz, p_yz, p_zz = 0, 0, 0, 0
    if isotropic:  # as a matrix: exp(-p d^2) = exp(-d^T (2 p) d / 2)
        p_xx = 2 * tl.load(precision + image * precision_step + j)
        p_yy, p_zz = p_xx, p_xx
    else:
        matrix = precision + image * precision_step + j * dim * dim
        p_xx, p_xy, p_yy = tl.load(matrix), tl.load(matrix + 1), tl.load(matrix + dim + 1)
        if dim == 3:
            p_xz, p_yz, p_zz = tl.load(matrix + 2), tl.load(matrix + 5), tl.load(matrix + 8)

    column = tl.arange(0, columns)[None, :]
    row = tl.arange(0, rows)[:, None]
    # Sums of the patch times its values, and times products of the offsets: what no output needs, the compiler drops.
    sum_1 = tl.zeros([rows, columns], centre.dtype.element_ty)
    sum_x, sum_y, sum_z = sum_1, sum_1, sum_1
    sum_xx, sum_xy, sum_yy, sum_xz, sum_yz, sum_zz = sum_1, sum_1, sum_1, sum_1, sum_1, sum_1
    for layer in range(0, count_z):
        plane, dz = own, offset_z + layer
        if dim == 3:
            plane = own + tl.cast(z, tl.int64) * size * size
            z = _wrapped(z + 1, size)
        y = first_y
        for line in range(0, count_y, rows):
            dy = offset_y + (line + row)
            lines = plane + _wrapped(y + row, size) * size
            x = first_x
            for start in range(0, count_x, columns):
                dx = offset_x + (start + column)
                form = p_xx * dx * dx + p_yy * dy * dy
                if not isotropic:
                    form += 2 * p_xy * dx * dy
                if dim == 3:
                    form += p_zz * dz * dz
                    if not isotropic:
                        form += 2 * dz * (p_xz * dx + p_yz * dy)
                value = tl.exp(-0.5 * form)
                there = lines + _wrapped(x + column, size)
                inside = (line + row < count_y) & (start + column < count_x)
                if to_grid:
                    tl.atomic_add(there, height * value, mask=inside, sem="relaxed")
                else:
                    value *= tl.load(there, mask=inside, other=0.0)
                    sum_1 += value
                    sum_x += dx * value
                    sum_y += dy * value
                    sum_xx += dx * dx * value
                    sum_xy += dx * dy * value
                    sum_yy += dy * dy * value
                    if dim == 3:
                        sum_z += dz * value
                        sum_xz += dx * dz * value
                        sum_yz += dy * dz * value
                        sum_zz += dz * dz * value
                x = _wrapped(x + columns, size)
            y = _wrapped(y + rows, size)

    if not to_grid:
        m_x, m_y, m_xx, m_yy = _total(sum_x), _total(sum_y), _total(sum_xx), _total(sum_yy)
        m_z, m_zz = 0, 0
        if dim == 3:
            m_z, m_zz = _total(sum_z), _total(sum_zz)
        tl.store(to_weight + program, _total(sum_1))
        to_centre += program * dim
        tl.store(to_centre, height * (p_xx * m_x + p_xy * m_y + p_xz * m_z))
        tl.store(to_centre + 1, height * (p_xy * m_x + p_yy * m_y + p_yz * m_z))
        if dim == 3:
            tl.store(to_centre + 2, height * (p_xz * m_x + p_yz * m_y + p_zz * m_z))
        if isotropic:
            tl.store(to_precision + program, -height * (m_xx + m_yy + m_zz))
        else:
            half = -0.5 * height
            xy = half * _total(sum_xy)
            to_precision += program * dim * dim
            tl.store(to_precision, half * m_xx)
            tl.store(to_precision + 1, xy)
            tl.store(to_precision + dim, xy)
            tl.store(to_precision + dim + 1, half * m_yy)
            if dim == 3:
                xz, yz = half * _total(sum_xz), half * _total(sum_yz)
                tl.store(to_precision + 2, xz)
                tl.store(to_precision + 5, yz)
                tl.store(to_precision + 6, xz)
                tl.store(to_precision + 7, yz)
                tl.store(to_precision + 8, half * m_zz)
