"""Change of box and of pixel size: Fourier crop and pad, and plain crop and pad, all about index N // 2."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryorbit.errors import BadInput


def fourier_resample(x: Float[Tensor, "..."], n: int, *, ndim: int) -> Float[Tensor, "..."]:
    """Real array(s) sampled on `n` points per axis over the same field of view; the last `ndim` axes change.

    The field of view stays, so the pixel size becomes pixel_size * N / n. Values are kept (a constant stays
    that constant), the origin N // 2 goes to n // 2. Going down, frequencies above the new Nyquist are
    removed; the Nyquist samples of an even box are the samples of that low-passed function (both signs add
    up), going up they are split evenly. So down after up is the identity. One real transform per axis, the
    complex array is never made.
    """
    if n < 1:
        raise BadInput(f"fourier_resample: box {n} is not positive.")
    box = x.shape[-1]
    if x.shape[-ndim:] != (box,) * ndim:
        raise BadInput(f"fourier_resample: wanted {ndim} equal axes, got {tuple(x.shape[-ndim:])}.")
    if n == box:
        return x
    dims = tuple(range(-ndim, 0))
    spectrum = torch.fft.rfftn(x, dim=dims, norm="forward")
    spectrum = resample_transform(spectrum, box, n, ndim=ndim)
    return torch.fft.irfftn(spectrum, s=(n,) * ndim, dim=dims, norm="forward")


def resample_transform(
    transform: Complex[Tensor, "*shape"], box: int, n: int, *, ndim: int
) -> Complex[Tensor, "*cropped"]:
    """The half transform of edge `n` that belongs to one of edge `box`, both as `torch.fft.rfftn` gives them.

    Phases are those of arrays that start at their first element (no ifftshift before): the origin is moved
    from index box // 2 to n // 2 on the way. Amplitudes are copied: with unnormalised transforms multiply by
    (n / box)^ndim to keep values.
    """
    transform = _resample_half_axis(transform, box, n, ndim=ndim)
    for dim in range(-ndim, -1):
        transform = _resample_full_axis(transform, dim, box, n)
    if n < box and n % 2 == 0:  # both signs of the new Nyquist column add up to a Hermitian column
        column = transform[..., -1:]
        mirror, others = column.conj().resolve_conj(), tuple(range(-ndim, -1))
        if others:
            mirror = torch.roll(torch.flip(mirror, others), [1] * len(others), others)
        transform = torch.cat([transform[..., :-1], column + mirror], -1)
    return transform


def _turn(count: int, box: int, n: int, like: Tensor) -> Tensor | None:
    """Phase of frequencies 0 ... count - 1 when the origin goes from box // 2 to n // 2; None if 1."""
    turn = (box // 2) / box - (n // 2) / n
    if turn == 0:
        return None
    angle = 2 * torch.pi * turn * torch.arange(count, device=like.device, dtype=torch.float64)
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _resample_half_axis(transform: Tensor, box: int, n: int, *, ndim: int) -> Tensor:
    kept = min(box, n) // 2 + 1
    transform = transform[..., :kept]
    phase = _turn(kept, box, n, transform)
    if phase is not None:
        transform = transform * phase
    if n > box:
        if box % 2 == 0:  # what was one Nyquist sample becomes a pair
            transform = torch.cat([transform[..., :-1], 0.5 * transform[..., -1:]], -1)
        transform = torch.nn.functional.pad(transform, (0, n // 2 + 1 - kept))
    return transform


def _resample_full_axis(transform: Tensor, dim: int, box: int, n: int) -> Tensor:
    small = min(box, n)
    inner = (small - 1) // 2  # frequencies that exist with both signs in the smaller box
    phase = _turn(small // 2 + 1, box, n, transform)
    shape = [-1] + [1] * (-1 - dim)

    def part(start: int, length: int, turn: Tensor | None) -> Tensor:
        piece = transform.narrow(dim, start, length)
        return piece if turn is None else piece * turn.reshape(shape)

    low = part(0, inner + 1, None if phase is None else phase[: inner + 1])
    high = part(box - inner, inner, None if phase is None else phase[1 : inner + 1].conj().flip(0))
    if small % 2:
        middle = []
    else:
        nyquist = None if phase is None else phase[-1:]
        plus = part(small // 2, 1, nyquist)
        minus = part(box - small // 2, 1, None if nyquist is None else nyquist.conj())
        middle = [plus + minus] if n < box else [0.5 * plus, 0.5 * minus]
    gap = n - 2 * inner - 1 - len(middle)
    if gap > 0:
        zeros = low.new_zeros([*low.shape[:dim], gap, *low.shape[dim:][1:]])
        middle = [*middle[:1], zeros, *middle[1:]]
    return torch.cat([low, *middle, high], dim)


def fourier_crop(x: Float[Tensor, "..."], n: int, *, ndim: int) -> Float[Tensor, "..."]:
    """`fourier_resample` to a smaller box (or the same).

    Raises
    ------
    BadInput
        If `n` is larger than the box.
    """
    if n > min(x.shape[-ndim:]):
        raise BadInput(f"fourier_crop: box {tuple(x.shape[-ndim:])} is smaller than {n}. Use fourier_pad.")
    return fourier_resample(x, n, ndim=ndim)


def fourier_pad(x: Float[Tensor, "..."], n: int, *, ndim: int) -> Float[Tensor, "..."]:
    """`fourier_resample` to a larger box (or the same): band-limited interpolation.

    Raises
    ------
    BadInput
        If `n` is smaller than the box.
    """
    if n < max(x.shape[-ndim:]):
        raise BadInput(f"fourier_pad: box {tuple(x.shape[-ndim:])} is larger than {n}. Use fourier_crop.")
    return fourier_resample(x, n, ndim=ndim)


def box_pad(x: Float[Tensor, "..."], n: int, *, ndim: int, value: float = 0.0) -> Float[Tensor, "..."]:
    """Larger array(s) of the same pixel size, the old origin N // 2 at n // 2, filled with `value`."""
    pads: list[int] = []
    for dim in range(-1, -ndim - 1, -1):
        old = x.shape[dim]
        if n < old:
            raise BadInput(f"box_pad: box {tuple(x.shape[-ndim:])} is larger than {n}. Use box_crop.")
        before = n // 2 - old // 2
        pads += [before, n - old - before]
    return torch.nn.functional.pad(x, pads, value=value)


def box_crop(x: Float[Tensor, "..."], n: int, *, ndim: int) -> Float[Tensor, "..."]:
    """The central `n` pixels per axis, index N // 2 going to n // 2; a view. Adjoint of `box_pad`."""
    for dim in range(-1, -ndim - 1, -1):
        old = x.shape[dim]
        if n > old:
            raise BadInput(f"box_crop: box {tuple(x.shape[-ndim:])} is smaller than {n}. Use box_pad.")
        x = x.narrow(dim, old // 2 - n // 2, n)
    return x
