"""Gaussians to images and to maps: analytic projections, free of aliasing, with the backward pass written out.

A Gaussian stays one when it is projected: rho_j in a pose gives (amplitude / pixel) N_2(u; c_j, C_j), c = (A x)_xy +
shift and C the upper left block of A C A^T, so that the transform of an image is

    I^(k) = CTF(k) / pixel^3  sum_j amplitude_j exp(-2 pi^2 k^T C_j k) exp(-2 pi i k c_j).

The sum is made on a grid that is fine enough (`splat_plan`), by patches of a few standard deviations, then transformed,
cropped and multiplied once (`splat_transform`, by `splat_kernel`, `splat_triton` or `splat_torch`). `splat_exact` has
the same sums frequency by frequency. Images are periodic, as everywhere in `physics`; the Nyquist samples of an even box
stand for both signs and are zero. CTFs get no gradient.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.data import CTF, Gaussians, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.physics.formation import plane_matrix, transfer_of
from cryorbit.physics.project import images_of
from cryorbit.physics.splat_plan import REACH, FineGrid, fine_grid
from cryorbit.physics.splat_torch import Cloud
from cryorbit.physics.splat_transform import Backend, summed_transform


def splat_images(
    gaussians: Gaussians,
    pose: Pose,
    ctf: CTF | None = None,
    *,
    box: int,
    pixel_size_A: float,
    backend: Backend = "auto",
) -> Float[Tensor, "b box box"]:
    """Images of Gaussians in poses, on the scale of `physics.project` of their map; differentiable.

    The sum over the pixels times pixel_size_A^3 is the sum of the amplitudes (times CTF(0)). Arguments and errors are those
    of `splat_transforms`.
    """
    plane = splat_transforms(gaussians, pose, ctf, box=box, pixel_size_A=pixel_size_A, backend=backend)
    return images_of(plane, box)


def splat_transforms(
    gaussians: Gaussians,
    pose: Pose,
    ctf: CTF | None = None,
    *,
    box: int,
    pixel_size_A: float,
    backend: Backend = "auto",
) -> Complex[Tensor, "b box half"]:
    """Transforms of `splat_images`, in the layout of `torch.fft.rfft2`, origin at pixel box // 2.

    Differentiable in positions, amplitudes, widths, rotations and shifts. Relative error to the exact sum below Nyquist at
    most 1e-4, for any width (tests/physics/test_splat.py).

    Parameters
    ----------
    gaussians
        Shared by all images, or with one conformation per pose.
    backend
        "compiled": the C++ kernel, on the CPU; "triton": the Triton kernel, on a CUDA device; "torch": plain torch, on any
        device; "auto": the C++ kernel where it can be built and holds the widths, else plain torch.

    Raises
    ------
    BadInput
        If the numbers of poses, conformations and CTF rows differ, or a kernel was asked for and cannot do it.
    """
    _check_batches(gaussians, pose, ctf)
    matrix = plane_matrix(pose.rotation, ctf).to(gaussians.position_A)[:, :2]
    stretched = ctf is not None and ctf.magnification is not None
    fine = _plan(gaussians, box, pixel_size_A, dim=2)
    scale = fine.size / (box * pixel_size_A)
    centre = gaussians.position_A @ matrix.mT + pose.shift_A.to(matrix)[:, None]
    amplitude = _batched(gaussians.amplitude, 1)
    if gaussians.isotropic and not stretched:
        cloud = _round_cloud(
            centre * scale + fine.size // 2, amplitude, _batched(gaussians.width_A, 1) * scale, fine
        )
    else:
        turned = matrix[:, None] @ _batched(gaussians.factor_A(), 3)
        cloud = _long_cloud(centre * scale + fine.size // 2, amplitude, scale**2 * (turned @ turned.mT), fine)
    transfer = transfer_of(torch.zeros_like(pose.shift_A), ctf, box, pixel_size_A=pixel_size_A)
    factor = _factor(fine, box, dim=2, pixel_size_A=pixel_size_A, like=centre)[None]
    if transfer is not None:
        kind = factor.dtype.to_complex() if transfer.is_complex() else factor.dtype
        factor = factor * transfer.to(kind)
    return summed_transform(cloud, factor.detach(), size=fine.size, box=box, backend=backend)


def map_transform(
    gaussians: Gaussians, *, box: int, pixel_size_A: float, backend: Backend = "auto"
) -> Complex[Tensor, "b box box half"]:
    """Transform of the map of Gaussians, one per conformation, layout of `torch.fft.rfftn`, origin at voxel box // 2.

    Values are densities: the sum over the voxels times pixel_size_A^3 is the sum of the amplitudes. Differentiable.
    """
    fine = _plan(gaussians, box, pixel_size_A, dim=3)
    scale = fine.size / (box * pixel_size_A)
    centre = _batched(gaussians.position_A, 2) * scale + fine.size // 2
    if gaussians.conformations is not None:
        centre = centre.expand(gaussians.conformations, -1, -1)
    amplitude = _batched(gaussians.amplitude, 1)
    if gaussians.isotropic:
        cloud = _round_cloud(centre, amplitude, _batched(gaussians.width_A, 1) * scale, fine)
    else:
        factor_A = _batched(gaussians.width_A, 3)
        cloud = _long_cloud(centre, amplitude, scale**2 * (factor_A @ factor_A.mT), fine)
    factor = _factor(fine, box, dim=3, pixel_size_A=pixel_size_A, like=centre)[None]
    return summed_transform(cloud, factor, size=fine.size, box=box, backend=backend)


def gaussians_to_map(
    gaussians: Gaussians, *, box: int, pixel_size_A: float, backend: Backend = "auto"
) -> Volume:
    """The density of one conformation on a grid, limited to the grid's band, origin at voxel box // 2.

    Raises
    ------
    BadInput
        If the Gaussians have several conformations.
    """
    if gaussians.conformations not in (None, 1):
        raise BadInput(f"gaussians_to_map: {gaussians.conformations} conformations. Choose one of them.")
    transform = map_transform(gaussians, box=box, pixel_size_A=pixel_size_A, backend=backend)[0]
    return Volume(torch.fft.fftshift(torch.fft.irfftn(transform, s=(box,) * 3)), pixel_size_A)


def _check_batches(gaussians: Gaussians, pose: Pose, ctf: CTF | None) -> None:
    n, b = len(pose), gaussians.conformations
    if b is not None and b != n:
        raise BadInput(
            f"splat: {n} poses but {b} conformations. Give one conformation per pose, or one for all."
        )
    if ctf is not None and len(ctf) != n:
        raise BadInput(f"splat: {n} poses but {len(ctf)} CTF rows. Give one row per image.")


def _plan(gaussians: Gaussians, box: int, pixel_size_A: float, *, dim: int) -> FineGrid:
    if len(gaussians) == 0:
        return FineGrid(box + box % 2, 0.0)
    width = gaussians.width_A.detach() / pixel_size_A
    # The least width of any projection is no smaller than the least singular value of the factor.
    sizes = width if gaussians.isotropic else torch.linalg.svdvals(width)
    least, typical = float(sizes.min()), float(sizes.square().mean().sqrt())
    return fine_grid(box, least, typical, count=len(gaussians), dim=dim)


def _batched(field: Tensor, ndim: int) -> Tensor:
    """With a leading axis, of length 1 where all share it."""
    return field[None] if field.ndim == ndim else field


def _round_cloud(centre: Tensor, amplitude: Tensor, sigma: Tensor, fine: FineGrid) -> Cloud:
    """Isotropic Gaussians, all in fine pixels."""
    variance = sigma * sigma + fine.extra_px2
    dim = centre.shape[-1]
    weight = amplitude * (2 * math.pi * variance) ** (-0.5 * dim)
    reach = (REACH * variance.detach().sqrt())[..., None].expand(*variance.shape, dim)
    return Cloud(centre, weight, 0.5 / variance, reach)


def _long_cloud(centre: Tensor, amplitude: Tensor, covariance: Tensor, fine: FineGrid) -> Cloud:
    """Anisotropic Gaussians, all in fine pixels."""
    dim = centre.shape[-1]
    eye = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    covariance = covariance + fine.extra_px2 * eye
    precision, determinant = _inverse(covariance)
    weight = amplitude * ((2 * math.pi) ** dim * determinant) ** -0.5
    reach = REACH * covariance.detach().diagonal(dim1=-2, dim2=-1).sqrt()
    return Cloud(centre, weight, precision, reach)


def _inverse(c: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse and determinant of symmetric 2 x 2 or 3 x 3 matrices; LAPACK takes a microsecond for each."""
    if c.shape[-1] == 2:
        a, b, d = c[..., 0, 0], c[..., 0, 1], c[..., 1, 1]
        determinant = a * d - b * b
        adjugate = torch.stack((d, -b, -b, a), -1).unflatten(-1, (2, 2))
    else:
        x, y, z = c.unbind(-1)
        adjugate = torch.stack(
            (torch.linalg.cross(y, z), torch.linalg.cross(z, x), torch.linalg.cross(x, y)), -1
        )
        determinant = (x * adjugate[..., 0]).sum(-1)
    return adjugate / determinant[..., None, None], determinant


def _factor(fine: FineGrid, box: int, *, dim: int, pixel_size_A: float, like: Tensor) -> Tensor:
    """What the cropped transform is multiplied by: the widening divided out, the origin, the units, zero at Nyquist."""
    axes = []
    for axis in range(dim):
        last = axis == dim - 1
        k = torch.arange(box // 2 + 1) if last else torch.fft.fftfreq(box, d=1 / box).round()
        k = k.to(torch.float64)
        # The particle's middle lies in the middle of the fine grid, where patches cross no edge: (-1)^k brings it back.
        value = (1 - 2 * (k % 2)) * torch.exp(2 * math.pi**2 * fine.extra_px2 * (k / fine.size) ** 2)
        axes.append(torch.where(2 * k.abs() == box, torch.zeros_like(value), value))
    total = axes[0]
    for value in axes[1:]:
        total = total[..., None] * value
    return (total / pixel_size_A**3).to(like)
