"""Image formation: what the detector would record of a map in given poses, without noise."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.data import CTF, Pose, Volume
from cryorbit.errors import BadInput
from cryorbit.physics.project import FourierVolume, Mode, images_of, prepare, shift_phase, slices
from cryorbit.physics.transfer import ctf_values, half_plane_frequency_per_A, odd_phase


def form_images(
    volume: Volume | FourierVolume, pose: Pose, ctf: CTF | None, *, mode: Mode = "exact"
) -> Float[Tensor, "n box box"]:
    """Noise-free images: I^(k) = CTF(k) exp(i phi_odd(k)) exp(-2 pi i k . shift) V^(A^T k).

    CTF and shift act on the box of the image, so both wrap around its edges. Differentiable in the map, the
    rotations and the shifts.
    """
    prepared = prepare(volume) if isinstance(volume, Volume) else volume
    return images_of(formed_transforms(prepared, pose, ctf, mode=mode), prepared.box)


def formed_transforms(
    prepared: FourierVolume, pose: Pose, ctf: CTF | None, *, mode: Mode = "fast"
) -> Complex[Tensor, "n box half"]:
    """The transforms of `form_images`, in the layout of `torch.fft.rfft2`, origin at pixel box // 2."""
    if ctf is not None and len(ctf) != len(pose):
        raise BadInput(f"form_images: {len(pose)} poses but {len(ctf)} CTF rows. Give one row per image.")
    plane = slices(prepared, plane_matrix(pose.rotation, ctf), mode=mode)
    transfer = transfer_of(pose.shift_A, ctf, prepared.box, pixel_size_A=prepared.pixel_size_A)
    return plane if transfer is None else plane * transfer


def plane_matrix(rotation: Float[Tensor, "n 3 3"], ctf: CTF | None) -> Float[Tensor, "n 3 3"]:
    """B with slice points B^T (kx, ky, 0): the rotation A, or M^T A where the CTF has a magnification M."""
    if ctf is None or ctf.magnification is None:
        return rotation
    m = torch.eye(3, dtype=rotation.dtype, device=rotation.device).repeat(rotation.shape[0], 1, 1)
    m[:, :2, :2] = ctf.magnification.to(rotation).transpose(1, 2)
    return m @ rotation


def transfer_of(
    shift_A: Float[Tensor, "n 2"], ctf: CTF | None, box: int, *, pixel_size_A: float
) -> Complex[Tensor, "n box half"] | Float[Tensor, "n box half"] | None:
    """CTF, odd aberrations and shift as one factor on the half plane; None when all three are 1."""
    transfer: Tensor | None = None
    if ctf is not None:
        frequency = half_plane_frequency_per_A(
            box, pixel_size_A=pixel_size_A, device=shift_A.device, dtype=shift_A.dtype
        )
        transfer = ctf_values(ctf, frequency)
        phase = odd_phase(ctf, frequency)
        transfer = transfer if phase is None else transfer * phase
    if shift_A.requires_grad or bool((shift_A != 0).any()):
        phase = shift_phase(shift_A, box, pixel_size_A=pixel_size_A)
        transfer = phase if transfer is None else transfer * phase
    return transfer
