"""Central slices of a map: projections through the Fourier slice theorem, and their exact adjoint.

I^(kx, ky) = V^(A^T (kx, ky, 0)). The map is divided by sinc^2 (the transform of the trilinear kernel), padded to twice
its edge and transformed; slices are read by trilinear interpolation from the stored half. Two modes:

- `exact`: the whole padded plane is read, transformed back and cropped, so that the images' own aliases are cut away;
- `fast`: every second point of the padded plane is read, which is the image's own transform directly.

Measured errors are in tests/physics/test_project.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryorbit.data import Pose, Volume
from cryorbit.errors import BadInput

Mode = Literal["exact", "fast"]

_BLOCK = 64

_CHUNK = 1 << 14
"""Points read at once, so that what lies between two steps stays in the processor's cache."""


@dataclass(frozen=True, eq=False)
class FourierVolume:
    """A map made ready for slicing: V^(k) of the sinc^2-corrected map, padded to twice its edge.

    Parameters
    ----------
    half
        Shape (2 box, 2 box, box + 1): z and y centred (index `box` is frequency 0), x from 0. Unnormalised forward
        transform with the origin at the map's pixel box // 2.
    box, pixel_size_A
        Of the map and of the images.
    """

    half: Complex[Tensor, "p p h"]
    box: int
    pixel_size_A: float

    def __post_init__(self) -> None:
        p = 2 * self.box
        if tuple(self.half.shape) != (p, p, self.box + 1):
            raise BadInput(
                f"FourierVolume: box {self.box} wants a half transform ({p}, {p}, {self.box + 1}), "
                f"got {tuple(self.half.shape)}. Make it with prepare()."
            )


@dataclass(frozen=True, eq=False)
class HalfPlane:
    """The lattice points of a half plane that are read: k = (kx, ky) and where each goes in the rfft2 layout."""

    kx: Float[Tensor, "m"]
    ky: Float[Tensor, "m"]
    position: Int[Tensor, "m"]
    rows: int
    columns: int


def prepare(volume: Volume) -> FourierVolume:
    """Correct, pad and transform a map once, for any number of projections; differentiable in its values."""
    n, values = volume.box, volume.values
    correction = 1 / _sinc_squared(n, values)
    values = values * correction[:, None, None] * correction[:, None] * correction
    # One axis at a time, so that lines of zeros are never transformed.
    half = torch.fft.rfft(_pad_origin_first(values, 2), dim=2)
    half = torch.fft.fft(_pad_origin_first(half, 1), dim=1)
    half = torch.fft.fft(_pad_origin_first(half, 0), dim=0)
    return FourierVolume(torch.fft.fftshift(half, dim=(0, 1)), n, volume.pixel_size_A)


def half_plane(
    box: int,
    *,
    step: int,
    radius: float,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> HalfPlane:
    """The points of the rfft2 half plane of `box` pixels with |k| <= radius, in units of 1 / box times `step`."""
    columns = box // 2 + 1
    ky, kx = torch.meshgrid(
        torch.fft.fftfreq(box, d=1 / box, device=device, dtype=torch.float64).round(),
        torch.arange(columns, device=device, dtype=torch.float64),
        indexing="ij",
    )
    position = torch.nonzero((kx * kx + ky * ky).reshape(-1) <= radius * radius)[:, 0]
    return HalfPlane(
        (step * kx).reshape(-1)[position].to(dtype),
        (step * ky).reshape(-1)[position].to(dtype),
        position,
        box,
        columns,
    )


def slices(
    prepared: FourierVolume, rotation: Float[Tensor, "n 3 3"], *, mode: Mode = "fast"
) -> Complex[Tensor, "n box half"]:
    """Transforms of the projections as `torch.fft.rfft2` lays them out, origin of the image at pixel box // 2.

    Frequencies outside the Nyquist circle are zero. Differentiable in `prepared.half` and in `rotation`; a
    rotation may be any matrix (a magnification M enters as M^T A), of which the first two rows are used.
    """
    if mode == "exact":
        return torch.fft.rfft2(torch.fft.ifftshift(_exact_images(prepared, rotation), dim=(-2, -1)))
    if mode != "fast":
        raise BadInput(f"project: mode {mode!r} is not known. Choose 'exact' or 'fast'.")
    return _read_plane(prepared, rotation, box=prepared.box, step=2)


def read_points(
    prepared: FourierVolume, rotation: Float[Tensor, "n 3 3"], points: HalfPlane
) -> Complex[Tensor, "n m"]:
    """Trilinear values of the transform at B^T (kx, ky, 0) for each rotation B and each point of the half plane.

    Every rotated point must stay below box - 1 lattice units of the padded transform.
    """
    return _Slices.apply(prepared.half, rotation.to(points.kx.dtype), points.kx, points.ky)


def add_points(
    half: Complex[Tensor, "p p h"],
    weight: Float[Tensor, "p p h"],
    rotation: Float[Tensor, "n 3 3"],
    points: HalfPlane,
    values: Complex[Tensor, "n m"],
    counts: Float[Tensor, "n m"],
) -> None:
    """The transpose of `read_points`, in place: add `values` to `half` and the real `counts` to `weight`.

    The mates of points with x < 1 are missing from the plane x = 0 until `complete_plane`.
    """
    kx, ky = _whole_blocks(points.kx), _whole_blocks(points.ky)
    pairs = _whole_blocks(torch.view_as_real(values.resolve_conj()).flatten(1), 2 * _BLOCK)
    counts = _whole_blocks(counts)
    for part, cells in _parts(rotation.to(kx), kx, ky, half.shape[0]):
        cells.add(half.view(-1), pairs[part])
        cells.add_real(weight.view(-1), counts[part])


def complete_plane(half: Complex[Tensor, "p p h"] | Float[Tensor, "p p h"]) -> None:
    """Add to the plane x = 0 what the Friedel mates of the added points would have put there, in place."""
    plane = half[:, :, 0]
    plane += plane.flip(0, 1).roll((1, 1), (0, 1)).conj().clone()


def finish(half: Complex[Tensor, "p p h"], *, box: int) -> Float[Tensor, "box box box"]:
    """The map whose padded transform is `half`: the inverse of `prepare`, sinc^2 included."""
    rows = torch.fft.ifft(torch.fft.ifftshift(half, dim=(0, 1)), dim=0)
    rows = torch.fft.ifft(_crop_origin_first(rows, 0, box), dim=1)
    values = torch.fft.irfft(_crop_origin_first(rows, 1, box), n=2 * box, dim=2)
    values = _crop_origin_first(values, 2, box)
    correction = 1 / _sinc_squared(box, values)
    return values * correction[:, None, None] * correction[:, None] * correction


def project_prepared(
    prepared: FourierVolume, pose: Pose, *, mode: Mode = "exact"
) -> Float[Tensor, "n box box"]:
    """`project` without transforming the map again."""
    still = not pose.shift_A.requires_grad and not bool((pose.shift_A != 0).any())
    if mode == "exact" and still:
        return _exact_images(prepared, pose.rotation)
    plane = slices(prepared, pose.rotation, mode=mode)
    if not still:
        plane = plane * shift_phase(pose.shift_A, prepared.box, pixel_size_A=prepared.pixel_size_A)
    return images_of(plane, prepared.box)


def project(volume: Volume, pose: Pose, *, mode: Mode = "exact") -> Float[Tensor, "n box box"]:
    """Sum along the viewing direction of the map as it sits in each pose; shifts move the image circularly.

    Parameters
    ----------
    mode
        "exact": relative error 0.02 on a particle that fills 0.8 of the box; "fast": 0.05, and about four times less
        work. Both drop what lies outside the Nyquist circle.
    """
    return project_prepared(prepare(volume), pose, mode=mode)


def project_adjoint(
    images: Float[Tensor, "n box box"], pose: Pose, *, pixel_size_A: float, mode: Mode = "exact"
) -> Volume:
    """The exact adjoint of `project`: <project(v), y> = <v, project_adjoint(y)> for any v and y."""
    box = images.shape[-1]
    with torch.enable_grad():
        zero = images.new_zeros((box, box, box)).requires_grad_()
        projected = project(Volume(zero, pixel_size_A), pose, mode=mode)
        (values,) = torch.autograd.grad(projected, zero, images)
    return Volume(values, pixel_size_A)


def shift_phase(
    shift_A: Float[Tensor, "n 2"], box: int, *, pixel_size_A: float
) -> Complex[Tensor, "n box half"]:
    """exp(-2 pi i k . shift) on the half plane of rfft2: moves the content of an image by +shift, circularly.

    The Nyquist column and row of an even box get the cosine alone, which keeps the image real.
    """
    fraction = shift_A / (box * pixel_size_A)
    factors = []
    for axis, k in ((0, torch.arange(box // 2 + 1)), (1, torch.fft.fftfreq(box, d=1 / box).round())):
        angle = (-2 * torch.pi) * fraction[:, axis, None] * k.to(fraction)
        factor = torch.polar(torch.ones_like(angle), angle)
        if box % 2 == 0:
            nyquist = (k.abs() == box // 2).to(fraction.device)
            factor = torch.where(nyquist, factor.real.to(factor.dtype), factor)
        factors.append(factor)
    return factors[1][:, :, None] * factors[0][:, None, :]


def images_of(plane: Complex[Tensor, "n box half"], box: int) -> Float[Tensor, "n box box"]:
    """Images, origin at pixel box // 2, of transforms as `slices` returns them."""
    return torch.fft.fftshift(torch.fft.irfft2(plane, s=(box, box)), dim=(-2, -1))


def transforms_of(images: Float[Tensor, "*n box box"]) -> Complex[Tensor, "*n box half"]:
    """The inverse of `images_of`."""
    return torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))


def _exact_images(prepared: FourierVolume, rotation: Tensor) -> Tensor:
    n = prepared.box
    plane = _read_plane(prepared, rotation, box=2 * n, step=1)
    rows = torch.fft.ifft(plane, dim=1)
    rows = _crop_origin_first(rows, 1, n)
    return _crop_origin_first(torch.fft.irfft(rows, n=2 * n, dim=2), 2, n)


def _read_plane(prepared: FourierVolume, rotation: Tensor, *, box: int, step: int) -> Tensor:
    if rotation.ndim != 3 or tuple(rotation.shape[1:]) != (3, 3):
        raise BadInput(f"project: wanted rotations (n, 3, 3), got {tuple(rotation.shape)}.")
    real = prepared.half.real
    with torch.no_grad():
        # A matrix that stretches frequencies (anisotropic magnification) must not leave the stored lattice.
        stretch = max(1.0, float(torch.linalg.matrix_norm(rotation.detach(), ord=2).max()) - 1e-6)
    points = half_plane(
        box,
        step=step,
        radius=(prepared.box - 1 - 1e-3) / (step * stretch),
        device=real.device,
        dtype=real.dtype,
    )
    values = read_points(prepared, rotation, points)
    plane = values.new_zeros((rotation.shape[0], box * points.columns))
    plane = plane.index_copy(1, points.position, values)
    return plane.view(-1, box, points.columns)


class _Slices(torch.autograd.Function):
    """Trilinear reading of planes from the stored half, with the backward written out.

    Where rotations want a gradient, forward keeps the slope of each value along x, y, z, so that backward need not read
    the volume again. Backward adds all corners into one gradient buffer; automatic differentiation would make one such
    buffer per corner. Its measured gain over `grid_sample` is printed by tests/speed/test_projector.py.
    """

    @staticmethod
    def forward(ctx: Any, half: Tensor, rotation: Tensor, kx: Tensor, ky: Tensor) -> Tensor:
        n, m = rotation.shape[0], kx.shape[0]
        kx, ky = _whole_blocks(kx), _whole_blocks(ky)
        value = kx.new_empty((n, 2 * kx.shape[0]))
        slope = kx.new_empty((3, n, 2 * kx.shape[0])) if ctx.needs_input_grad[1] else None
        flat = half.reshape(-1)
        for part, cells in _parts(rotation, kx, ky, half.shape[0]):
            cells.read(flat, value[part], None if slope is None else slope[:, part])
        ctx.save_for_backward(rotation, kx, ky, slope)
        ctx.half_shape = half.shape
        return torch.view_as_complex(value.view(n, -1, 2))[:, :m]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rotation, kx, ky, slope = ctx.saved_tensors
        gradient = _whole_blocks(torch.view_as_real(grads[0].resolve_conj()).flatten(1), 2 * _BLOCK)
        to_half = to_rotation = None
        if ctx.needs_input_grad[0]:
            to_half = torch.zeros(ctx.half_shape, dtype=grads[0].dtype, device=gradient.device)
            for part, cells in _parts(rotation, kx, ky, to_half.shape[0]):
                cells.add(to_half.view(-1), gradient[part])
        if slope is not None:
            to_rotation = torch.zeros_like(rotation)
            weighted = torch.stack([gradient * k.repeat_interleave(2) for k in (kx, ky)], dim=1)
            to_rotation[:, :2] = weighted @ slope.permute(1, 2, 0)
        return to_half, to_rotation, None, None


class _Cells:
    """The lattice cells that the points of a few planes fall into, handled `_BLOCK` points at a time.

    Complex values are interleaved floats. All eight corners of a block are touched before the next block, while their
    cache lines are near. Every buffer is made once and used for all planes: fresh memory would cost as much as the
    arithmetic.
    """

    def __init__(self, planes: int, kx: Tensor, ky: Tensor, p: int) -> None:
        m = planes * kx.shape[0]
        blocks, h, device = m // _BLOCK, p // 2 + 1, kx.device
        kind = torch.int32 if p * p * h < 2**31 else torch.int64
        corner = [(dz * p + dy) * h + dx for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)]
        self.kx, self.ky = kx, ky
        self.strides = (1, h, p * h)
        self.offset = (torch.tensor(corner, dtype=kind, device=device) + p // 2 * (p + 1) * h)[:, None]
        self.point, self.cell = kx.new_empty((3, planes, kx.shape[0])), kx.new_empty((3, m))
        self.sign = kx.new_empty(m)
        self.whole = torch.empty((3, m), dtype=kind, device=device)
        self.index = torch.empty((blocks, 8, _BLOCK), dtype=kind, device=device)
        self.fraction = kx.new_empty((3, blocks, 1, 2 * _BLOCK))
        self.own = kx.new_empty((blocks, 1, 2 * _BLOCK))
        self.corner = kx.new_empty((blocks, 2, 2, 2, 2 * _BLOCK))
        self.edge, self.edge_x = (kx.new_empty((blocks, 2, 2, 2 * _BLOCK)) for _ in range(2))
        self.face, self.face_x, self.face_y = (kx.new_empty((blocks, 2, 2 * _BLOCK)) for _ in range(3))

    def locate(self, rotation: Tensor) -> None:
        """Find the cells (`index` of their corners), the place within them (`fraction`: x, y, z, each given twice), and
        `sign`: -1 where the Friedel mate is used.
        """
        column = rotation[:, :2].permute(2, 0, 1)[..., None]
        torch.mul(column[:, :, 0], self.kx, out=self.point)
        point = self.point.addcmul_(column[:, :, 1], self.ky).view(3, -1)
        # -0 + 0 = +0: the origin is not reflected.
        self.sign.fill_(1).copysign_(point[0].add_(0.0))
        point *= self.sign
        torch.floor(point, out=self.cell)
        self.fraction.view(3, -1, 2).copy_(point.sub_(self.cell)[..., None])
        x, y, z = self.whole.copy_(self.cell)
        base = z.mul_(self.strides[2]).add_(y.mul_(self.strides[1])).add_(x)
        torch.add(base.view(-1, 1, _BLOCK), self.offset, out=self.index)

    def read(self, flat: Tensor, value: Tensor, slope: Tensor | None) -> None:
        """Write the values (pairs of floats), and their slopes along x, y, z of the point, shape (3, ...)."""
        fx, fy, fz = self.fraction
        torch.index_select(flat, 0, self.index.view(-1), out=torch.view_as_complex(self.corner.view(-1, 2)))
        low, high = self.corner[..., 0, :], self.corner[..., 1, :]
        edge, face = self.edge, self.face
        torch.lerp(low, high, fx[:, None], out=edge)
        torch.lerp(edge[:, :, 0], edge[:, :, 1], fy, out=face)
        torch.lerp(face[:, :1], face[:, 1:], fz, out=value.view(-1, 1, 2 * _BLOCK))
        value.view(-1, 2)[:, 1].mul_(self.sign)
        if slope is None:
            return
        dx, dy, dz = (s.view(-1, 1, 2 * _BLOCK) for s in slope)
        torch.sub(face[:, 1:], face[:, :1], out=dz)
        torch.sub(edge[:, :, 1], edge[:, :, 0], out=self.face_y)
        torch.lerp(self.face_y[:, :1], self.face_y[:, 1:], fz, out=dy)
        torch.sub(high, low, out=self.edge_x)
        torch.lerp(self.edge_x[:, :, 0], self.edge_x[:, :, 1], fy, out=self.face_x)
        torch.lerp(self.face_x[:, :1], self.face_x[:, 1:], fz, out=dx)
        # V(p) = conj V(-p): the slope is reversed, and conjugated.
        slope.view(3, -1, 2)[:, :, 0].mul_(self.sign)

    def add(self, flat: Tensor, incoming: Tensor) -> None:
        """The transpose of `read`: add the incoming values (pairs of floats) to the corners."""
        fx, fy, fz = self.fraction
        own = self.own.copy_(incoming.reshape(self.own.shape))
        own.view(-1, 2)[:, 1].mul_(self.sign)
        face, edge, share = self.face, self.edge, self.corner
        torch.mul(own, fz, out=face[:, 1:])
        torch.sub(own, face[:, 1:], out=face[:, :1])
        torch.mul(face, fy, out=edge[:, :, 1])
        torch.sub(face, edge[:, :, 1], out=edge[:, :, 0])
        torch.mul(edge, fx[:, None], out=share[..., 1, :])
        torch.sub(edge, share[..., 1, :], out=share[..., 0, :])
        flat.index_add_(0, self.index.view(-1), torch.view_as_complex(share.view(-1, 2)))

    def add_real(self, flat: Tensor, incoming: Tensor) -> None:
        """Add real, even values (one float per point) to the corners: weights that count what `add` added."""
        fx, fy, fz = self.fraction[..., 0::2]
        upper = incoming.reshape(-1, 1, _BLOCK) * fz
        face = torch.cat((incoming.reshape(-1, 1, _BLOCK) - upper, upper), dim=1)
        upper = face * fy
        edge = torch.stack((face - upper, upper), dim=2)
        upper = edge * fx[:, None]
        flat.index_add_(0, self.index.view(-1), torch.stack((edge - upper, upper), dim=3).view(-1))


def _parts(rotation: Tensor, kx: Tensor, ky: Tensor, p: int) -> Iterator[tuple[slice, _Cells]]:
    """A few planes at a time with their cells, so that what lies between two steps stays in the cache."""
    step = max(1, (_CHUNK if rotation.device.type == "cpu" else 64 * _CHUNK) // max(1, kx.shape[0]))
    cells = _Cells(min(step, rotation.shape[0]), kx, ky, p)
    for start in range(0, rotation.shape[0], step):
        part = rotation[start : start + step]
        if part.shape[0] != cells.point.shape[1]:
            cells = _Cells(part.shape[0], kx, ky, p)
        cells.locate(part)
        yield slice(start, start + step), cells


def _whole_blocks(x: Tensor, block: int = _BLOCK) -> Tensor:
    """Zeros behind the last axis, up to a multiple of the block."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % block))


def _sinc_squared(n: int, like: Tensor) -> Tensor:
    """Transform of the linear kernel on a lattice of 2n, at the n pixels of the map."""
    x = torch.arange(n, device=like.device, dtype=like.dtype) - n // 2
    return torch.sinc(x / (2 * n)) ** 2


def _pad_origin_first(x: Tensor, dim: int) -> Tensor:
    """Zero-pad one axis to twice its length and bring the origin (index n // 2) to index 0."""
    n = x.shape[dim]
    shape = list(x.shape)
    shape[dim] = n
    return torch.cat(
        (x.narrow(dim, n // 2, n - n // 2), x.new_zeros(shape), x.narrow(dim, 0, n // 2)), dim=dim
    )


def _crop_origin_first(x: Tensor, dim: int, n: int) -> Tensor:
    """The transpose of `_pad_origin_first`."""
    p = x.shape[dim]
    return torch.cat((x.narrow(dim, p - n // 2, n // 2), x.narrow(dim, 0, n - n // 2)), dim=dim)
